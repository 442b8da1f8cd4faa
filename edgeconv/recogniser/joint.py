"""The joint network: how likely each token is, from what was heard and what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeconv.checkpoint import CheckpointError
from edgeconv.checkpoint.error import check_choice, section
from edgeconv.layers.activation import ACTIVATIONS, Activation
from edgeconv.layers.layer import Array
from edgeconv.layers.parameters import Weights


class Joint:
    """
    ESPnet's ``JointNetwork``: ``lin_out(activation(lin_enc(heard) + lin_dec(said)))``.

    The two inner layers take their inputs once, whatever they are combined with later.
    """

    def __init__(self, state: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
        from edgeconv.kernels import pointwise

        conf = section(configuration, "joint_network_conf")
        kind = conf.get("joint_activation_type", conf.get("joint_act_type", "tanh"))
        check_choice("joint_activation_type", kind, ACTIVATIONS)
        self._activation = Activation(kind, conf)
        self._enc, self._dec, self._out = (
            Weights(state, f"joint_network.{name}", shape=("N", "K"))
            for name in ("lin_enc", "lin_dec", "lin_out")
        )
        sizes = [self._enc.n_outputs, self._dec.n_outputs, self._out.n_inputs]
        if len(set(sizes)) > 1:
            raise CheckpointError("the joint network must be of one width", str(sizes))
        self._log_softmax = pointwise.kernel(pointwise.log_softmax_rows)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Widths of what is heard and said, and number of tokens."""
        return self._enc.n_inputs, self._dec.n_inputs, self._out.n_outputs

    def heard(self, encoded: Array) -> Array:
        """Return what encoder frames (T, D) add."""
        return self._enc.rows(encoded)

    def said(self, decoded: Array) -> Array:
        """Return what the decoder's outputs (n, D) add."""
        return self._dec.rows(decoded)

    def log_probabilities(self, heard: Array, said: Array) -> Array:
        """Return the logarithm of each token's probability, (n, V), for n pairs, or 1 and n."""
        logits = self._out.rows(self._activation(heard + said))
        y = np.empty_like(logits)
        self._log_softmax(logits, y)
        return y
