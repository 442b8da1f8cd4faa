"""Draw docs/picture.png: a recording, its spectrogram, and the words where they come.

pip install '.[picture]'
python docs/picture.py [--model MODEL.npz] [--recording AUDIO.wav]
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import matplotlib as mpl
import numpy as np

import edgeconv

mpl.use("agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
PIECE = 160  # samples: a word is dated to 10 ms


def main() -> None:
    """Stream a recording in pieces, and draw when each word came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    weights = ROOT / "weights"
    parser.add_argument("--model", type=Path, default=weights / "cards-and-commands.npz")
    parser.add_argument("--recording", type=Path, default=weights / "recordings/cards-005.wav")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "picture.png")
    given = parser.parse_args()
    with wave.open(str(given.recording)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(-1), "<i2")
    recogniser = edgeconv.load_recogniser(given.model)
    stream = recogniser.stream(window_ms=160)
    came: list[float] = []  # when each token was returned
    for start in range(0, len(samples), PIECE):
        piece = samples[start : start + PIECE]
        result = stream.accept_waveform(rate, piece)
        came += [(start + len(piece)) / rate] * (len(result.tokens) - len(came))
    result = stream.input_finished()
    came += [len(samples) / rate] * (len(result.tokens) - len(came))

    figure, (sound, bands, words) = plt.subplots(
        3, 1, sharex=True, figsize=(9, 4), height_ratios=[2, 4, 1.3], layout="constrained"
    )
    seconds = np.arange(len(samples)) / rate
    sound.plot(seconds, samples / 32768, linewidth=0.4, color="0.3")
    sound.set(ylabel="sound", yticks=[])
    bands.specgram(samples / 32768, NFFT=512, Fs=rate, noverlap=384, cmap="magma", vmin=-130)
    bands.set(ylabel="Hz")
    for n, (token, said, returned) in enumerate(
        zip(result.tokens, result.timestamps, came, strict=True)
    ):
        words.plot([said, returned], [0, 0], color="0.7", linewidth=6, solid_capstyle="butt")
        words.text(said, 0.25 + 0.5 * (n % 2), token, fontsize=9)
        for axes in (sound, bands):
            axes.axvline(said, color="tab:blue", linewidth=0.8)
    words.set(xlabel="seconds", ylabel="words", yticks=[], ylim=(-0.4, 1.3), xlim=(0, seconds[-1]))
    figure.savefig(given.output, dpi=90)


if __name__ == "__main__":
    main()
