"""The Conformer block."""

from __future__ import annotations

from typing import Any

from edgeconv.blocks.block import ONE, Block
from edgeconv.layers import ConformerConvolution
from edgeconv.layers.layer import Array


class Conformer(Block):
    """
    ESPnet's ``Conformer``: half a feed-forward, attention, convolution, half a feed-forward.

    Each behind a norm of its own and added to what went in; a norm ends the block.
    """

    norms = ("norm_macaron", "norm_self_att", "norm_conv", "norm_feed_forward", "norm_final")

    def _build(self) -> None:
        options = self._options
        eps = options.convolution_norm["eps"]
        self._macaron, self._forward = self._feed_forwards()
        conv = ConformerConvolution.from_state_dict(
            self._state,
            f"{self._prefix}.conv_mod",
            options.convolution_activation,
            causal=options.causal,
            eps=1e-5 if eps is None else eps,
        )
        self._check(f"{self._prefix}.conv_mod", conv.input_size, self.input_size)
        self._layers["conv_mod"] = conv
        self.sizes["linear_size"] = self._forward.linear_size
        self.sizes["conv_mod_kernel_size"] = conv.kernel_size

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        x = self._half_step(x, self._macaron, "norm_macaron")
        for name, norm in (("self_att", "norm_self_att"), ("conv_mod", "norm_conv")):
            y = self._layers[name]._run(self._normed(norm, x), memory[name])
            self._add(x, y, ONE)
            x = y
        x = self._half_step(x, self._forward, "norm_feed_forward")
        return self._normed("norm_final", x)
