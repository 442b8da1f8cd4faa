"""The Branchformer block."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeconv.blocks.block import ONE, Block
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array


class Branchformer(Block):
    """
    ESPnet's ``Branchformer``: attention beside a gated convolution, merged by a dense layer.

    The second branch is ``W2 gating(GELU(W1 x))``.
    """

    norms: tuple[str, ...] = ("norm_self_att", "norm_mlp", "norm_final")

    def _build(self) -> None:
        self._gelu = Activation("gelu")
        gating, size = self._gating(), self.input_size
        self._expand = self._linear("channel_proj1.0", gating.input_size, size)
        self._contract = self._linear("channel_proj2", size, gating.output_size)
        self._merge = self._linear("merge_proj", size, 2 * size)
        self._layers["conv_mod"] = gating
        self.sizes["linear_size"] = self._expand.output_size
        self.sizes["conv_mod_kernel_size"] = gating.kernel_size

    def _branches(self, x: Array, memory: dict[str, Any]) -> Array:
        """Return both branches side by side, (T, 2 * D)."""
        both = np.empty((len(x), 2 * self.input_size), np.float32)
        normed, out = self._normed("norm_self_att", x), both[:, : self.input_size]
        self._attention.attend(normed, memory["self_att"], out)
        hidden = self._gelu(self._expand._run(self._normed("norm_mlp", x), {}))
        gated = self._layers["conv_mod"]._run(hidden, memory["conv_mod"])
        self._contract.weights.rows(gated, both[:, self.input_size :])
        return both

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        y = self._merge._run(self._branches(x, memory), {})
        self._add(x, y, ONE)
        return self._normed("norm_final", y)
