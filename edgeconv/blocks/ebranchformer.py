"""The E-Branchformer block."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeconv.blocks.branchformer import Branchformer
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.layer import Array, Geometry, convolution_memory

ONE = np.float32(1)


class EBranchformer(Branchformer):
    """
    ESPnet's ``EBranchformer``: a Branchformer whose branches are convolved before they are merged.

    Half a feed-forward layer before it, and half a one behind.
    """

    def _build(self) -> None:
        from edgeconv.kernels import pointwise

        super()._build()
        self._add = pointwise.kernel(pointwise.add)
        self._macaron = self._half_step("feed_forward_macaron", "norm_feed_forward_macaron")
        self._forward = self._half_step("feed_forward", "norm_feed_forward")
        name, causal = f"{self._prefix}.depthwise_conv_mod", self._options.causal
        self._depthwise = DepthwiseConvolution.from_state_dict(self._state, name, causal=causal)
        self._check(name, self._depthwise.channels, 2 * self.input_size)
        self.sizes["depth_conv_kernel_size"] = self._depthwise.kernel_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        depthwise = convolution_memory(self._depthwise, geometry)
        return super()._memory(geometry) | {"depthwise_conv_mod": depthwise}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        x = self._macaron._run(x, {}, added=x)
        both = self._branches(x, memory)
        convolved = memory["depthwise_conv_mod"].process(both)
        self._add(both, convolved, ONE)
        x = self._merge.rows(convolved, added=x)
        return self._final._run(self._forward._run(x, {}, added=x), {})
