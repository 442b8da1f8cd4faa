"""The depthwise convolution of ESPnet's streaming encoders: weights, geometry, whole signals."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeconv import arguments
from edgeconv.arguments import described, is_integer
from edgeconv.checkpoint import CheckpointError
from edgeconv.state_dict import weight_and_bias

if TYPE_CHECKING:
    from edgeconv.stream import Stream

Floats: TypeAlias = NDArray[np.floating[Any]]
Frames: TypeAlias = NDArray[np.float32]
Seed: TypeAlias = np.random.Generator | int | None
# Methods that run import what imports Numba: who only moves weights does not wait for it.
PROCESS = os.getpid()  # its forked children run serially: OpenMP kills them at a parallel loop


class DepthwiseConvolution:
    """
    Depthwise convolution over time of ESPnet's transducer encoders, causal or centred.

    For a causal module, with ``x[t] = 0`` before the start::

        y[t, c] = bias[c] + sum over k of weight[c, 0, k] * x[t - (K - 1) + k, c]

    in float32, one fused multiply-add for each tap, in ascending order of k. Else the window is
    centred, ``x[t - (K - 1) // 2 + k, c]``, with zeros beyond both ends. Stride 1, dilation 1 and
    groups = C are assumed: a state dict does not tell.

    Parameters
    ----------
    size : int
        Half the number of channels: ESPnet's module convolves ``size + size`` channels.
    kernel_size : int
        Number of taps K, odd; a ValueError unless it is.
    causal : bool
        Whether an output depends on no later frame.
    rng : numpy.random.Generator or int, optional
        Where the initial weights come from: uniform in +-1/sqrt(K), as PyTorch draws them.

    Attributes
    ----------
    size, channels, kernel_size, causal, weight, bias
        Geometry and read-only arrays, (C, 1, K) and (C,); ``size = channels // 2``.
    lorder, latency : int
        Frames of left context, K - 1, and 0 for a causal module; else 0 and (K - 1) // 2, by which
        a stream's output lags its input.

    Notes
    -----
    Any number of streams and threads may share a module, which never changes. Every way to run it
    gives the same bits: offline or streaming, any chunks, batch, memory layout and CPU. Source:
    ``espnet2.asr_transducer.encoder.modules.convolution.DepthwiseConvolution``, ESPnet 202511.
    """

    size: int
    channels: int
    kernel_size: int
    causal: bool
    weight: Frames
    bias: Frames
    lorder: int
    latency: int
    _origin: str

    def __init__(
        self, size: int, kernel_size: int, causal: bool = False, *, rng: Seed = None
    ) -> None:
        for name, value, kind in (("size", size, ""), ("kernel_size", kernel_size, "odd ")):
            if not is_integer(value) or value < 1 or (kind and value % 2 == 0):
                wanted = f"a positive {kind}integer"
                raise ValueError(f"`{name}` must be {wanted}, got {described(value)}")
        bound = 1 / math.sqrt(kernel_size)
        channels, generator = 2 * int(size), np.random.default_rng(rng)
        weight = generator.uniform(-bound, bound, (channels, 1, int(kernel_size)))
        bias = generator.uniform(-bound, bound, channels)
        self._set(weight.astype(np.float32), bias.astype(np.float32), causal, "")

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], prefix: str = "", *, causal: bool
    ) -> DepthwiseConvolution:
        """
        Take the weights of the module named `prefix` out of a state dict.

        That is what `read_checkpoint` returns, or NumPy arrays or CPU tensors of PyTorch by name: a
        weight (C, 1, K) and, unless it is zero, a bias (C,). A CheckpointError says if not. Stride
        1, dilation 1 and groups = C are assumed. `causal` is what ESPnet's configuration has in
        ``encoder_conf.main_conf.dynamic_chunk_training``. If it is false, K must be odd.
        """
        conv = cls.__new__(cls)
        conv._set(*weight_and_bias(state, prefix), causal, prefix)
        return conv

    def _set(self, weight: Frames, bias: Frames, causal: bool, origin: str) -> None:
        if not isinstance(causal, bool | np.bool_):
            raise TypeError(f"`causal` must be a bool, got {described(causal)}")
        if not causal and weight.shape[2] % 2 == 0:
            raise CheckpointError(
                f"{origin!r}: a convolution that is not causal must have an odd number of taps, "
                f"found {weight.shape[2]}; pass `causal=True` if it was padded on the left only"
            )
        channels, _, taps = weight.shape
        lorder, latency = (taps - 1, 0) if causal else (0, (taps - 1) // 2)
        weight.flags.writeable = bias.flags.writeable = False
        vars(self).update(weight=weight, bias=bias, channels=channels, size=channels // 2)
        vars(self).update(kernel_size=taps, causal=bool(causal), lorder=lorder, latency=latency)
        vars(self)["_origin"] = origin

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`{name}` cannot be set: a module never changes")

    @functools.cached_property
    def _digest(self) -> str:
        """SHA-256 of geometry, weight and bias."""
        geometry = f"{self.weight.shape} {self.causal}".encode()
        arrays = (array.astype("<f4").tobytes() for array in (self.weight, self.bias))
        return hashlib.sha256(b"".join([geometry, *arrays])).hexdigest()

    @functools.cached_property
    def _taps(self) -> Frames:
        """Weight and bias in the kernels' layout."""
        from edgeconv.kernels import ring, vectors
        from edgeconv.stream import widened

        missing = max(0, vectors.LANES - self.channels)
        weight, bias = (widened(array, missing, axis=0) for array in (self.weight, self.bias))
        return ring.pack_taps(weight, bias)

    def __call__(
        self,
        x: Floats,
        mask: NDArray[np.bool_] | None = None,
        cache: Floats | None = None,
        *,
        lengths: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    ) -> tuple[Frames, Frames | None]:
        """
        Convolve whole signals, or the next chunk of each.

        Parameters
        ----------
        x : ndarray of floats, (B, T, C)
            Computed in float32.
        mask : ndarray of bool, (B, T) or (1, T), optional
            True where a frame is to be ignored: it counts as zeros, whatever it holds.
        cache : ndarray of floats, (B, C, K - 1), optional
            If causal: the frames before `x`, oldest first. None means the start of a signal.
        lengths : integers from 0 to T, (B,), optional
            Row b ends after ``lengths[b]`` frames, whatever follows. Not together with `mask`.

        Returns
        -------
        y : ndarray, float32, (B, T, C)
            With `lengths`, zeros beyond each row's own.
        cache : ndarray, float32, (B, C, K - 1), or None
            Each row's last K - 1 frames, for the next call; None if not causal. (ESPnet's module
            returns None if it was given None, and the next chunk lacks them.)
        """
        arguments.floats("x", x, ("B", "T", self.channels), self)
        batch_size, n_frames, channels = x.shape
        if cache is not None:
            if not self.causal:
                raise ValueError(f"`cache` must be None for {self}: push chunks through `stream()`")
            shape = batch_size, channels, self.kernel_size - 1
            cache = arguments.float32("cache", cache, shape, self)
        if mask is not None:
            if lengths is not None:
                raise ValueError("`mask` and `lengths` must not both be given")
            if not arguments.is_array(mask) or mask.dtype != np.bool_:
                wanted = "a Boolean NumPy array that is True where a frame is to be ignored"
                raise TypeError(f"`mask` must be {wanted}, got {described(mask)}")
            if mask.shape not in ((batch_size, n_frames), (1, n_frames)):
                wanted = f"have shape (B, T) = {x.shape[:2]} or (1, T)"
                raise ValueError(f"`mask` must {wanted}, got {mask.shape}")
            mask = np.broadcast_to(mask, x.shape[:2])
        valid = np.full(batch_size, n_frames)
        if lengths is not None:
            valid = arguments.integers("lengths", lengths, 0, n_frames)
            arguments.check_shape("lengths", valid, (batch_size,), self)

        from edgeconv.stream import convolve

        y, latest = convolve(self, x, mask, cache, valid, serial=os.getpid() != PROCESS)
        return y, latest if self.causal else None

    forward = __call__

    def stream(self, batch_size: int | None = None) -> Stream:
        """Start a signal, or so many in step, with everything compiled that its calls need."""
        from edgeconv.stream import Stream

        return Stream(self, batch_size)

    def state_dict(self) -> dict[str, Frames]:
        """Return the weight and bias under the names that PyTorch gives them."""
        return {"conv.weight": self.weight, "conv.bias": self.bias}

    def __getstate__(self) -> tuple[Frames, Frames, bool, str]:
        # The packed taps stay behind: layout and alignment are this process's.
        return self.weight, self.bias, self.causal, self._origin

    def __setstate__(self, state: tuple[Frames, Frames, bool, str]) -> None:
        self._set(*state)

    def __repr__(self) -> str:
        width = f"channels={self.channels}" if self.channels % 2 else f"size={self.size}"
        origin = f" from {self._origin!r}" if self._origin else ""
        geometry = f"{width}, kernel_size={self.kernel_size}, causal={self.causal}"
        return f"{type(self).__name__}({geometry}){origin}"
