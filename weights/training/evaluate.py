"""Measure word error rates of a trained model, as edgeconv streams it; store what PyTorch hears."""

from __future__ import annotations

import argparse
import json
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from espnet2.asr_transducer.frontend.online_audio_processor import OnlineAudioProcessor
from model import ESPnetASRTransducerModel, load

from edgeconv import load_recogniser

RATE = 16_000
MAX_SYMBOLS = 5  # words in one encoder frame
LEFT_CONTEXT = 32  # encoder frames, Speech2Text's default


def words_of(model: ESPnetASRTransducerModel, encoded: torch.Tensor) -> list[str]:
    """Search greedily.

    Parameters
    ----------
    model : ESPnetASRTransducerModel
        Its decoder is stateless: only the latest word matters.
    encoded : torch.Tensor (T, D)

    Returns
    -------
    list of str
    """
    heard = model.joint_network.lin_enc(encoded)
    frame, words, symbols = 0, [0], 0
    while frame < len(heard):
        said = model.joint_network.lin_dec(model.decoder(torch.tensor([[words[-1]]]))[0, 0])
        best = model.joint_network(heard[frame:], said, no_projection=True).argmax(-1)
        emitted = best.nonzero()
        if not len(emitted):
            break
        blanks = int(emitted[0])
        symbols = 1 if blanks else symbols + 1
        frame += blanks
        words.append(int(best[blanks]))
        if symbols == MAX_SYMBOLS:
            frame, symbols = frame + 1, 0
    return [model.token_list[word] for word in words[1:]]


def streamed(
    model: ESPnetASRTransducerModel, samples: torch.Tensor, window: int
) -> Iterator[torch.Tensor]:
    """Yield the encoder's output (T, D) for each window of so many milliseconds, as ESPnet does."""
    audio = OnlineAudioProcessor(
        model._extract_feats,
        model.normalize,
        window,
        model.encoder.embed.subsampling_factor,
        {},
        "cpu",
    )
    model.encoder.reset_cache(LEFT_CONTEXT, "cpu")
    processed = torch.zeros(1, dtype=torch.long)
    size = audio.decoding_samples
    for start in range(0, len(samples) + 1, size):
        last = start + size > len(samples)
        features, length = audio.compute_features(samples[start : start + size], last)
        encoded = model.encoder.chunk_forward(features, length, processed, LEFT_CONTEXT)
        processed += encoded.size(1)
        yield encoded[0]


@torch.inference_mode()
def heard_by_espnet(model: ESPnetASRTransducerModel, samples: np.ndarray, window: int) -> str:
    """Return the words of a recording (int16, 16 kHz), streamed in windows of milliseconds."""
    floats = torch.from_numpy(samples.astype(np.float32) / 32768)
    return " ".join(words_of(model, torch.cat(list(streamed(model, floats, window)))))


def word_errors(said: str, heard: str) -> int:
    """Count the fewest words to insert, delete and replace that turn `heard` into `said`."""
    costs = list(range(len(heard.split()) + 1))
    for row, word in enumerate(said.split(), 1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(heard.split(), 1):
            cheapest = min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != other))
            diagonal, costs[column] = costs[column], cheapest
    return costs[-1]


def report(name: str, said: list[str], heard: list[str]) -> str:
    """Return one line: words wrong, sentences right."""
    wrong = sum(map(word_errors, said, heard))
    total = sum(len(text.split()) for text in said)
    right = sum(a == b for a, b in zip(said, heard, strict=True))
    return f"{name:36} {100 * wrong / total:5.1f} % WER  {right}/{len(said)} sentences right"


def load_speech(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Read what `make_speech.py` wrote: samples (int16) and texts."""
    with np.load(path) as file:
        cuts = np.cumsum(file["lengths"])[:-1]
        return np.split(file["audio"], cuts), file["text"].tolist()


def load_recordings(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Read the recordings that `transcripts.json` in the folder names, by file name."""
    texts = json.loads((folder / "transcripts.json").read_text(encoding="utf-8"))
    recordings = {}
    for name, text in texts.items():
        with wave.open(str(folder / name)) as file:
            recordings[name] = np.frombuffer(file.readframes(file.getnframes()), "<i2"), text
    return recordings


def padded(samples: np.ndarray, seed: int) -> np.ndarray:
    """Put 0.1 to 0.4 s of faint noise before and after, as a microphone gives."""
    draw = np.random.default_rng(seed)
    before, after = draw.integers(1600, 6400, 2)
    quiet = draw.normal(0, 3, before + len(samples) + after)
    quiet[before : before + len(samples)] += samples
    return quiet.clip(-32768, 32767).astype(np.int16)


def main() -> None:
    """Print word error rates and transcripts; store what PyTorch hears in the recordings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what train.py and convert wrote, without .pth")
    parser.add_argument("speech", type=Path, help="the folder that make_speech.py wrote")
    parser.add_argument("recordings", type=Path, help="a folder of wavs with transcripts.json")
    parser.add_argument("--windows", type=int, nargs="+", default=[640, 160], help="milliseconds")
    given = parser.parse_args()
    recordings = load_recordings(given.recordings)
    real = {name: one for name, one in recordings.items() if not name.startswith("synthetic")}
    sets = {"real recordings": tuple(zip(*real.values(), strict=True))}
    for split in ("voices", "rms"):
        audio, texts = load_speech(given.speech / f"{split}.npz")
        sets[split] = [padded(samples, n) for n, samples in enumerate(audio)], texts
    files = {"float32": (given.model.with_suffix(".pth"), given.model.with_suffix(".yaml"))}
    files["int8"] = (given.model.with_suffix(".npz"),)
    heard: dict[tuple[str, int, str], str] = {}
    for weights, paths in files.items():
        recogniser = load_recogniser(*paths)
        for window in given.windows:
            for name, (audio, said) in sets.items():
                texts = [recogniser.transcribe(RATE, x, window_ms=window).text for x in audio]
                print(report(f"{name}, {window} ms, {weights}", said, texts), flush=True)
            for name, (samples, _) in recordings.items():
                text = recogniser.transcribe(RATE, samples, window_ms=window).text
                heard[weights, window, name] = text
    torch.set_num_threads(1)
    model = load(given.model)
    stored: dict[str, dict[str, str]] = {name: {} for name in recordings}
    for window in given.windows:
        for name, (samples, said) in recordings.items():
            text = stored[name][str(window)] = heard_by_espnet(model, samples, window)
            others = {weights: heard[weights, window, name] for weights in files}
            differing = {weights: other for weights, other in others.items() if other != text}
            print(
                f"  {name}, {window} ms: {text!r} ({said!r} was said)",
                *differing.items(),
                flush=True,
            )
    target = given.model.with_suffix(".json")
    target.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
