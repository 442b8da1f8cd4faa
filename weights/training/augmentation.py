"""Voices, rooms, noise and microphones, imitated on log-mel features: 1 ms a sentence.

Everything acts on natural logarithms of mel powers, (B, T, F), at 8 ms a frame.
"""

from __future__ import annotations

import math

import numpy as np
import torch

SILENCE = math.log(1e-10)  # what the frontend gives for zeros
DECIBEL = math.log(10) / 10
FRAME = 0.008


def augment(
    sentences: list[torch.Tensor], draw: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make a batch of spoken sentences as if from other mouths, rooms and microphones.

    All rows get the same length by silence before and after, so that no row needs a mask.

    Parameters
    ----------
    sentences : list of torch.Tensor (T_i, F)
        Clean log-mel features.
    draw : numpy.random.Generator
        Decides everything.

    Returns
    -------
    features : torch.Tensor (B, T, F) float32
    starts, lengths : torch.Tensor (B,) int64
        In which frames the words are.
    """
    spoken = [_another_mouth(sentence.float(), draw) for sentence in sentences]
    frames = max(map(len, spoken)) + int(draw.integers(12, 48))
    batch = torch.full((len(spoken), frames, spoken[0].shape[1]), SILENCE)
    lengths = np.array([len(sentence) for sentence in spoken])
    starts = draw.integers(2, frames - lengths - 6)
    for row, sentence, start in zip(batch, spoken, starts, strict=True):
        row[start : start + len(sentence)] = sentence
    batch = _another_room(batch.exp(), draw).log() + _another_microphone(batch, draw)
    loudness = batch.exp().mean((1, 2), keepdim=True).log()
    batch = torch.logaddexp(batch, loudness + _noise(batch, draw))
    batch += _uniform(draw, -30 * DECIBEL, 3 * DECIBEL, len(batch))
    batch = torch.logaddexp(batch, torch.tensor(SILENCE + draw.uniform(-5, 3)))
    batch = _switch_on_and_off(batch, draw).clamp_min(SILENCE)
    return batch, torch.from_numpy(starts), torch.from_numpy(lengths)


def mask(normalised: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Hide a band and a moment of each row (SpecAugment), in place."""
    _, frames, bands = normalised.shape
    for row in normalised:
        width, length = draw.integers(0, 12), draw.integers(0, 10)
        band, moment = draw.integers(0, bands - width), draw.integers(0, frames - length)
        row[:, band : band + width] = 0
        row[moment : moment + length] = 0
    return normalised


def _another_mouth(sentence: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Stretch time by up to 18 %, and the vocal tract's length by up to 10 %."""
    frames, bands = sentence.shape
    length = round(frames * draw.uniform(0.85, 1.18))
    times = torch.linspace(0, frames - 1, length)
    warped = (torch.arange(bands) * draw.uniform(0.9, 1.1)).clamp_max(bands - 1)
    return _interpolate(_interpolate(sentence, times).T, warped).T


def _interpolate(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    below = at.floor().long()
    above = (below + 1).clamp_max(len(rows) - 1)
    return torch.lerp(rows[below], rows[above], (at - below)[:, None])


def _another_room(power: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Add a reverberant tail, as exponentially decaying power, to a third of the rows."""
    rows = len(power)
    decay = 10 ** (-6 * FRAME / _uniform(draw, 0.1, 0.7, rows))[:, 0]
    share = _uniform(draw, 0, 0.8, rows)[:, 0] * _chosen(draw, 0.3, rows)[:, 0] * (1 - decay)
    tail, tails = torch.zeros_like(power[:, 0]), []
    for frame in power.unbind(1):
        tails.append(tail)
        tail = decay * tail + frame
    return power + share[:, None] * torch.stack(tails, 1)


def _another_microphone(batch: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Return a smooth gain over bands, (B, 1, F); some microphones hear no high frequencies."""
    rows, _, bands = batch.shape
    cut = _uniform(draw, 52, 78, rows)
    steep = _uniform(draw, 0.2, 1.5, rows) * _chosen(draw, 0.2, rows)
    lost = (torch.arange(bands) - cut).clamp_min(0) * steep
    return _smooth(rows, bands, draw, [1.2, 0.7, 0.5, 0.3]) - lost


def _noise(batch: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Return noise of 10 to 45 dB below the speech, coloured, with the flicker of narrow bands."""
    rows, frames, bands = batch.shape
    colour = _smooth(rows, bands, draw, [1.0, 0.5, 0.3])
    colour = colour - torch.linspace(0, 1, bands) * _uniform(draw, 0, 5, rows)
    colour = colour - colour.exp().mean(2, keepdim=True).log()
    flicker = torch.linspace(0.9, 0.35, bands) * torch.from_numpy(
        draw.standard_normal((rows, frames, bands), np.float32)
    )
    return colour + flicker - _uniform(draw, 10, 45, rows) * DECIBEL


def _switch_on_and_off(batch: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Begin or end half of the rows with zeros, as the last window of a stream does."""
    for row in batch:
        if draw.random() < 0.2:
            row[: draw.integers(1, 12)] = SILENCE
        if draw.random() < 0.4:
            row[-draw.integers(1, 24) :] = SILENCE
    return batch


def _smooth(
    rows: int, bands: int, draw: np.random.Generator, amplitudes: list[float]
) -> torch.Tensor:
    """Return random sums of a few cosines over the bands, (B, 1, F)."""
    waves = np.outer(np.arange(1, len(amplitudes) + 1), (np.arange(bands) + 0.5) * np.pi / bands)
    weights = draw.standard_normal((rows, 1, len(amplitudes))) * amplitudes
    return torch.from_numpy((weights @ np.cos(waves)).astype(np.float32))


def _uniform(draw: np.random.Generator, low: float, high: float, rows: int) -> torch.Tensor:
    return torch.from_numpy(draw.uniform(low, high, (rows, 1, 1)).astype(np.float32))


def _chosen(draw: np.random.Generator, probability: float, rows: int) -> torch.Tensor:
    return (_uniform(draw, 0, 1, rows) < probability).float()
