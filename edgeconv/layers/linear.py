"""A dense layer, or a convolution with a kernel of one frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeconv.layers.layer import Array, Layer
from edgeconv.layers.parameters import Weights


class Linear(Layer):
    """
    PyTorch's ``Linear``, or ``Conv1d`` with ``kernel_size=1``.

    ``y[t, n] = bias[n] + sum over k of weight[n, k] * x[t, k]``: a chain of fused multiply-adds in
    ascending order of k. With 8-bit weights the sum is of the integers, and is scaled at its end.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.weight`` (N, K) or (N, K, 1) and, unless it is zero, ``prefix.bias`` (N,).
        The weight may be int8, with a float32 ``prefix.weight_scale`` (N,).
    prefix : str
        The layer's name.
    shape : tuple
        N and K, or a letter for what may be any.
    """

    def __init__(
        self, state: Mapping[str, Any], prefix: str, shape: tuple[Any, Any] = ("N", "K")
    ) -> None:
        self._weights = Weights(state, prefix, shape=shape)
        self.input_size, self.output_size = self._weights.n_inputs, self._weights.n_outputs

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        return self._weights.rows(x)
