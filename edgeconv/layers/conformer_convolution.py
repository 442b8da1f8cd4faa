"""The convolution module of a Conformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Geometry, Layer, convolution_memory
from edgeconv.layers.norm import Norm
from edgeconv.layers.parameters import Weights, tensor


class ConformerConvolution(Layer):
    """
    ESPnet's ``ConformerConvolution``: a gate, a convolution, a batch norm, an activation.

    ``W2 activation(norm(convolution(gate(W1 x))))``, where the gate is the first half of its input
    times the sigmoid of the second. The batch norm, of running statistics, is folded into the
    convolution's weights.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.pointwise_conv1`` and so on.
    prefix : str
        The module's name.
    activation : Activation or str
        Behind the convolution.
    causal : bool
        Whether the convolution sees no later frame.
    eps : float
        The batch norm's.
    norm : Norm, optional
        Of the inputs.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        prefix: str,
        activation: Activation | str = "swish",
        *,
        causal: bool,
        eps: float = 1e-5,
        norm: Norm | None = None,
    ) -> None:
        from edgeconv.kernels import pointwise

        self._gate = pointwise.kernel(pointwise.gate)
        weight = tensor(state, f"{prefix}.depthwise_conv.weight", ("C", 1, "K"))
        channels = (size,) = (len(weight),)
        shape = 2 * size, size
        self._before = Weights(state, f"{prefix}.pointwise_conv1", shape=shape, norm=norm)
        self._after = Weights(state, f"{prefix}.pointwise_conv2", shape=(size, size))
        bias = tensor(state, f"{prefix}.depthwise_conv.bias", channels)
        names = ("weight", "bias", "running_mean", "running_var")
        factor, offset, mean, variance = (
            tensor(state, f"{prefix}.norm.{name}", channels).astype(np.float64) for name in names
        )
        factor /= np.sqrt(variance + eps)
        folded = {"weight": weight * factor[:, None, None], "bias": (bias - mean) * factor + offset}
        self._conv = DepthwiseConvolution.from_state_dict(folded, causal=causal)
        if isinstance(activation, str):
            activation = Activation(activation)
        self._activation = activation
        self.input_size = self.output_size = size
        self.kernel_size = self._conv.kernel_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {"conv": convolution_memory(self._conv, geometry)}

    def _run(self, x: Array, memory: dict[str, Any], **target: Array) -> Array:
        gated = np.empty((len(x), self._conv.channels), np.float32)
        self._gate(self._before.rows(x), gated)
        return self._after.rows(self._activation(memory["conv"].process(gated)), **target)
