"""The Branchformer block."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeconv.blocks.block import Block
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array


class Branchformer(Block):
    """
    ESPnet's ``Branchformer``: attention beside a gated convolution, merged by a dense layer.

    The second branch is ``W2 gating(GELU(W1 x))``.
    """

    def _build(self) -> None:
        gating, size = self._gating(), self.input_size
        beside = {"norm": self._norm("norm_mlp"), "activation": Activation("gelu")}
        self._expand = self._weights("channel_proj1.0", gating.input_size, size, **beside)
        self._contract = self._weights("channel_proj2", size, gating.output_size)
        self._merge = self._weights("merge_proj", size, 2 * size)
        self._conv = gating
        self.sizes["linear_size"] = self._expand.n_outputs
        self.sizes["conv_mod_kernel_size"] = gating.kernel_size

    def _branches(self, x: Array, memory: dict[str, Any]) -> Array:
        """Return both branches side by side, (T, 2 * D)."""
        both = np.empty((len(x), 2 * self.input_size), np.float32)
        self._attention._run(x, memory["self_att"], out=both[:, : self.input_size])
        gated = self._conv._run(self._expand.rows(x), memory["conv_mod"])
        self._contract.rows(gated, both[:, self.input_size :])
        return both

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        y = self._merge.rows(self._branches(x, memory), added=x)
        return self._final._run(y, {})
