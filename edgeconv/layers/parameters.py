"""Parameters of layers: named tensors as float32, packed weights for the dense kernels."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint import CheckpointError
from edgeconv.convolution import PROCESS
from edgeconv.state_dict import array_of, float32_of

if TYPE_CHECKING:
    from edgeconv.layers.activation import Activation
    from edgeconv.layers.norm import Norm

Array = NDArray[np.float32]
_REMEDY = "check that configuration and checkpoint belong together, or export the model again"
_NONE = np.empty((0, 0), np.float32)
_NONE.flags.writeable = False
SCALE = "weight_scale"  # beside an int8 weight (N, ...): one float32 for each output


def tensor(state: Mapping[str, Any], name: str, shape: tuple[Any, ...]) -> Array:
    """Return a tensor of floats of `shape`, where a letter is any length, as float32."""
    return float32_of(_found(state, name, shape), name)


def _found(state: Mapping[str, Any], name: str, shape: tuple[Any, ...]) -> NDArray[Any]:
    if name not in state:
        raise CheckpointError(f"{name} must be in the checkpoint", "none", _REMEDY)
    array = array_of(state, name)
    if len(shape) == 2 and array.shape[2:] == (1,):
        array = array[..., 0]  # a convolution of one frame is a dense layer
    fits = len(array.shape) == len(shape) and all(
        isinstance(wanted, str) or wanted == n for wanted, n in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise CheckpointError(f"{name} must have shape ({wanted})", str(array.shape), _REMEDY)
    return array


def quantised(weight: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int8], Array]:
    """Return a weight (N, ...) as int8 and one symmetric scale (N,) for each output."""
    rows = np.asarray(weight, np.float32).reshape(len(weight), -1)
    scale = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
    scale[scale == 0] = 1
    integers = np.rint(rows / scale[:, None]).astype(np.int8)
    return integers.reshape(weight.shape), scale


def with_8_bits(state: Mapping[str, Any]) -> dict[str, Any]:
    """
    Quantise the dense weights of an encoder and of a joint network.

    Those are ``P.weight`` (N, K, ...) with K > 1: all but depthwise convolutions, norms and biases.
    """
    small = dict(state)
    for name, weight in state.items():
        is_dense = name.endswith(".weight") and weight.ndim > 1 and weight.shape[1] > 1
        if is_dense and not name.startswith(("decoder.", "frontend.")):
            scale = f"{name.removesuffix('weight')}{SCALE}"
            small[name], small[scale] = quantised(weight)
    return small


class Weights:
    """
    A dense layer or a convolution as the kernels run it, with what stands before and behind it.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.weight`` of floats, or of int8 with ``prefix.weight_scale`` (N,), and
        ``prefix.bias`` (N,) unless it is zero.
    prefixes : str
        Layers of the same inputs, whose outputs follow one another.
    shape : tuple
        The weights' shape, where a letter is any length.
    lines : tuple of int
        Of a convolution: how many lines of an image a line of outputs needs, and how many the next
        one is on. Its weights are moved, so that the channels, their second dimension, come last.
    norm : Norm, optional
        Of the inputs.
    activation : Activation, optional
        Of the outputs.
    factor : float
        Of the outputs, where they are added to something.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        *prefixes: str,
        shape: tuple[Any, ...],
        lines: tuple[int, int] = (1, 1),
        norm: Norm | None = None,
        activation: Activation | None = None,
        factor: float = 1.0,
    ) -> None:
        from edgeconv.kernels import dense

        weights, biases, scales = [], [], []
        for prefix in prefixes:
            name = f"{prefix}.weight"
            weight = _found(state, name, shape)
            if weight.dtype == np.int8:
                scales.append(tensor(state, f"{prefix}.{SCALE}", (len(weight),)))
            elif weight.dtype != np.float32:
                weight = float32_of(weight, name)
            zeros = {f"{prefix}.bias": np.zeros(len(weight), np.float32)}
            bias = state if f"{prefix}.bias" in state else zeros
            biases.append(tensor(bias, f"{prefix}.bias", (len(weight),)))
            if weight.ndim == 4:
                weight = np.moveaxis(weight, 1, 3)
            weights.append(weight.reshape(len(weight), -1))
        if len({weight.dtype for weight in weights}) > 1:
            raise CheckpointError(f"{', '.join(prefixes)} must all be floats, or all int8")
        # One layer is not copied: copies of the largest were the peak of loading.
        weight = np.concatenate(weights) if len(weights) > 1 else weights[0]
        self.n_outputs, self.n_inputs = weight.shape[0], weight.shape[1] // lines[0]
        self._affine = norm.affine if norm else _NONE
        before = norm.arguments if norm else (0, 0, 0)
        behind = activation.arguments if activation else (0, 0, 0)
        self._steps = np.array([(*lines, *before, *behind, factor)], dense.STEPS)
        self._steps.flags.writeable = False
        self._work, self._stride = weight.shape[1], lines[1]
        scale = np.concatenate(scales) if scales else None
        self._packed = dense.pack(weight, np.concatenate(biases), scale)
        self._eight_bits = scale is not None
        self._kernel, self._in_parallel = dense.kernel(self._eight_bits), dense.in_parallel

    def rows(self, x: Array, out: Array | None = None, *, added: Array = _NONE) -> Array:
        """
        Return the outputs of rows (T, K), (T, N): a new array or `out`, whose rows are runs.

        With `added`, (T, N), the sum of it and of `factor` times the outputs.
        """
        y = np.empty((len(x), self.n_outputs), np.float32) if out is None else out
        self._run(x[None], y[None], added)
        return y

    def convolve(self, image: Array, y: Array) -> None:
        """Write y (lines, rows, N), the convolution of an image (lines, rows, channels)."""
        line, row, number = image.strides
        shape, stride = (*y.shape[:2], self.n_inputs), self._stride
        # Of a contiguous image; as_strided takes 5 us, and in NumPy 2.4 keeps a byte of each call.
        strides = stride * line, stride * row, number
        self._run(np.ndarray(shape, np.float32, image.data, 0, strides), y, _NONE)

    def _run(self, x: Array, y: Array, added: Array) -> None:
        operands = x, y, self._packed, self._affine, added, self._steps
        if sharing.threads > 1:
            work = y.size * self._work
            if self._in_parallel(self._eight_bits, work, sharing.threads, operands):
                return
        self._kernel(*operands)


class _Sharing(threading.local):
    """How many threads the dense layers that this thread calls may use."""

    threads = 1

    @contextlib.contextmanager
    def among(self, threads: int) -> Iterator[None]:
        """Let calls inside use so many, or one in a process that was forked."""
        before, self.threads = self.threads, threads if os.getpid() == PROCESS else 1
        try:
            yield
        finally:
            self.threads = before


sharing = _Sharing()
