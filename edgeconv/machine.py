"""`edgeconv doctor`, `bench` and `demo`: what this machine is, how fast, and that it works."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from edgeconv import __version__
from edgeconv.layers.layer import Array
from edgeconv.recogniser import RecogniserStream, Result, load_recogniser
from edgeconv.recogniser.audio import open_wav
from edgeconv.terminal import CommandError, compiling, table

WINDOWS = 100  # of a recogniser, at least
MODEL = "cards-and-commands"  # that ships
HEADING = """\
The model was trained, on synthetic speech only. It is small, and knows a hundred English words:
numbers, playing cards, orders to a robot and to a home. {} seconds from {} recordings, of which
none was in its training; those whose names begin with "synthetic" are a machine's voice.
"""


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


def bench(
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
    if as_json:
        print(json.dumps({"machine": facts(), "options": listening, "results": rounded}, indent=1))
    else:
        print(*facts_lines(), f"\n{heading}\n", table(rows), sep="\n")


def demo(is_live: bool) -> None:
    """Transcribe and compare; a CommandError if bits depend on how the samples arrive."""
    directory = shipped()
    by_pytorch = json.loads((directory / f"{MODEL}.json").read_text())
    said = json.loads((directory / "recordings" / "transcripts.json").read_text())
    with compiling():
        recogniser = load_recogniser(directory / f"{MODEL}.npz")
        stream = recogniser.stream()
    sounds = {name: open_wav(directory / "recordings" / name).samples() for name in said}
    seconds = sum(map(len, sounds.values())) / recogniser.sample_rate
    print(HEADING.format(round(seconds), len(sounds)))
    rng, computing, is_same, n_agreed = np.random.default_rng(0), 0.0, True, 0
    right = []
    for name, samples in sounds.items():
        print(f"{name:<17}", end="", flush=True)
        shown = ""
        for _, result, took in heard(stream, samples, recogniser.sample_rate, is_live):
            computing += took
            print(result.text.removeprefix(shown), end="", flush=True)
            shown = result.text
        print("" if said[name] == shown else f"\n{'   it was':<17}{said[name]}")
        right += [name] if said[name] == shown else []
        n_agreed += shown == by_pytorch[name]["640"]
        cuts = np.sort(rng.integers(len(samples), size=rng.integers(1, 100)))
        for piece in np.split(samples, cuts):
            stream.accept_waveform(recogniser.sample_rate, piece)
        is_same &= stream.input_finished() == result

    real = [name for name in said if not name.startswith("synthetic")]
    n_real = len(set(right) & set(real))
    lines = {
        "right": f"{n_real} of {len(real)} people's recordings, word for word; "
        f"{len(right) - n_real} of {len(said) - len(real)} synthetic ones",
        "PyTorch": f"transcribes {n_agreed} of {len(said)} the same (its weights are float32)",
        "same bits": "cut elsewhere, at random: the same texts, times and scores: "
        f"{'yes' if is_same else 'NO'}",
        "real time": f"{seconds / computing:.1f} times faster: {seconds:.1f} s of speech "
        f"in {computing:.2f} s",
        "memory": f"{resident() / 1e6:.0f} MB, of this process",
    }
    print("", *(f"{title:<17}{text}" for title, text in lines.items()), sep="\n")
    if not is_same:
        raise CommandError("demo: bits are not what they must be; run `edgeconv doctor`")


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
