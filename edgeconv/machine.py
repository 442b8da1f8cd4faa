"""`edgeconv doctor`, `bench` and `demo`: what this machine is, how fast, and that it works."""

import itertools
import json
import os
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgeconv import __version__
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.terminal import CommandError, compiling, table
from edgeconv.weights import convert, load

FRAMES_PER_SECOND = 25  # of ESPnet's encoders: a frame every 10 ms, subsampled by 4
SIZES = ((256, 15), (512, 7), (512, 31), (1024, 31))  # (C, K)
SECONDS = 0.1  # for each size and way to run, so a few seconds for all
CHECKPOINT, RECORDING = "espnet-streaming-encoder.pth", "recording.npz"
TOLERANCE = 1e-5  # of the largest output; both round at most 32 times for each


def time_calls(call: Callable[[], object], seconds: float) -> tuple[int, float, float]:
    """Call for so many seconds; return how often, the median time and the 99th percentile."""
    times: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(times) < 20:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    median, late = np.percentile(times, (50, 99))
    return len(times), float(median), float(late)


def doctor() -> None:
    """Print what matters of this machine and a verdict."""
    print(*(f"{name:<10}{value}" for name, value in facts().items()), sep="\n")
    start = perf_counter()
    with compiling():
        from edgeconv.kernels import ring

        try:
            kernels = [*map(ring.kernel, (1, 2, 3)), ring.parallel_kernel()]
        except Exception as error:  # whatever it is that stops Numba, the user is to see a remedy
            remedy = "install numba and llvmlite again, or empty their cache"
            raise CommandError(f"Numba must compile, found {error!r}; {remedy}") from error
    origin = "compiled" if any(kernel.stats.cache_misses for kernel in kernels) else "cached"
    print(f"kernels   ready after {perf_counter() - start:.2f} s, {origin}")
    print(f"cache     {kernels[0].stats.cache_path or 'none: every process compiles anew'}")
    print("\nedgeconv works on this machine.")


def bench(as_json: bool) -> None:
    """Print the time per frame for common sizes, one frame at a time, in chunks and offline."""
    header = ("channels", "taps", "frames", "calls", "median_us", "percentile_99_us", "x_real_time")
    rows: list[tuple[Any, ...]] = []
    for channels, kernel_size in SIZES:
        conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
        x = np.random.default_rng(0).standard_normal((1000, channels), np.float32)
        with compiling():
            stream = conv.stream()
        for n in (1, 16, 64, 1000):
            chunk, out = x[:n], np.empty_like(x[:n])
            calls, *times = time_calls(lambda: stream.process(chunk, out), SECONDS)  # noqa: B023
            median, late = (round(1e6 * time / n, 2) for time in times)
            speed = round(1e6 / FRAMES_PER_SECOND / median)
            rows.append((channels, kernel_size, n, calls, median, late, speed))
    if as_json:
        results = [dict(zip(header, row, strict=True)) for row in rows]
        print(json.dumps({"machine": facts(), "results": results}, indent=1))
    else:
        print(*(f"{name:<10}{value}" for name, value in facts().items()), sep="\n")
        print(f"\nTime per frame of one convolution; real time is {FRAMES_PER_SECOND} frames/s.\n")
        print(table([header, *rows]))


def facts() -> dict[str, str]:
    """Return what a report needs of versions and of the processor; Numba is not imported."""
    packages = {name: version(name) for name in ("numpy", "numba", "llvmlite")}
    cpu = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    own = {"edgeconv": __version__, **packages, "Python": platform.python_version()}
    return {**own, "system": platform.platform(), "CPU": cpu}


def demo() -> None:
    """Convert, load, stream and measure; a CommandError if an output is wrong."""
    package = Path(__file__).parent
    places = (package / "shipped", package.parent / "weights")  # installed, and in a checkout
    directory = next((place for place in places if (place / RECORDING).is_file()), None)
    if directory is None:
        raise CommandError(f"{RECORDING} must be in {package}; reinstall edgeconv")
    with np.load(directory / RECORDING) as archive:
        recording = dict(archive)
    prefix, x, expected = str(recording["prefix"]), recording["inputs"], recording["outputs"]
    lengths, frame_time = recording["chunk_lengths"], 1 / float(recording["frames_per_second"])
    print(
        "A streaming ESPnet encoder with its initial weights: it is NOT TRAINED and transcribes\n"
        "nothing. Its architecture, its checkpoint and PyTorch's arithmetic are real.\n"
    )
    with tempfile.TemporaryDirectory() as temporary, compiling():
        small = Path(temporary) / "small.npz"
        for name, channels, kernel_size in convert(directory / CHECKPOINT, small, causal=True):
            _say("found", f"{name:<36} {channels:5} channels, {kernel_size} taps")
        _say("converted", f"{CHECKPOINT} to small.npz: {small.stat().st_size / 1e6:.2f} MB")
        conv = load(small, prefix)
        stream, (offline, _) = conv.stream(), conv(x[np.newaxis])
    _say("streamed", f"{RECORDING}: {len(x)} frames that entered {prefix}")
    _say("", f"in PyTorch, in {len(lengths)} chunks, {len(x) * frame_time:.1f} s of speech\n")

    difference, largest = np.abs(offline[0] - expected).max(), np.abs(expected).max()
    agrees = bool(difference <= TOLERANCE * largest)
    _say("PyTorch", f"largest difference {difference:.2g} of outputs up to {largest:.2g}")
    rng = np.random.default_rng(0)
    cuts = [np.sort(rng.integers(len(x), size=rng.integers(len(x)))) for _ in range(20)]
    cuts += [np.arange(1, len(x)), np.cumsum(lengths)[:-1]]
    is_same = True
    for cut in cuts:
        y = np.concatenate([*map(stream.process, np.split(x, cut)), stream.flush()])
        is_same &= y.tobytes() == offline.tobytes()
    _say("same bits", "frame by frame, in PyTorch's chunks, in chunks cut at random 20")
    _say("", f"times, and offline: {'yes' if is_same else 'NO'}\n")

    frames, out = itertools.cycle(x), np.empty(conv.channels, np.float32)
    calls, median, late = time_calls(lambda: stream.step(next(frames), out), 10 * SECONDS)
    _say("time a frame", f"median {median * 1e6:.1f} µs, 99th percentile {late * 1e6:.1f} µs")
    _say("", f"({calls:,} calls of `step`; {conv.channels} channels, {conv.kernel_size} taps)")
    _say("real time", f"{frame_time / median:,.0f} times faster, at {1 / frame_time:.0f} frames/s")
    if not (agrees and is_same):
        raise CommandError("demo: outputs are not what they must be; run `edgeconv doctor`")


def _say(what: str, text: str) -> None:
    print(f"{what:<14}{text}")
