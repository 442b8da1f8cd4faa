"""`edgeconv doctor` and `edgeconv bench`: what this machine is, and how fast."""

from __future__ import annotations

import datetime
import json
import platform
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

import edgeconv
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.digest import check_arithmetic
from edgeconv.terminal import CommandError, explaining_compilation, progress, table

POINTER_BITS = 8 * struct.calcsize("P")
FRAMES_PER_SECOND = 25  # of ESPnet's encoders: a frame every 10 ms, subsampled by 4
SIZES = ((256, 15), (288, 31), (512, 7), (512, 15), (512, 31), (1024, 31))  # (C, K)
OFFLINE_FRAMES = 1000
SECONDS = 0.1  # for each size and way to run, so a few seconds for all
MINIMUM_CALLS = 20


def time_calls(call: Callable[[], object], seconds: float) -> tuple[int, float, float]:
    """Call for so many seconds; return how often, the median time and the 99th percentile."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(times) < MINIMUM_CALLS:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    median, late = np.percentile(times, (50, 99))
    return len(times), float(median), float(late)


def doctor() -> None:
    """Print what matters of this machine and a verdict; a CommandError if streams do not work."""
    _print_facts(_versions())
    if POINTER_BITS != 64:
        raise CommandError(
            f"Python must be a 64-bit one, found {POINTER_BITS} bits; install a 64-bit system"
        )
    start = perf_counter()
    try:
        with explaining_compilation():
            from edgeconv import kernels

            imported = perf_counter()
            DepthwiseConvolution(64, 31, causal=True).stream()
            compiled = perf_counter()
            facts = kernels.environment()
            is_new = any(k.stats.cache_misses for k in (kernels.step(1), kernels.process(2)))
            DepthwiseConvolution(64, 31, causal=True).stream(batch_size=1)
            kernels.process_in_parallel(3)
            finished = perf_counter()
    except CommandError:
        raise
    except Exception as error:  # whatever it is that stops Numba, the user is to see a remedy
        raise CommandError(
            f"Numba must compile a stream, found {error!r}; install it again"
        ) from error
    check_arithmetic()
    obstacle = _obstacle(facts["cache"])
    facts["cache writable"] = f"no: {obstacle}" if obstacle else "yes"
    facts["Numba import"] = f"{imported - start:.2f} s"
    origin = "compiled" if is_new else "from the cache"
    facts["first stream"] = f"{compiled - imported:.2f} s, {origin}"
    facts["other kernels"] = f"{finished - compiled:.2f} s, for batches and whole signals"
    _print_facts(facts)
    print("\nedgeconv works on this machine.")
    if obstacle and is_new:
        print("Every process compiles anew: set NUMBA_CACHE_DIR to a directory it can write to.")


def bench(as_json: bool) -> None:
    """Print the time per frame for common sizes, one frame at a time, in chunks and offline."""
    results = []
    with progress("bench", len(SIZES)) as show:
        for done, (channels, kernel_size) in enumerate(SIZES):
            show(done)
            for way, n_frames, call in _ways(channels, kernel_size):
                calls, median, late = time_calls(call, SECONDS)
                results.append(
                    {
                        "channels": channels,
                        "kernel_size": kernel_size,
                        "frames": way,
                        "calls": calls,
                        "median_us": 1e6 * median / n_frames,
                        "percentile_99_us": 1e6 * late / n_frames,
                        "times_real_time": n_frames / FRAMES_PER_SECOND / median,
                    }
                )
    from edgeconv import kernels

    facts = _versions() | kernels.environment() | {"date": datetime.date.today().isoformat()}
    if as_json:
        print(json.dumps({"machine": facts, "results": results}, indent=1))
        return
    _print_facts(facts)
    print(f"\nTime per frame of one convolution; real time is {FRAMES_PER_SECOND} frames/s.\n")
    header = ("channels", "taps", "frames", "calls", "median µs", "99 % µs", "x real time")
    rows = [
        (*what, f"{median:.2f}", f"{late:.2f}", f"{speed:,.0f}")
        for *what, median, late, speed in (result.values() for result in results)
    ]
    print(table([header, *rows]))


def _ways(channels: int, kernel_size: int) -> list[tuple[str, int, Callable[[], object]]]:
    """Return the ways to run one size: a name, the frames of a call, and the call."""
    rng = np.random.default_rng(0)
    conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=rng)
    x = rng.standard_normal((OFFLINE_FRAMES, channels), np.float32)
    out = np.empty_like(x)
    with explaining_compilation():
        conv(x[np.newaxis])
        stream = conv.stream()
    return [
        ("1", 1, partial(stream.step, x[0], out[0])),
        ("16", 16, partial(stream.process, x[:16], out[:16])),
        ("64", 64, partial(stream.process, x[:64], out[:64])),
        (f"{len(x)} offline", len(x), partial(conv, x[np.newaxis])),
    ]


def _versions() -> dict[str, str]:
    """Return what is known without Numba."""
    return {
        "edgeconv": edgeconv.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "platform": platform.platform(),
    }


def _print_facts(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        print(f"{name:<16}{value or 'none'}")


def _obstacle(directory: str) -> str | None:
    """Say why the cache cannot be written, by creating and removing a file in it."""
    if not directory:
        return "there is none"
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix="edgeconv-"):
            return None
    except OSError as error:
        return error.strerror
