"""The Conformer block."""

from __future__ import annotations

from typing import Any

from edgeconv.blocks.block import Block
from edgeconv.layers import ConformerConvolution
from edgeconv.layers.layer import Array


class Conformer(Block):
    """
    ESPnet's ``Conformer``: half a feed-forward, attention, convolution, half a feed-forward.

    Each behind a norm of its own and added to what went in; a norm ends the block.
    """

    def _build(self) -> None:
        options = self._options
        eps = options.convolution_norm["eps"]
        self._macaron = self._half_step("feed_forward_macaron", "norm_macaron")
        self._forward = self._half_step("feed_forward", "norm_feed_forward")
        conv = ConformerConvolution(
            self._state,
            f"{self._prefix}.conv_mod",
            options.convolution_activation,
            causal=options.causal,
            eps=1e-5 if eps is None else eps,
            norm=self._norm("norm_conv"),
        )
        self._check(f"{self._prefix}.conv_mod", conv.input_size, self.input_size)
        self._conv: ConformerConvolution = conv
        self.sizes["linear_size"] = self._forward.linear_size
        self.sizes["conv_mod_kernel_size"] = conv.kernel_size

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        x = self._macaron._run(x, {}, added=x)
        x = self._attention._run(x, memory["self_att"], added=x)
        x = self._conv._run(x, memory["conv_mod"], added=x)
        return self._final._run(self._forward._run(x, {}, added=x), {})
