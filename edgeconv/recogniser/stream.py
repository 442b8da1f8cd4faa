"""Listening: samples in, what was said so far out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import (
    as_float32,
    check_shape,
    check_state,
    described,
    integer,
    integers,
    is_array,
    remedy,
)
from edgeconv.encoder import EncoderStream
from edgeconv.layers.layer import Array, in_turn, restore_all, snapshot_of
from edgeconv.recogniser.audio import LOUDEST, RATES, resampler
from edgeconv.recogniser.endpoint import EndpointRules
from edgeconv.recogniser.features import Features, FeatureStream
from edgeconv.recogniser.search import Said, Search
from edgeconv.recogniser.tokens import Tokens


@dataclass(frozen=True)
class Result:
    """
    What was said.

    Attributes
    ----------
    text : str
    tokens : tuple of str
    timestamps : tuple of float
        Seconds from the start of the signal, one for each token: when its encoder frame begins.
    is_final : bool
        Whether an utterance ended: no later result repeats it, or takes it back.
    score : float
        Logarithm of the tokens' probability.
    """

    text: str
    tokens: tuple[str, ...]
    timestamps: tuple[float, ...]
    is_final: bool
    score: float


class Transcript:
    """How a search's tokens and encoder frames become results."""

    def __init__(self, tokens: Tokens, step: int, sample_rate: int, first: int) -> None:
        self._tokens, self._step, self._rate, self._first = tokens, step, sample_rate, first
        self._agreed: list[Said] = []
        self._names: tuple[str, ...] = ()
        self._times: tuple[float, ...] = ()

    def seconds(self, n_frames: int) -> float:
        """Return how long encoder frames are."""
        return n_frames * self._step / self._rate

    def result(self, search: Search, is_final: bool) -> Result:
        """Return what a search has found; what is agreed on is named and timed once."""
        agreed, own, score = search.found()
        if agreed is not self._agreed:  # another utterance
            self._agreed, self._names, self._times = agreed, (), ()
        names, times = self._told(agreed[len(self._names) :])
        self._names, self._times = self._names + names, self._times + times
        names, times = self._told(own)
        tokens = self._names + names
        return Result(self._tokens.text(tokens), tokens, self._times + times, is_final, score)

    def _told(self, said: list[Said]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return tokens' names and times; tuples of generators would fill Python's free lists."""
        names = tuple([self._tokens.names[token] for token, _ in said])
        return names, tuple([self.seconds(frame + self._first) for _, frame in said])


def joined(results: Sequence[Result]) -> Result:
    """Return utterances as one: the texts that are not empty, with spaces between them."""
    if len(results) == 1:
        return results[0]
    return Result(
        " ".join(result.text for result in results if result.text),
        tuple(token for result in results for token in result.tokens),
        tuple(time for result in results for time in result.timestamps),
        all(result.is_final for result in results),
        sum(result.score for result in results),
    )


class RecogniserStream:
    """
    One signal through a recogniser; `Recogniser.stream` opens it.

    Notes
    -----
    Text, tokens, timestamps and scores are the same for every way of cutting the signal into calls.
    The grid of windows belongs to the signal; a window is heard when all of its samples are there.
    Endpoints are looked for after each window: an utterance ends, and the signal goes on. A stream
    belongs to one thread at a time.
    """

    def __init__(
        self,
        features: Features,
        encoder: EncoderStream,
        search: Search,
        transcript: Transcript,
        window: int,
        padding: int,
        rules: EndpointRules | None,
    ) -> None:
        for kind in (np.int16, np.float32):  # so that all is compiled
            checked_samples(np.zeros(1, kind))
        self._features, self._encoder = FeatureStream(features), encoder
        self._search, self._transcript, self._rules = search, transcript, rules
        self._window, self._padding, self._rate = window, padding, features.sample_rate  # samples
        self._samples = self._given_rate = 0
        self._resampler: Any = None
        self._turn = threading.RLock()
        self._latest = self._transcript.result(self._search, is_final=False)

    @property
    def frames(self) -> int:
        """Encoder frames heard since the start of the signal."""
        return self._search.frame

    @in_turn
    def accept_waveform(self, sample_rate: int, samples: NDArray[Any]) -> Result:
        """
        Take any number of samples; return what was said so far.

        Parameters
        ----------
        sample_rate : int
            Samples a second, the same until the signal ends; if it is not the model's, they are
            resampled, which needs ``soxr``.
        samples : ndarray, (n,), of floats in [-1, 1] or int16

        Returns
        -------
        Result
            Of the utterance so far. If an utterance ended, by `endpoint`, it is final and has all
            that ended in this call; what came after it is in the next result.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described. The stream is then as before the call.
        """
        rate = checked_rate(sample_rate)
        x: Array = checked_samples(samples)
        if self._given_rate not in (0, rate):
            raise ValueError(
                f"`sample_rate` must be {self._given_rate} until `input_finished`, got {rate}"
            )
        if rate != self._rate and self._resampler is None:
            self._resampler = resampler(rate, self._rate)
        self._given_rate = rate
        if self._resampler is not None:
            x = self._resampler.resample_chunk(x)
        ended = self._listen(x)
        return joined(ended) if ended else self._latest

    @in_turn
    def input_finished(self) -> Result:
        """
        End the signal: hear what is left and some silence; then start anew.

        A model says a word after it has heard the word's end. The silence, `tail_padding_ms`,
        gives it time for this where the recording ends with the word.

        Returns
        -------
        Result
            Final: the last utterance, with those that ended in this call.
        """
        ended = []
        if self._resampler is not None:
            ended = self._listen(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        if self._samples:
            ended += self._listen(np.zeros(self._padding, np.float32))
            self._hear(self._encoder.process(self._features.flush()))
            self._hear(self._encoder.flush())
        ended.append(self._transcript.result(self._search, is_final=True))
        self.reset()
        return joined(ended)

    def _listen(self, samples: Array) -> list[Result]:
        """Hear samples; return the utterances that ended."""
        ended = []
        self._samples += len(samples)
        # A window of samples, at most, completes one window of the grid, at most.
        for start in range(0, len(samples), self._window):
            features = self._features.process(samples[start : start + self._window])
            if self._hear(self._encoder.process(features)) and self._is_endpoint():
                ended.append(self._transcript.result(self._search, is_final=True))
                self._search.begin()
                self._latest = self._transcript.result(self._search, is_final=False)
        return ended

    def _hear(self, encoded: Array) -> bool:
        """Search on, if there are encoder frames; tell whether there were."""
        if len(encoded):
            self._search.advance(encoded)
            self._latest = self._transcript.result(self._search, is_final=False)
        return bool(len(encoded))

    def _is_endpoint(self) -> bool:
        search, seconds, start = self._search, self._transcript.seconds, self._search.first_frame
        if self._rules is None:
            return False
        agreed, own, _ = search.found()
        said = own or agreed
        last = seconds(said[-1][1] + 1 - start) if said else None
        return self._rules.is_met(seconds(search.frame - start), last)

    @in_turn
    def reset(self) -> None:
        """Start a new signal: as if the stream had just been opened."""
        for part in (self._features, self._encoder, self._search):
            part.reset()
        self._samples, self._given_rate, self._resampler = 0, 0, None
        self._latest = self._transcript.result(self._search, is_final=False)

    @in_turn
    def snapshot(self) -> dict[str, Any]:
        """
        Return the stream's state by name, for ``np.savez``; no later call changes it.

        Raises
        ------
        ValueError
            If samples are resampled: the resampler's state cannot be had.
        """
        if self._resampler is not None:
            raise ValueError(
                f"`sample_rate` must be the model's for a snapshot, {self._rate}, got "
                f"{self._given_rate}; resample before `accept_waveform`"
            )
        return self._state()

    def _state(self) -> dict[str, Any]:
        counts = np.array([self._samples, self._given_rate])
        return {"options": np.array(self._options), "counts": counts} | snapshot_of(self._parts)

    @in_turn
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """
        Go back, or on, to a state from `snapshot`, of a stream of this model with these options.

        That it is of another model is noticed if something has another size.

        Raises
        ------
        TypeError, ValueError
            If it is anything else. The stream is then as before the call.
        """
        check_state(state, self._state(), "options")
        counts = integers("state['counts']", state["counts"], 0, 2**62)
        check_shape("state['counts']", counts, (2,), self)
        if counts[1] not in (0, self._rate):
            raise ValueError(f"`state` must be of {self._rate} Hz, got {counts[1]}")
        restore_all(self._parts, state)
        self._samples, self._given_rate = counts.tolist()
        self._resampler = None
        self._latest = self._transcript.result(self._search, is_final=False)

    @property
    def _options(self) -> str:
        return f"windows of {self._window} samples, {self._search.options}, {self._rules}"

    @property
    def _parts(self) -> dict[str, Any]:
        return {"features": self._features, "encoder": self._encoder, "search": self._search}

    def __repr__(self) -> str:
        return f"<RecogniserStream, {self.frames} encoder frames, {self._latest.text!r}>"


def checked_samples(samples: Any) -> Array:
    """Return samples as float32 in [-1, 1], or raise what is wrong with them."""
    from edgeconv.kernels import pointwise

    is_samples = is_array(samples) and (samples.dtype.kind == "f" or samples.dtype == np.int16)
    if not is_samples:
        wanted = "an array of floats in [-1, 1], or of int16"
        is_integral = is_array(samples) and samples.dtype.kind in "iu"
        rest = "" if is_integral else remedy("samples", samples)
        raise TypeError(f"`samples` must be {wanted}, got {described(samples)}{rest}")
    if samples.ndim != 1:
        one = "pass one channel, such as `samples[:, 0]`"
        raise ValueError(f"`samples` must have shape (n,), got {samples.shape}; {one}")
    if samples.dtype == np.int16:
        integers, x = np.asarray(samples), np.empty(len(samples), np.float32)
        pointwise.kernel(pointwise.scaled)(np.require(integers, requirements="A"), x)
        return x
    x = as_float32(samples)
    loudest = pointwise.kernel(pointwise.loudest)(x)
    if not loudest <= LOUDEST:  # NaN is not
        divide = "if they are integers, pass int16 or divide by 32768"
        raise ValueError(f"`samples` must be finite and in [-1, 1], got up to {loudest}; {divide}")
    return x


def checked_rate(sample_rate: object) -> int:
    """Return a sample rate, or raise what is wrong with it."""
    if is_array(sample_rate):
        got = f"{described(sample_rate)}; it comes before the samples"
        raise TypeError(f"`sample_rate` must be an integer, got {got}")
    return integer("sample_rate", sample_rate, *RATES)
