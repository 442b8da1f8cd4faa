"""ESPnet's streaming encoder: from features to encoder frames."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import check_shape, float32, floats, integer, integers
from edgeconv.blocks.block import Block
from edgeconv.blocks.description import describe
from edgeconv.checkpoint import CheckpointError
from edgeconv.converted import built
from edgeconv.layers import ConvInput, Norm
from edgeconv.layers.layer import Array, Geometry, Layer, Stream, checked_geometry
from edgeconv.layers.parameters import sharing


class Encoder:
    """
    The encoder of ESPnet's standalone transducers, ``espnet2.asr_transducer``.

    An input block that subsamples by 4, Conformer, E-Branchformer or Branchformer blocks, a norm.
    It never changes, and any number of streams and threads may share it. Bits are the same for
    every way the features arrive, every batch and every CPU. Arguments that are not as described
    are a TypeError or a ValueError, and a call that is refused changes nothing.

    Parameters
    ----------
    state : mapping of str to array
        ESPnet's state dict, of the encoder or of the whole model; or `read_checkpoint`'s result.
    configuration : mapping
        ESPnet's ``config.yaml``, or its ``encoder_conf``, as plain Python.

    Attributes
    ----------
    input_size, output_size : int
        Number of features of a frame, and width D of an encoder frame.
    subsampling_factor : int
        Feature frames for each encoder frame.
    causal : bool
        Whether it can be streamed: it was trained with ``dynamic_chunk_training``.

    Raises
    ------
    CheckpointError
        If they do not make an encoder, contradict each other, or ask for what is left out.
    """

    def __init__(self, state: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
        description = describe(configuration)
        outer = "encoder." if any(f"{n}".startswith("encoder.encoders.") for n in state) else ""
        blocks = description.build_blocks(state, f"{outer}encoders.blocks")
        name, options = f"{outer}encoders.norm_blocks", description.norm(description.main, "after_")
        norm = Norm(state, name, size=blocks[-1].output_size, **options)
        self._embed = description.build_input(state, f"{outer}embed")
        widths = [self._embed.output_size, *(block.input_size for block in blocks)]
        if len(set(widths)) > 1:
            raise CheckpointError("all blocks must be of one width", str(widths))
        self._body = _Body(blocks, norm)
        self.input_size, self.output_size = self._embed.input_size, self._body.output_size
        self.subsampling_factor, self.causal = 4, description.causal

    def __call__(
        self,
        x: NDArray[np.floating[Any]],
        *,
        lengths: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    ) -> Any:
        """
        Encode whole utterances with full context, each as if alone.

        Parameters
        ----------
        x : ndarray of floats, (B, T, input_size)
            Features; computed in float32.
        lengths : integers from 0 to T, (B,), optional
            Row b has only ``lengths[b]`` frames.

        Returns
        -------
        y : ndarray, float32, (B, T', D)
            With `lengths`, zeros beyond each row's own frames.
        counts : ndarray, int64, (B,)
            Only with `lengths`: how many frames each row has.
        """
        x = floats("x", x, ("B", "T", self.input_size), self)
        valid = np.full(len(x), x.shape[1])
        if lengths is not None:
            valid = integers("lengths", lengths, 0, x.shape[1])
            check_shape("lengths", valid, (len(x),), self)
        rows = []
        for row, length in zip(x, valid.tolist(), strict=True):
            features = float32("x", row[:length], (length, self.input_size), self)
            rows.append(self._body._whole(self._embed._whole(features)))
        counts = np.array([len(row) for row in rows], np.int64)
        y = np.zeros((len(rows), max(counts, default=0), self.output_size), np.float32)
        for out, row in zip(y, rows, strict=True):
            out[: len(row)] = row
        return y if lengths is None else (y, counts)

    def stream(
        self, chunk_size: int = 20, left_context: int = 32, *, threads: int = 1
    ) -> EncoderStream:
        """
        Start an utterance whose features come in pieces.

        Parameters
        ----------
        chunk_size : int, at least 1
            Encoder frames that are computed together and see each other; 20 are 640 ms of audio.
        left_context : int, at least 0
            Encoder frames before a chunk that it sees.
        threads : int, at least 1
            How many share the dense layers of a chunk, where no other parallel loop runs. The bits
            are the same.

        Returns
        -------
        EncoderStream
            All of its code is compiled: no later call waits for a compiler. An encoder that is
            not causal has none, and raises a ValueError.
        """
        geometry = checked_geometry(chunk_size, left_context)
        n_threads = integer("threads", threads, 1, 2**10)
        return EncoderStream(Streamed(self._embed, self._body, n_threads), geometry)

    def __repr__(self) -> str:
        kinds = [type(block).__name__ for block in self._body.blocks]
        names = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"Encoder({self.input_size}, {self.output_size}, {names}, causal={self.causal})"


class _Body(Layer):
    """All blocks, and the norm behind them."""

    chunked = True

    def __init__(self, blocks: list[Block], norm: Norm) -> None:
        self.blocks, self._norm = blocks, norm
        self.input_size = self.output_size = blocks[-1].output_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {str(n): block._memory(geometry) for n, block in enumerate(self.blocks)}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        for block, own in zip(self.blocks, memory.values(), strict=True):
            x = block._run(x, own)
        return self._norm._run(x, {})


class Streamed(Layer):
    """An encoder in a stream: its blocks take what its input block gives, but the first frame."""

    def __init__(self, embed: ConvInput, body: Layer, threads: int) -> None:
        self._embed, self._body, self._threads = embed, body, threads
        self.input_size, self.output_size = embed.input_size, body.output_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        size = geometry.chunk_size
        with sharing.among(self._threads):
            body = Stream(self._body, geometry, (size - self._embed.lost - 1) % size + 1)
            return {"embed": Stream(self._embed, Geometry(1), 4 * size), "body": body}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        is_first = memory["embed"].frames_out == 0
        with sharing.among(self._threads):
            y: Array = memory["body"].process(memory["embed"].process(x)[int(is_first) :])
        return y

    def _finish(self, memory: dict[str, Any]) -> Array:
        is_first = memory["embed"].frames_out == 0
        with sharing.among(self._threads):
            y = memory["body"].process(memory["embed"].flush()[int(is_first) :])
            return np.concatenate([y, memory["body"].flush()])


class EncoderStream(Stream):
    """
    One utterance through an encoder; `Encoder.stream` opens it.

    Notes
    -----
    The grid of chunks is ESPnet's, and belongs to the utterance: its first window is
    ``4 * chunk_size - 1`` feature frames, and the first embedding is dropped, so that the first
    chunk is 3 or, with a VGG block of factor 6, 4 frames shorter than the others. A chunk comes
    out when all of its features are there; the last one, by `flush`, may be shorter, and no silence
    is added. A stream belongs to one thread at a time.

    Attributes
    ----------
    latency : int
        Feature frames for which the first encoder frame of a chunk waits for the last one.
    frames_in, frames_out : int
        Feature frames taken and encoder frames returned since the start of the utterance.
    """

    _given = "features"

    def __init__(self, layer: Streamed, geometry: Geometry) -> None:
        self.latency = 4 * (geometry.chunk_size - 1)
        super().__init__(layer, geometry, 0)

    def process(self, features: NDArray[np.floating[Any]]) -> Array:
        """Take feature frames (n, input_size); return encoder frames (m, D) that are now final."""
        return super().process(features)

    def __repr__(self) -> str:
        return f"<EncoderStream, {self.frames_in} feature frames in, {self.frames_out} frames out>"


def load_encoder(
    path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
) -> Encoder:
    """
    Load an encoder from a file.

    Parameters
    ----------
    path : path
        A model that `convert` wrote, or a checkpoint of ESPnet's, such as a ``.pth``.
    config : path, optional
        ESPnet's ``config.yaml``, for a checkpoint; reading it needs PyYAML.

    Raises
    ------
    CheckpointError
        If they do not make an encoder.
    """
    return built(Encoder, path, config)
