"""The convolution module of a Conformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Geometry, Layer, convolution_memory
from edgeconv.layers.linear import Linear
from edgeconv.layers.norm import Norm
from edgeconv.layers.parameters import tensor


class ConformerConvolution(Layer):
    """
    ESPnet's ``ConformerConvolution``: a gate, a convolution, a batch norm, an activation.

    ``W2 activation(norm(convolution(gate(W1 x))))``, where the gate is the first half of its input
    times the sigmoid of the second. The batch norm, of running statistics, is folded into the
    convolution's weights.

    Parameters
    ----------
    before, after : Linear
        The two dense layers.
    conv : DepthwiseConvolution
        With the batch norm in its weights.
    activation : Activation
        The function behind it.
    """

    def __init__(
        self, before: Linear, conv: DepthwiseConvolution, activation: Activation, after: Linear
    ) -> None:
        from edgeconv.kernels import pointwise

        self._before, self._after = before.weights, after.weights
        self._conv, self._activation = conv, activation
        self._gate = pointwise.kernel(pointwise.gate)
        self.input_size, self.output_size = before.input_size, after.output_size
        self.kernel_size = conv.kernel_size

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Any],
        prefix: str,
        activation: Activation | str = "swish",
        *,
        causal: bool,
        eps: float = 1e-5,
        norm: Norm | None = None,
    ) -> ConformerConvolution:
        """Take the module out of a state dict; `eps` is the batch norm's, `norm` the inputs'."""
        weight = tensor(state, f"{prefix}.depthwise_conv.weight", ("C", 1, "K"))
        channels = (size,) = (len(weight),)
        shape = 2 * size, size
        before = Linear.from_state_dict(state, f"{prefix}.pointwise_conv1", shape, norm=norm)
        after = Linear.from_state_dict(state, f"{prefix}.pointwise_conv2", (size, size))
        bias = tensor(state, f"{prefix}.depthwise_conv.bias", channels)
        names = ("weight", "bias", "running_mean", "running_var")
        factor, offset, mean, variance = (
            tensor(state, f"{prefix}.norm.{name}", channels).astype(np.float64) for name in names
        )
        factor /= np.sqrt(variance + eps)
        folded = {"weight": weight * factor[:, None, None], "bias": (bias - mean) * factor + offset}
        conv = DepthwiseConvolution.from_state_dict(folded, causal=causal)
        if isinstance(activation, str):
            activation = Activation(activation)
        return cls(before, conv, activation, after)

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {"conv": convolution_memory(self._conv, geometry)}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        return self._after.rows(self._hidden(x, memory))

    def add_to(self, x: Array, memory: dict[str, Any]) -> Array:
        """Return the sum of x and of the module's outputs."""
        return self._after.rows(self._hidden(x, memory), added=x)

    def _hidden(self, x: Array, memory: dict[str, Any]) -> Array:
        gated = np.empty((len(x), self._conv.channels), np.float32)
        self._gate(self._before.rows(x), gated)
        return self._activation(memory["conv"].process(gated))
