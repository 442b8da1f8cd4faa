"""From samples to normalised log-mel features, whole or as they come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import float32, integer
from edgeconv.checkpoint import CheckpointError
from edgeconv.checkpoint.error import check_choice, counted, misfit, section, shown
from edgeconv.layers.layer import Array, joined
from edgeconv.layers.parameters import Weights, tensor
from edgeconv.layers.positions import sine_and_cosine

MELS = "frontend.logmel.melmat"
_FLOOR = np.float32(1e-10)  # of a mel power
BLOCK = 256  # frames whose spectra are in memory at once
# Windows of PyTorch as sums of cosines: w[n] = sum over i of a[i] * cos(2 pi i n / N).
WINDOWS = {
    None: (1.0,),
    "hann": (0.5, -0.5),
    "hamming": (0.54, -0.46),
    "blackman": (0.42, -0.5, 0.08),
}
# What ESPnet's frontend can do as well, and no recipe asks for.
FIXED = {"center": True, "normalized": False, "onesided": True, "apply_stft": True}


class Features:
    """
    ESPnet's ``DefaultFrontend`` and normalisation, with the mel filters of the checkpoint.

    Frame t is of the `n_fft` samples around sample ``t * hop_length``; beyond both ends the signal
    is reflected. The Fourier transform is a dense layer, of the window times sines and cosines.

    `state` has ``frontend.logmel.melmat`` (n_fft // 2 + 1, n_mels), and ``normalize.mean`` and
    ``normalize.std`` (n_mels,) if the configuration's ``normalize`` is ``global_mvn``.
    """

    def __init__(self, state: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
        from edgeconv.kernels import pointwise

        if configuration.get("input_size") is not None or MELS not in state:
            found = shown(configuration.get("input_size"))
            expected = f"a recogniser must have a frontend with {MELS}, and no input_size"
            raise CheckpointError(expected, found, "its encoder alone can be used")
        check_choice("frontend", configuration.get("frontend", "default"), ["default"])
        conf = section(configuration, "frontend_conf")
        for name, value in FIXED.items():
            check_choice(name, conf.get(name, value), [value])
        check_choice("window", conf.get("window", "hann"), WINDOWS)
        self.sample_rate = _rate(conf.get("fs", 16000))
        self.n_fft = counted(conf, "n_fft", 512)
        self.hop_length = counted(conf, "hop_length", 128)
        size = counted(conf, "win_length", self.n_fft)
        if size > self.n_fft:
            raise misfit(f"win_length must be at most n_fft, {self.n_fft}", size)
        mels = tensor(state, MELS, (self.n_fft // 2 + 1, "n_mels"))
        self.n_mels = mels.shape[1]
        self._first = (self.n_fft - size) // 2  # sample of a frame where its window begins
        window = _window(WINDOWS[conf.get("window", "hann")], size)
        rows = (_waves(self.n_fft, self._first, size) * window).astype(np.float32)
        self._transform = Weights({"w.weight": rows}, "w", shape=rows.shape)
        self._mels = Weights({"w.weight": np.ascontiguousarray(mels.T)}, "w", shape=("N", "K"))
        self._power = pointwise.kernel(pointwise.power)
        self._standardised_log = pointwise.kernel(pointwise.standardised_log)
        kind, options = configuration.get("normalize"), section(configuration, "normalize_conf")
        check_choice("normalize", kind, [None, "global_mvn", "utterance_mvn"])
        # By its own mean, so that no utterance can be streamed.
        self.by_utterance = kind == "utterance_mvn"
        self._norm_means = bool(options.get("norm_means", True))
        self._norm_vars = bool(options.get("norm_vars", not self.by_utterance))
        self._mean, self._std = np.zeros(self.n_mels, np.float32), np.ones(self.n_mels, np.float32)
        if kind == "global_mvn" and self._norm_means:
            self._mean = tensor(state, "normalize.mean", (self.n_mels,))
        if kind == "global_mvn" and self._norm_vars:
            self._std = tensor(state, "normalize.std", (self.n_mels,))

    def whole(self, samples: Array) -> Array:
        """Return the features (T, n_mels) of a whole signal (n,)."""
        stream = FeatureStream(self)
        features = np.concatenate([stream.process(samples), stream.flush()])
        return self._normalised_by_itself(features) if self.by_utterance else features

    def of_frames(self, samples: Array, n: int) -> Array:
        """Return the features of the first n frames in samples, which hold all of them."""
        features = np.empty((n, self.n_mels), np.float32)
        size, strides = self._transform.n_inputs, (4 * self.hop_length, 4)
        for start in range(0, n, BLOCK):
            out = features[start : start + BLOCK]
            first = 4 * (start * self.hop_length + self._first)
            frames = np.ndarray((len(out), size), np.float32, samples.data, first, strides)
            power = np.empty((len(out), self._mels.n_inputs), np.float32)
            self._power(self._transform.rows(frames), power)
            self._mels.rows(power, out)
        self._standardised_log(features, _FLOOR, self._mean, self._std)
        return features

    def _normalised_by_itself(self, features: Array) -> Array:
        """Return features less their mean, and by their deviation if the configuration says so."""
        centred = features - _mean(features)
        y = centred if self._norm_means else features.astype(np.float64)
        if self._norm_vars:
            y = y / np.maximum(np.sqrt(_mean(centred * centred)), 1e-20)
        return y.astype(np.float32)


class FeatureStream:
    """
    The features of one signal, each as soon as all of its samples are there.

    A signal that is too short to be reflected, up to ``n_fft // 2`` samples, ends with silence.
    """

    def __init__(self, features: Features) -> None:
        self._features = features
        self._samples, self._next = np.empty(0, np.float32), -1  # -1: nothing is reflected yet

    def process(self, samples: Array) -> Array:
        """Take samples (n,); return the features that are now final."""
        samples = joined([self._samples, samples])
        half = self._features.n_fft // 2
        if self._next < 0:
            if len(samples) <= half:
                self._samples = samples
                return np.empty((0, self._features.n_mels), np.float32)
            samples, self._next = joined([samples[half:0:-1], samples]), 0
        return self._advance(samples, len(samples) - half - 1)

    def flush(self) -> Array:
        """End the signal: return its last features, then start anew."""
        half = self._features.n_fft // 2
        first = np.empty((0, self._features.n_mels), np.float32)
        if self._next < 0 and len(self._samples):
            first = self.process(np.zeros(half + 1 - len(self._samples), np.float32))
        if self._next >= 0:
            reflected = self._samples[-2 : -half - 2 : -1]
            last = self._advance(np.concatenate([self._samples, reflected]), 0)
            first = np.concatenate([first, last])
        self.reset()
        return first

    def _advance(self, samples: Array, latest: int) -> Array:
        """Return the features of what is complete; keep what is not, and samples from `latest`."""
        hop, n_fft = self._features.hop_length, self._features.n_fft
        n = max(0, (len(samples) - self._next - n_fft) // hop + 1)
        y = self._features.of_frames(samples[self._next :], n)
        self._next += n * hop
        first = min(self._next, latest)
        self._samples, self._next = joined([samples[first:]]), self._next - first
        return y

    def reset(self) -> None:
        """Start a new signal."""
        self._samples, self._next = np.empty(0, np.float32), -1

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return the state: samples that later frames need, and where the next one begins."""
        return {"samples": self._samples.copy(), "next": np.array(self._next)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go to a state."""
        samples = float32("state['samples']", state["samples"], ("n",), "features")
        latest = len(samples) + self._features.hop_length
        start = integer("state['next']", np.asarray(state["next"])[()], -1, latest)
        self._samples, self._next = samples.copy(), start


def _rate(value: object) -> int:
    """Return a sample rate, which ESPnet also writes as 16k."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", str(value).strip().lower())
    rate = float(match[1]) * (1000 if match[2] else 1) if match else 0.0
    if not 1 <= rate == int(rate):
        raise misfit("fs must be a whole number of samples a second", value)
    return int(rate)


def _mean(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of rows, added one after the other, as NumPy's own sum is not."""
    return np.cumsum(rows, axis=0, dtype=np.float64)[-1:] / max(1, len(rows))


def _waves(n_fft: int, first: int, size: int) -> NDArray[np.float64]:
    """Return rows of cosines and of sines over the samples of a window."""
    samples = np.arange(first, first + size)
    cosines = np.arange(n_fft // 2 + 1)[:, None] * samples
    sines = np.arange(1, (n_fft + 1) // 2)[:, None] * samples  # the others are zero
    return np.concatenate([cosine(cosines, n_fft), cosine(4 * sines - n_fft, 4 * n_fft)])


def _window(factors: tuple[float, ...], size: int) -> NDArray[np.float64]:
    window = np.zeros(size)
    for i, factor in enumerate(factors):
        window += factor * cosine(i * np.arange(size), size)
    return window


def cosine(part: NDArray[np.int64], whole: int) -> NDArray[np.float64]:
    """
    Return the cosine of ``2 * pi * part / whole``, within 1e-15 and with the same bits everywhere.

    The angle is reduced, in integers, to an eighth of the circle on both sides of 0.
    """
    quarter = (8 * part + whole) // (2 * whole)
    sin, cos = sine_and_cosine((4 * part - quarter * whole) * (np.pi / 2) / whole)
    return np.choose(quarter % 4, [cos, -sin, -cos, sin])
