"""The position-wise feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Layer
from edgeconv.layers.linear import Linear
from edgeconv.layers.norm import Norm


class FeedForward(Layer):
    """
    ESPnet's ``PositionwiseFeedForward``: ``W2 activation(W1 x + b1) + b2``.

    Parameters
    ----------
    expand, contract : Linear
        The two dense layers, ``w_1`` with the activation, and with the norm if there is one, and
        ``w_2``.
    """

    def __init__(self, expand: Linear, contract: Linear) -> None:
        self._expand, self._contract = expand.weights, contract.weights
        self.input_size, self.output_size = expand.input_size, contract.output_size
        self.linear_size = expand.output_size

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Any],
        prefix: str,
        activation: Activation | str = "swish",
        *,
        norm: Norm | None = None,
        factor: float = 1.0,
    ) -> FeedForward:
        """
        Take ``prefix.w_1`` and ``prefix.w_2`` out of a state dict.

        `norm` is that of the inputs; `factor` counts in `add_to` alone.
        """
        if isinstance(activation, str):
            activation = Activation(activation)
        expand = Linear.from_state_dict(state, f"{prefix}.w_1", norm=norm, activation=activation)
        shape = expand.input_size, expand.output_size
        contract = Linear.from_state_dict(state, f"{prefix}.w_2", shape, factor=factor)
        return cls(expand, contract)

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        return self._contract.rows(self._expand.rows(x))

    def add_to(self, x: Array) -> Array:
        """Return the sum of x and of `factor` times the outputs."""
        return self._contract.rows(self._expand.rows(x), added=x)
