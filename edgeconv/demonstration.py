"""`edgeconv demo`: a model and recordings that ship, and what there is to see of them."""

import json

import numpy as np

from edgeconv.machine import MODEL, heard, resident, shipped
from edgeconv.recogniser import load_recogniser
from edgeconv.recogniser.audio import open_wav
from edgeconv.terminal import CommandError, compiling

RECORDINGS = "recordings"
WINDOW = 640  # milliseconds
HEADING = """\
The model was trained, on synthetic speech only. It is small, and knows a hundred English words:
numbers, playing cards, orders to a robot and to a home. {} seconds from {} recordings, of which
none was in its training; those whose names begin with "synthetic" are a machine's voice.
"""


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
        n_agreed += shown == by_pytorch[name][str(WINDOW)]
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
