"""The depthwise convolution of ESPnet's streaming encoders: weights, geometry, whole signals."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv import digest
from edgeconv.arrays import (
    check_cache,
    check_lengths,
    check_shape,
    described,
    float_array,
    is_array,
    is_integer,
)
from edgeconv.checkpoint import Checkpoint, converted
from edgeconv.checkpoint.error import naming
from edgeconv.checkpoint.tensors import TAPS, weight_and_bias
from edgeconv.files import as_text
from edgeconv.stream import Stream

ROWS = 64  # of a batch that are convolved at a time: their rings take 16 MB at C = 512, K = 31


class DepthwiseConvolution:
    """
    Depthwise convolution over time of ESPnet's transducer encoders, causal or centred.

    For a causal module, with ``x[t] = 0`` before the start::

        y[t, c] = bias[c] + sum over k of weight[c, 0, k] * x[t - (K - 1) + k, c]

    in float32, one fused multiply-add for each tap, in ascending order of k. Else the window is
    centred, ``x[t - (K - 1) // 2 + k, c]``, with zeros beyond both ends.

    Parameters
    ----------
    size : int
        Half the number of channels: ESPnet's module convolves ``size + size`` channels.
    kernel_size : int
        Number of taps K, odd.
    causal : bool
        Whether an output depends on no later frame.
    rng : numpy.random.Generator or int, optional
        Where the initial weights come from: uniform in +-1/sqrt(K), as PyTorch draws them.

    Raises
    ------
    ValueError
        If `kernel_size` is not a positive odd integer below 4096, or `size` not a positive integer.

    Notes
    -----
    A module never changes, and any number of streams and threads may share it. Every way to run
    it gives the same bits: offline or streaming, any chunks, batch, memory layout and CPU.

    References
    ----------
    ``espnet2.asr_transducer.encoder.modules.convolution.DepthwiseConvolution``, ESPnet 202511.

    Examples
    --------
    >>> conv = DepthwiseConvolution(size=64, kernel_size=3)
    >>> y, _ = conv(np.random.rand(32, 10, 128))
    >>> y.shape
    (32, 10, 128)
    """

    def __init__(
        self,
        size: int,
        kernel_size: int,
        causal: bool = False,
        *,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        if not is_integer(size) or size < 1:
            raise ValueError(f"`size` must be a positive integer, got {described(size)}")
        if not is_integer(kernel_size) or kernel_size not in range(1, TAPS, 2):
            raise ValueError(
                f"`kernel_size` must be a positive odd integer below {TAPS}, got "
                f"{described(kernel_size)}"
            )
        is_seed = is_integer(rng) and rng >= 0
        if not (rng is None or is_seed or isinstance(rng, np.random.Generator)):
            raise TypeError(
                "`rng` must be None, a numpy.random.Generator or a non-negative integer, got "
                f"{described(rng)}"
            )
        generator = np.random.default_rng(rng)
        bound = 1 / math.sqrt(kernel_size)
        weight = generator.uniform(-bound, bound, (2 * int(size), 1, int(kernel_size)))
        bias = generator.uniform(-bound, bound, 2 * int(size))
        self._set(weight.astype(np.float32), bias.astype(np.float32), causal, "")

    def _set(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        causal: bool,
        origin: str,
        source: str | None = None,
    ) -> None:
        if not isinstance(causal, bool | np.bool_):
            raise TypeError(f"`causal` must be a bool, got {described(causal)}")
        self._weight = _frozen(weight)
        self._bias = _frozen(bias)
        self._causal = bool(causal)
        self._origin = origin
        self._source = source

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], prefix: str = "", *, causal: bool
    ) -> DepthwiseConvolution:
        """
        Take a module's weights out of a state dict.

        Parameters
        ----------
        state : mapping of str to array
            What `read_checkpoint` returns, or NumPy arrays or CPU tensors of PyTorch by name. The
            values are copied; float16 and float64 become float32.
        prefix : str
            The module's name, such as ``encoder.encoders.blocks.0.depthwise_conv_mod``.
        causal : bool
            A state dict does not tell. ESPnet sets it from its configuration's
            ``encoder_conf.main_conf.dynamic_chunk_training``.

        Raises
        ------
        CheckpointError
            If there is no such convolution, or its tensors do not make one.
        TypeError
            If an argument is of the wrong kind.
        """
        conv = cls.__new__(cls)
        origin, source = "", None
        if isinstance(state, Checkpoint):
            source = state._absolute
            origin = f"from {state.path}, prefix {prefix!r}"
            stated = converted.causality(state).get(prefix, causal)
            if stated != causal:
                with naming(state.path, state.format):
                    raise converted.contradiction(prefix, stated)
        conv._set(*weight_and_bias(state, prefix), causal, origin, source)
        return conv

    @property
    def size(self) -> int:
        """Half the number of channels."""
        return self.channels // 2

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return len(self._bias)

    @property
    def kernel_size(self) -> int:
        """Number of taps K."""
        return int(self._weight.shape[2])

    @property
    def causal(self) -> bool:
        """Whether an output depends on no later frame."""
        return self._causal

    @property
    def lorder(self) -> int:
        """Frames of left context, K - 1, of a causal module; else 0."""
        return self.kernel_size - 1 if self._causal else 0

    @property
    def weight(self) -> NDArray[np.float32]:
        """The weight (C, 1, K), float32, read-only."""
        return self._weight

    @property
    def bias(self) -> NDArray[np.float32]:
        """The bias (C,), float32, read-only."""
        return self._bias

    @functools.cached_property
    def _taps(self) -> NDArray[np.float32]:
        """Weight and bias in the kernels' layout, packed when first needed."""
        from edgeconv import layout  # imports Numba: what only moves weights does without

        return layout.pack_taps(self._weight, self._bias)

    @functools.cached_property
    def _fingerprint(self) -> str:
        """SHA-256 of weight and bias, little-endian."""
        arrays = (self._weight.astype("<f4"), self._bias.astype("<f4"))
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def __call__(
        self,
        x: NDArray[np.floating[Any]],
        mask: NDArray[np.bool_] | None = None,
        cache: NDArray[np.floating[Any]] | None = None,
        *,
        lengths: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """
        Convolve whole signals, or the next chunk of each.

        Parameters
        ----------
        x : ndarray of floats, (B, T, C)
            Computed in float32, never written to.
        mask : ndarray of bool, (B, T) or (1, T), optional
            True where a frame is to be ignored: it counts as zeros, whatever it holds.
        cache : ndarray of floats, (B, C, K - 1), optional
            Only for a causal module: the frames before `x`, oldest first. None means the start
            of a signal.
        lengths : integers from 0 to T, (B,), optional
            Row b has only ``lengths[b]`` frames; what follows is padding that counts as the end
            of the signal, whatever it holds. Not together with `mask`.

        Returns
        -------
        y : ndarray, float32, (B, T, C)
            With `lengths`, zeros beyond each row's own.
        cache : ndarray, float32, (B, C, K - 1), or None
            Each row's last K - 1 frames, for the next call; None if not causal.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described.

        Notes
        -----
        Where ESPnet's module returns the cache that it was given, None included, this one always
        returns the frames, so that the loop ``y, cache = conv(chunk, cache=cache)`` streams from
        ``cache = None`` on.
        """
        check_shape("x", float_array("x", x), ("B", "T", self.channels), self)
        batch_size = len(x)
        cache_shape = batch_size, self.channels, self.kernel_size - 1
        if cache is not None:
            if not self._causal:
                raise ValueError(
                    f"`cache` must be None for {self}, which is not causal: its chunks lack the "
                    "frames that follow; push them through `conv.stream()` instead"
                )
            cache = check_cache(cache, cache_shape, self)
        if mask is not None:
            if lengths is not None:
                raise ValueError(
                    "`mask` and `lengths` must not both be given: both say what to ignore"
                )
            mask = _checked_mask(mask, x.shape[:2])
        valid = None if lengths is None else check_lengths(lengths, batch_size, x.shape[1])
        # Zeros of the system's, which nothing has to write.
        y = np.empty(x.shape, np.float32) if valid is None else np.zeros(x.shape, np.float32)
        latest = np.empty(cache_shape, np.float32) if self._causal else None
        for row in range(0, batch_size, ROWS):
            rows = slice(row, row + ROWS)
            stream = Stream(self, len(x[rows]))
            if cache is not None:
                stream.cache = cache[rows]
            own_lengths = None if valid is None else valid[rows]
            own_mask = None if mask is None else mask[rows]
            stream._run_whole(x[rows], y[rows], own_lengths, own_mask)
            if latest is not None:
                latest[rows] = stream.cache
        return y, latest

    forward = __call__

    def stream(self, batch_size: int | None = None) -> Stream:
        """
        Start a signal that comes frame by frame or in chunks.

        Parameters
        ----------
        batch_size : int, optional
            Number of signals that run in step. Without it there is one, and frames and chunks
            have no batch dimension.

        Returns
        -------
        Stream
            All of its code is compiled: no later call waits for a compiler.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` is neither None nor a positive integer.
        """
        return Stream(self, batch_size)

    def state_dict(self) -> dict[str, NDArray[np.float32]]:
        """Return the weight and bias under the names that PyTorch gives them."""
        return {"conv.weight": self._weight, "conv.bias": self._bias}

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write a converted checkpoint with this module alone, prefix ``''``, as `edgeconv.save` does.

        Parameters
        ----------
        path : str or path-like
            Exactly this file is written, in one step: whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written; a file that was there is then as it was.
        ValueError
            If it is the file that the module was loaded from.
        """
        check_target(path, [self])
        converted.write(path, {"": self}, {"": digest.of_module(self)})

    def __reduce__(self) -> tuple[Any, ...]:
        # The packed taps stay behind: their layout belongs to this CPU.
        parts = self._weight, self._bias, self._causal, self._origin, self._source
        return _rebuilt, (type(self), *parts)

    def __repr__(self) -> str:
        geometry = f"size={self.size}, kernel_size={self.kernel_size}, causal={self.causal}"
        return " ".join(filter(None, [f"{type(self).__name__}({geometry})", self._origin]))


def _rebuilt(
    cls: type[DepthwiseConvolution],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    causal: bool,
    origin: str,
    source: str | None,
) -> DepthwiseConvolution:
    conv = cls.__new__(cls)
    conv._set(weight, bias, causal, origin, source)
    return conv


def check_target(path: str | os.PathLike[str], modules: Iterable[DepthwiseConvolution]) -> None:
    """Raise a ValueError if a file to write is one that a module was loaded from."""
    target = Path(as_text("path", path))
    for source in {module._source for module in modules} - {None}:
        if target.exists() and Path(str(source)).exists() and target.samefile(str(source)):
            raise ValueError(
                f"`path` must be another file than the one that the weights come from, got {path!r}"
            )


def _frozen(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy an array into memory that nobody can make writable."""
    return np.frombuffer(array.tobytes(), np.float32).reshape(array.shape)


def _checked_mask(mask: object, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask as (B, T); a TypeError or ValueError unless it is one for such signals."""
    if not is_array(mask) or mask.dtype != np.bool_:
        raise TypeError(
            "`mask` must be a Boolean NumPy array that is True where a frame is to be ignored, "
            f"got {described(mask)}"
        )
    if mask.shape not in (shape, (1, shape[1])):
        raise ValueError(f"`mask` must have shape (B, T) = {shape} or (1, T), got {mask.shape}")
    return np.broadcast_to(mask, shape)
