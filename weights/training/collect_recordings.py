"""Collect the recordings to test with: eight real ones from Debian, five of held-out voices."""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path

import numpy as np
from evaluate import load_speech, padded

PACKAGE = "pocketsphinx-testdata"
REAL = {
    "cards/001.wav": "ten of clubs",
    "cards/002.wav": "four queen of clubs",
    "cards/003.wav": "seven of clubs",
    "cards/004.wav": "five five",
    "cards/005.wav": "eight of spades four of clubs seven of hearts",
    "goforward.raw": "go forward ten meters",
    "numbers.raw": "thirty three four oh six ninety two",
    "something.raw": "go somewhere and do something",
}
SYNTHETIC = 5
COVERED = """\
This covers cards-001.wav to cards-005.wav, goforward.wav, numbers.wav and something.wav, which come
from Debian's package pocketsphinx-testdata; what its copyright file says of them follows. All else
in this directory is edgeconv's, under the Apache License 2.0.

"""


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write int16 samples at 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def read_samples(path: Path) -> np.ndarray:
    """Read a wav file, or a raw one of 16 bits."""
    if path.suffix == ".raw":
        return np.fromfile(path, "<i2")
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def licence(copyright_file: str) -> str:
    """Return what Debian's copyright file says of `Files: *`, and which files here these are."""
    return COVERED + copyright_file.split("\n\nFiles: doc/")[0] + "\n"


def main() -> None:
    """Write the wavs, `transcripts.json` and the licence of the real ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="the folder that make_speech.py wrote")
    parser.add_argument("recordings", type=Path, help="the folder to write")
    parser.add_argument("--package", type=Path, default=Path("/usr/share/pocketsphinx/test/data"))
    given = parser.parse_args()
    given.recordings.mkdir(parents=True, exist_ok=True)
    transcripts = {}
    for source, text in REAL.items():
        name = source.replace("/", "-").replace(".raw", ".wav")
        write_wav(given.recordings / name, read_samples(given.package / source))
        transcripts[name] = text
    audio, texts = load_speech(given.speech / "voices.npz")
    for number, (samples, text) in enumerate(zip(audio[:SYNTHETIC], texts, strict=False), 1):
        name = f"synthetic-{number}.wav"
        write_wav(given.recordings / name, padded(samples, number - 1))
        transcripts[name] = text
    listing = json.dumps(transcripts, indent=1) + "\n"
    (given.recordings / "transcripts.json").write_text(listing, encoding="utf-8")
    debian = Path("/usr/share/doc", PACKAGE, "copyright").read_text(encoding="utf-8")
    (given.recordings / "LICENSE").write_text(licence(debian), encoding="utf-8")


if __name__ == "__main__":
    main()
