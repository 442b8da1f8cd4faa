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
    conv : DepthwiseConvolution
        Over half the width of a frame.
    norm : Norm
        Of the same width.
    """

    def __init__(self, conv: DepthwiseConvolution, norm: Norm) -> None:
        from edgeconv.kernels import pointwise

        self._multiply = pointwise.kernel(pointwise.multiply)
        self._conv, self._norm = conv, norm
        self.input_size, self.output_size = 2 * conv.channels, conv.channels
        self.kernel_size = conv.kernel_size

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Any],
        prefix: str,
        norm: str = "layer_norm",
        *,
        causal: bool,
        eps: float | None = None,
        partial: float | None = None,
    ) -> ConvolutionalSpatialGatingUnit:
        """Take ``prefix.conv`` and ``prefix.norm`` out of a state dict."""
        conv = DepthwiseConvolution.from_state_dict(state, prefix, causal=causal)
        gate = Norm.from_state_dict(
            state, f"{prefix}.norm", norm, size=conv.channels, eps=eps, partial=partial
        )
        return cls(conv, gate)

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {"conv": convolution_memory(self._conv, geometry)}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        gate: Array = memory["conv"].process(self._norm._run(x, {}))
        self._multiply(x, gate)
        return gate
