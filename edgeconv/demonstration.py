"""`edgeconv demo`: a model and recordings that ship, and what there is to see of them."""

import json
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np

from edgeconv.layers.layer import Array
from edgeconv.machine import MODEL, resident, shipped
from edgeconv.recogniser import RecogniserStream, Result, load_recogniser
from edgeconv.recogniser.audio import open_wav
from edgeconv.terminal import CommandError, compiling

RECORDINGS = "recordings"
WINDOW = 640  # milliseconds
HEADING = """\
The model was trained, on synthetic speech only. It is small, and knows a hundred English words:
numbers, playing cards, orders to a robot and to a home. {} seconds from {} recordings, of which
none was in its training; those whose names begin with "synthetic" are a machine's voice.
"""


class Heard(NamedTuple):
    """What came of a recording."""

    result: Result
    is_same: bool  # cut otherwise
    computing: float  # seconds


def demo(is_live: bool) -> None:
    """Transcribe and compare; a CommandError if bits depend on how the samples arrive."""
    directory = shipped()
    by_pytorch = json.loads((directory / f"{MODEL}.json").read_text())
    said = json.loads((directory / RECORDINGS / "transcripts.json").read_text())
    with compiling():
        recogniser = load_recogniser(directory / f"{MODEL}.npz")
        stream = recogniser.stream(WINDOW)
    sounds = {name: open_wav(directory / RECORDINGS / name).samples() for name in said}
    seconds = sum(map(len, sounds.values())) / recogniser.sample_rate
    print(HEADING.format(round(seconds), len(sounds)))
    rng = np.random.default_rng(0)
    heard = {}
    for name, samples in sounds.items():
        print(f"{name:<17}", end="", flush=True)
        result, computing = spoken(stream, samples, recogniser.sample_rate, is_live)
        other = said[name] != result.text
        print(f"\n{'   it was':<17}{said[name]}" * other)
        cuts = np.sort(rng.integers(len(samples), size=rng.integers(1, 100)))
        for piece in np.split(samples, cuts):
            stream.accept_waveform(recogniser.sample_rate, piece)
        heard[name] = Heard(result, stream.input_finished() == result, computing)

    right = [name for name, (result, *_) in heard.items() if result.text == said[name]]
    real = [name for name in said if not name.startswith("synthetic")]
    n_real, n_agreed = len(set(right) & set(real)), 0
    for name, (result, *_) in heard.items():
        n_agreed += result.text == by_pytorch[name][str(WINDOW)]
    computing = sum(each.computing for each in heard.values())
    is_same = all(each.is_same for each in heard.values())
    print(f"\n{'right':<17}{n_real} of {len(real)} people's recordings, word for word; ", end="")
    print(f"{len(right) - n_real} of {len(said) - len(real)} synthetic ones")
    print(
        f"{'PyTorch':<17}transcribes {n_agreed} of {len(said)} the same (its weights are float32)"
    )
    print(f"{'same bits':<17}cut elsewhere, at random: the same texts, times and scores: ", end="")
    print("yes" if is_same else "NO")
    print(
        f"{'real time':<17}{seconds / computing:.1f} times faster: {seconds:.1f} s of speech ",
        end="",
    )
    print(f"in {computing:.2f} s")
    print(f"{'memory':<17}{resident() / 1e6:.0f} MB, of this process")
    if not is_same:
        raise CommandError("demo: bits are not what they must be; run `edgeconv doctor`")


def spoken(
    stream: RecogniserStream, samples: Array, sample_rate: int, is_live: bool
) -> tuple[Result, float]:
    """Print words as they come; return the result and the seconds of computing."""
    computing, shown, start = 0.0, "", perf_counter()
    step = sample_rate // 20
    for at in range(0, len(samples), step):
        piece = samples[at : at + step]
        if is_live:
            sleep(max(0, (at + len(piece)) / sample_rate - (perf_counter() - start)))
        before = perf_counter()
        result = stream.accept_waveform(sample_rate, piece)
        computing += perf_counter() - before
        print(result.text.removeprefix(shown), end="", flush=True)
        shown = result.text
    before = perf_counter()
    result = stream.input_finished()
    computing += perf_counter() - before
    print(result.text.removeprefix(shown), end="", flush=True)
    return result, computing
