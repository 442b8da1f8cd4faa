"""A recogniser: ESPnet's streaming transducer with its features, search and tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeconv.arguments import described
from edgeconv.blocks.description import options_of
from edgeconv.checkpoint import CheckpointError
from edgeconv.checkpoint.error import misfit
from edgeconv.converted import built
from edgeconv.encoder import Encoder
from edgeconv.recogniser.audio import resampler
from edgeconv.recogniser.decoder import EMBED, Decoder
from edgeconv.recogniser.endpoint import checked_rules
from edgeconv.recogniser.features import Features
from edgeconv.recogniser.joint import Joint
from edgeconv.recogniser.search import AdaptiveExpansion, Greedy, Search, SearchOptions
from edgeconv.recogniser.stream import (
    RecogniserStream,
    Result,
    Transcript,
    checked_rate,
    checked_samples,
    joined,
)
from edgeconv.recogniser.tokens import Tokens

PADDING = 640.0  # milliseconds of silence; see `RecogniserStream.input_finished`


class Recogniser:
    """
    ESPnet's standalone transducer, ``espnet2.asr_transducer``, from samples to text.

    It never changes, and any number of streams and threads may share it. Text and scores have the
    same bits for every way the samples arrive, and on every CPU. Arguments that are not as
    described are a TypeError or a ValueError, and a call that is refused changes nothing.

    Parameters
    ----------
    state : mapping of str to array
        ESPnet's state dict of the whole model, or `read_checkpoint`'s result.
    configuration : mapping
        ESPnet's ``config.yaml`` as plain Python.

    Attributes
    ----------
    sample_rate : int
        Samples a second of the speech that it was trained with; other rates are resampled.
    encoder : Encoder
    tokens : tuple of str
        The first is blank.
    causal : bool
        Whether it can be streamed: see the error that `stream` raises.

    Raises
    ------
    CheckpointError
        If they do not make a recogniser, contradict each other, or ask for what is left out.
    """

    def __init__(self, state: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
        options_of(configuration)  # another task's model lacks the rest, too
        if EMBED not in state:
            is_encoder = any(f"{name}".endswith("encoders.norm_blocks.weight") for name in state)
            found = "an encoder alone" if is_encoder else "none"
            expected = f"a recogniser must have a decoder, {EMBED}"
            raise CheckpointError(expected, found, "give the whole model")
        self._tokens = Tokens(configuration)
        self._features = Features(state, configuration)
        self.encoder = Encoder(state, configuration)
        self._decoder, self._joint = Decoder(state, configuration), Joint(state, configuration)
        n_tokens = len(self._tokens.names)
        if self._decoder.n_tokens != n_tokens:
            expected = f"token_list must have {self._decoder.n_tokens} tokens, the rows of {EMBED}"
            raise misfit(expected, n_tokens)
        sizes = self.encoder.output_size, self._decoder.output_size, n_tokens
        if self._joint.sizes != sizes:
            expected = f"the joint network must take encoder, decoder and tokens of {sizes}"
            raise CheckpointError(expected, str(self._joint.sizes))
        if self._features.n_mels != self.encoder.input_size:
            expected = f"the encoder must take {self._features.n_mels} features"
            raise CheckpointError(expected, str(self.encoder.input_size))
        self.sample_rate, self.tokens = self._features.sample_rate, self._tokens.names
        self.causal = self.encoder.causal and not self._features.by_utterance

    def stream(
        self,
        window_ms: float = 640,
        left_context: int = 32,
        beam_size: int = 1,
        endpoint: object = None,
        tail_padding_ms: float = PADDING,
        search: Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> RecogniserStream:
        """
        Start to listen.

        Parameters
        ----------
        window_ms : float
            Milliseconds of audio that are encoded together, cut to whole encoder frames.
        left_context : int, at least 0
            Encoder frames before a window that it sees.
        beam_size : int, at least 1
            1 is the greedy search, more is ESPnet's ``maes``.
        endpoint : None, True, EndpointRules or a mapping of them
            Whether silence ends an utterance, and starts the next one.
        tail_padding_ms : float, at least 0
            Silence that `input_finished` adds, for the last word to be heard.
        search : mapping, optional
            Further `SearchOptions`, by ESPnet's names.
        threads : int, at least 1
            How many share the encoder's dense layers; see `Encoder.stream`.

        Returns
        -------
        RecogniserStream
            All of its code is compiled: no later call waits for a compiler. A model that is not
            causal has none, and raises a ValueError.
        """
        if self._features.by_utterance:
            raise ValueError(
                "a model must be trained with normalize: global_mvn to be streamed, got one with "
                "utterance_mvn, which needs the mean of the whole utterance; use `transcribe`"
            )
        if not self.encoder.causal:
            raise ValueError(
                "a model must be trained with encoder_conf.main_conf.dynamic_chunk_training to be "
                "streamed, got one whose convolutions see later frames; use `transcribe`"
            )
        window = _milliseconds("window_ms", window_ms, self.sample_rate)
        encoder_frame = self.encoder.subsampling_factor * self._features.hop_length
        chunk_size = window // encoder_frame
        if chunk_size < 1:
            least = 1000 * encoder_frame / self.sample_rate
            raise ValueError(f"`window_ms` must be at least {least}, got {window_ms}")
        return RecogniserStream(
            self._features,
            self.encoder.stream(chunk_size, left_context, threads=threads),
            self._search(beam_size, search),
            self._transcript(1),  # the first embedding is dropped
            chunk_size * encoder_frame,
            _milliseconds("tail_padding_ms", tail_padding_ms, self.sample_rate),
            checked_rules(endpoint),
        )

    def transcribe(
        self, sample_rate: int, samples: Any, *, full_context: bool | None = None, **options: Any
    ) -> Result:
        """
        Recognise a whole recording.

        Parameters
        ----------
        sample_rate : int
            Samples a second.
        samples : ndarray, (n,), of floats in [-1, 1] or int16
        full_context : bool, optional
            Whether the encoder sees the whole recording at once, as ESPnet's offline decoding
            does, in memory that grows with it; the only way if the model is not causal. By default
            the recording is streamed if it can be.
        **options
            As `stream` takes them; with full context, `beam_size` and `search`.

        Returns
        -------
        Result
        """
        if full_context is None:
            full_context = not self.causal
        if not full_context:
            stream = self.stream(**options)
            first, last = stream.accept_waveform(sample_rate, samples), stream.input_finished()
            return joined([first, last] if first.is_final else [last])
        if unknown := set(options) - {"beam_size", "search"}:
            raise TypeError(f"`{min(unknown)}` must not be given: the model has full context")
        search = self._search(**options)
        x, rate = checked_samples(samples), checked_rate(sample_rate)
        if rate != self.sample_rate:
            x = resampler(rate, self.sample_rate).resample_chunk(x, last=True)
        search.advance(self.encoder(self._features.whole(x)[None])[0])
        return self._transcript(0).result(search, is_final=True)

    def _search(self, beam_size: int = 1, search: Mapping[str, Any] | None = None) -> Search:
        """Return a search with checked options."""
        options = SearchOptions.checked(beam_size, search, len(self.tokens))
        kind = Greedy if options.beam_size == 1 else AdaptiveExpansion
        return kind(self._decoder, self._joint, options)

    def _transcript(self, first: int) -> Transcript:
        """Return what makes results where encoder frame `first` is the first one heard."""
        step = self.encoder.subsampling_factor * self._features.hop_length
        return Transcript(self._tokens, step, self.sample_rate, first)

    def __repr__(self) -> str:
        kind = "streaming" if self.causal else "offline"
        return f"<Recogniser of {len(self.tokens)} tokens, {self.sample_rate} Hz, {kind}>"


def _milliseconds(name: str, value: object, sample_rate: int) -> int:
    """Return milliseconds as samples."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number of milliseconds, got {described(value)}")
    if not 0 <= value <= 1e6:
        raise ValueError(f"`{name}` must be from 0 to 1000000, got {value}")
    return round(float(value) * sample_rate / 1000)


def load_recogniser(
    path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
) -> Recogniser:
    """
    Load a recogniser.

    Parameters
    ----------
    path : path
        A model that `convert` wrote, or a checkpoint of ESPnet's, such as a ``.pth``.
    config : path, optional
        ESPnet's ``config.yaml``, for a checkpoint; reading it needs PyYAML.

    Raises
    ------
    CheckpointError
        If they do not make a recogniser.
    """
    return built(Recogniser, path, config)
