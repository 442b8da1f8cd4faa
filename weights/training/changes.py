"""Change the recordings of people in one respect at a time, and print how well they are heard."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from evaluate import RATE, load_recordings, report

from edgeconv import load_recogniser


def played(samples: np.ndarray, speed: float) -> np.ndarray:
    """Return samples played at another speed, and so at another pitch."""
    return np.interp(np.arange(0, len(samples) - 1, speed), np.arange(len(samples)), samples)


def noisy(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Return samples with white noise so far below them."""
    noise = np.random.default_rng(0).standard_normal(len(samples))
    return samples + noise * samples.std() * 10 ** (-decibels / 20)


def main() -> None:
    """Print word error rates, and which recordings are not heard right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what train.py wrote, without .pth")
    parser.add_argument("recordings", type=Path, help="a folder of wavs with transcripts.json")
    given = parser.parse_args()
    recogniser = load_recogniser(given.model.with_suffix(".pth"), given.model.with_suffix(".yaml"))
    real = {
        name: (samples / 32768, said)
        for name, (samples, said) in load_recordings(given.recordings).items()
        if not name.startswith("synthetic")
    }

    def hear(change: str, sounds: list[np.ndarray], **options: bool | int) -> None:
        texts = [said for _, said in real.values()]
        heard = [recogniser.transcribe(RATE, x.astype(np.float32), **options).text for x in sounds]
        cases = zip(real, texts, heard, strict=True)
        print(report(change, texts, heard), *(name for name, *both in cases if len({*both}) > 1))

    sounds = [samples for samples, _ in real.values()]
    hear("as they are", sounds)
    hear("full context", sounds, full_context=True)
    hear("a beam of 5", sounds, beam_size=5)
    for factor in (0.1, 0.3):
        hear(f"level times {factor}", [factor * x for x in sounds])
    for speed in (0.8, 0.9, 0.95, 1.05, 1.1, 1.2):
        hear(f"played {speed} times as fast", [played(x, speed) for x in sounds])
    for decibels in (40, 30, 20):
        hear(f"noise {decibels} dB below", [noisy(x, decibels) for x in sounds])


if __name__ == "__main__":
    main()
