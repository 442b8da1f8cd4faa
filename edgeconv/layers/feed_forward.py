"""The position-wise feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Layer
from edgeconv.layers.norm import Norm
from edgeconv.layers.parameters import Weights


class FeedForward(Layer):
    """
    ESPnet's ``PositionwiseFeedForward``: ``W2 activation(W1 x + b1) + b2``.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.w_1`` and ``prefix.w_2``.
    prefix : str
        The layer's name.
    activation : Activation or str
        Between the two.
    norm : Norm, optional
        Of the inputs.
    factor : float
        Of the outputs, where a block adds them to something.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        prefix: str,
        activation: Activation | str = "swish",
        *,
        norm: Norm | None = None,
        factor: float = 1.0,
    ) -> None:
        if isinstance(activation, str):
            activation = Activation(activation)
        self._expand = Weights(
            state, f"{prefix}.w_1", shape=("H", "D"), norm=norm, activation=activation
        )
        shape = self._expand.n_inputs, self._expand.n_outputs
        self._contract = Weights(state, f"{prefix}.w_2", shape=shape, factor=factor)
        self.input_size = self.output_size = self._expand.n_inputs
        self.linear_size = self._expand.n_outputs

    def _run(self, x: Array, memory: dict[str, Any], **target: Array) -> Array:
        return self._contract.rows(self._expand.rows(x), **target)
