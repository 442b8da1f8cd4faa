"""The E-Branchformer block."""

from __future__ import annotations

from typing import Any

from edgeconv.blocks.block import ONE
from edgeconv.blocks.branchformer import Branchformer
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.layer import Array, Geometry, convolution_memory


class EBranchformer(Branchformer):
    """
    ESPnet's ``EBranchformer``: a Branchformer whose branches are convolved before they are merged.

    Half a feed-forward layer before it, and half a one behind.
    """

    norms = (
        "norm_feed_forward_macaron",
        "norm_self_att",
        "norm_mlp",
        "norm_feed_forward",
        "norm_final",
    )

    def _build(self) -> None:
        super()._build()
        self._macaron, self._forward = self._feed_forwards()
        name, causal = f"{self._prefix}.depthwise_conv_mod", self._options.causal
        self._depthwise = DepthwiseConvolution.from_state_dict(self._state, name, causal=causal)
        self._check(name, self._depthwise.channels, 2 * self.input_size)
        self.sizes["depth_conv_kernel_size"] = self._depthwise.kernel_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        depthwise = convolution_memory(self._depthwise, geometry)
        return super()._memory(geometry) | {"depthwise_conv_mod": depthwise}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        x = self._half_step(x, self._macaron, "norm_feed_forward_macaron")
        both = self._branches(x, memory)
        convolved = memory["depthwise_conv_mod"].process(both)
        self._add(both, convolved, ONE)
        y = self._merge._run(convolved, {})
        self._add(x, y, ONE)
        x = self._half_step(y, self._forward, "norm_feed_forward")
        return self._normed("norm_final", x)
