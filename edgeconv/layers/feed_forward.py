"""The position-wise feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Layer
from edgeconv.layers.linear import Linear


class FeedForward(Layer):
    """
    ESPnet's ``PositionwiseFeedForward``: ``W2 activation(W1 x + b1) + b2``.

    Parameters
    ----------
    expand, contract : Linear
        The two dense layers, ``w_1`` and ``w_2``.
    activation : Activation
        The function between them.
    """

    def __init__(self, expand: Linear, contract: Linear, activation: Activation) -> None:
        self._expand, self._contract, self._activation = expand, contract, activation
        self.input_size, self.output_size = expand.input_size, contract.output_size
        self.linear_size = expand.output_size

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], prefix: str, activation: Activation | str = "swish"
    ) -> FeedForward:
        """Take ``prefix.w_1`` and ``prefix.w_2`` out of a state dict."""
        expand = Linear.from_state_dict(state, f"{prefix}.w_1")
        shape = expand.input_size, expand.output_size
        contract = Linear.from_state_dict(state, f"{prefix}.w_2", shape)
        if isinstance(activation, str):
            activation = Activation(activation)
        return cls(expand, contract, activation)

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        hidden = self._activation(self._expand._run(x, {}))
        return self._contract._run(hidden, {})
