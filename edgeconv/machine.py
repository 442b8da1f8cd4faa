"""`edgeconv doctor` and `bench`: what this machine is, how fast, and that it works."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from edgeconv import __version__
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.layer import Array
from edgeconv.recogniser import RecogniserStream, Result, load_recogniser
from edgeconv.recogniser.audio import open_wav
from edgeconv.terminal import CommandError, compiling, table

FRAMES_PER_SECOND = 25  # of ESPnet's encoders: a frame every 10 ms, subsampled by 4
SIZES = ((256, 15), (512, 7), (512, 31), (1024, 31))  # (C, K)
SECONDS = 0.1  # for each size and way to run, so a few seconds for all
WINDOWS = 100  # of a recogniser, at least
MODEL = "cards-and-commands"  # that ships


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
    print(*facts_lines(), sep="\n")
    start = perf_counter()
    with compiling():
        from edgeconv.kernels import pointwise, ring

        try:
            kernels = [*map(ring.kernel, (1, 2, 3)), ring.parallel_kernel()]
            # Of other models than the one that ships:
            kernels += map(pointwise.kernel, (pointwise.gate, pointwise.largest))
            load_recogniser(shipped() / f"{MODEL}.npz").stream()
        except Exception as error:  # whatever it is that stops Numba, the user is to see a remedy
            remedy = "install numba and llvmlite again, or empty their cache"
            raise CommandError(f"Numba must compile, found {error!r}; {remedy}") from error
    origin = "compiled" if any(kernel.stats.cache_misses for kernel in kernels) else "cached"
    print(f"kernels   ready after {perf_counter() - start:.2f} s, {origin}")
    print(f"cache     {kernels[0].stats.cache_path or 'none: every process compiles anew'}")
    print("\nedgeconv works on this machine.")


def shipped() -> Path:
    """Return the directory of what ships: in the package, or in a checkout."""
    package = Path(__file__).parent
    for directory in (package / "shipped", package.parent / "weights"):
        if (directory / f"{MODEL}.npz").is_file():
            return directory
    raise CommandError(f"{MODEL}.npz must be in {package}; reinstall edgeconv")


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
            calls, *times = time_calls(lambda: stream.process(chunk, out), SECONDS)  # noqa: B023 - called at once
            median, late = (float(f"{1e6 * time / n:.3g}") for time in times)
            speed = round(1e6 / FRAMES_PER_SECOND / median)
            rows.append((channels, kernel_size, n, calls, median, late, speed))
    heading = f"Time per frame of one convolution; real time is {FRAMES_PER_SECOND} frames/s."
    results = [dict(zip(header, row, strict=True)) for row in rows]
    _report(as_json, heading, [header, *rows], results=results)


def _report(as_json: bool, heading: str, rows: Sequence[Sequence[Any]], **fields: Any) -> None:
    """Print what this machine is and what was measured, as JSON or as a table."""
    if as_json:
        print(json.dumps({"machine": facts(), **fields}, indent=1))
    else:
        print(*facts_lines(), f"\n{heading}\n", table(rows), sep="\n")


def bench_recogniser(
    model: str, config: str | None, audio: Sequence[str], as_json: bool, **listening: Any
) -> None:
    """Print how fast a recogniser is on files, as if they were spoken now."""
    with compiling():
        load_recogniser(model, config).stream(**listening)
    start = perf_counter()
    recogniser = load_recogniser(model, config)
    stream = recogniser.stream(**listening)
    load_seconds = perf_counter() - start
    files = [(file.samples(), file.sample_rate) for file in map(open_wav, audio)]
    for path, (samples, _) in zip(audio, files, strict=True):
        if not len(samples):
            raise CommandError(f"{path}: no samples came; give a recording")
    runs = [spoken(stream, *file, listening["window_ms"]) for file in files]
    n_whole = sum(len(run.windows) for run in runs)
    for _ in range(WINDOWS // n_whole if n_whole else 0):  # of short files, there may be none
        runs += [spoken(stream, *file, listening["window_ms"]) for file in files]
    seconds, computing = sum(run.seconds for run in runs), sum(run.computing for run in runs)
    windows = [1e3 * time for run in runs for time in run.windows] or [np.nan]
    words = [1e3 * run.first_word for run in runs if run.first_word is not None] or [np.nan]
    measured = {
        "load_s": load_seconds,
        "audio_s": seconds,
        "real_time_factor": computing / seconds,
        "window_median_ms": np.median(windows),
        "window_percentile_99_ms": np.percentile(windows, 99),
        "first_word_median_ms": np.median(words),
        "final_text_median_ms": 1e3 * np.median([run.final_text for run in runs]),
        "resident_mb": resident() / 1e6,
    }
    # Of files without a window or a word there is none.
    known = {name: value for name, value in measured.items() if not np.isnan(value)}
    rounded = {name: float(f"{value:.4g}") for name, value in known.items()}
    heading = ", ".join(f"{name} {value:g}" for name, value in listening.items())
    rows = [("measure", "value"), *rounded.items()]
    _report(as_json, heading, rows, options=listening, results=rounded)


class Spoken(NamedTuple):
    """Times of one file, in seconds."""

    seconds: float
    computing: float
    windows: list[float]  # of computing, for each whole window
    first_word: float | None  # from its encoder frame to its text
    final_text: float  # from the last sample


def spoken(stream: RecogniserStream, samples: Array, rate: int, window_ms: float) -> Spoken:
    """Take samples through a stream, on a clock that goes as if they were spoken."""
    n_window, seconds = round(rate * window_ms / 1000), len(samples) / rate
    windows, clock, first_word = [0.0] * (len(samples) // n_window + 1), 0.0, None
    for n, result, took in heard(stream, samples, rate):
        windows[-1 if result.is_final else (n - 1) // n_window] += took
        clock = max(clock, n / rate) + took
        if first_word is None and result.tokens:
            first_word = clock - result.timestamps[0]
    return Spoken(seconds, sum(windows), windows[:-1], first_word, clock - seconds)


def heard(
    stream: RecogniserStream, samples: Array, rate: int, is_live: bool = False
) -> Iterator[tuple[int, Result, float]]:
    """Take samples through a stream; yield how many came, each result, the seconds that it took."""
    step, opened = max(rate // 50, 1), perf_counter()
    for at in range(0, len(samples), step):
        piece = samples[at : at + step]
        if is_live:
            sleep(max(0, (at + len(piece)) / rate - (perf_counter() - opened)))
        start = perf_counter()
        result = stream.accept_waveform(rate, piece)
        yield at + len(piece), result, perf_counter() - start
    start = perf_counter()
    result = stream.input_finished()
    yield len(samples), result, perf_counter() - start


def facts() -> dict[str, str]:
    """Return what a report needs of versions and of the processor; Numba is not imported."""
    packages = {}
    for name in ("numpy", "numba", "llvmlite"):
        with suppress(PackageNotFoundError):  # frozen programs may leave that out
            packages[name] = version(name)
    cpu = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    own = {"edgeconv": __version__, **packages, "Python": platform.python_version()}
    return {**own, "system": platform.platform(), "CPU": cpu}


def facts_lines() -> list[str]:
    """Return them as lines."""
    return [f"{name:<10}{value}" for name, value in facts().items()]


def resident() -> int:
    """Return the bytes of memory that this process holds now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
