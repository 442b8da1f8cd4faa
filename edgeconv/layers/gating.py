"""The convolutional spatial gating unit of Branchformer and E-Branchformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.layer import Array, Geometry, Layer, convolution_memory
from edgeconv.layers.norm import Norm


class ConvolutionalSpatialGatingUnit(Layer):
    """
    ESPnet's ``ConvolutionalSpatialGatingUnit``: ``r * convolution(norm(g))`` of a frame's halves.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.conv`` and ``prefix.norm``.
    prefix : str
        The module's name.
    norm : str
        The kind of the norm.
    causal : bool
        Whether the convolution sees no later frame.
    **options
        `eps` and `partial`, as `Norm` takes them.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        prefix: str,
        norm: str = "layer_norm",
        *,
        causal: bool,
        **options: float | None,
    ) -> None:
        from edgeconv.kernels import pointwise

        self._multiply = pointwise.kernel(pointwise.multiply)
        self._conv = DepthwiseConvolution.from_state_dict(state, prefix, causal=causal)
        self.input_size, self.output_size = 2 * self._conv.channels, self._conv.channels
        self._norm = Norm(state, f"{prefix}.norm", norm, size=self.output_size, **options)
        self.kernel_size = self._conv.kernel_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {"conv": convolution_memory(self._conv, geometry)}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        gate: Array = memory["conv"].process(self._norm._run(x, {}))
        self._multiply(x, gate)
        return gate
