"""What the blocks have in common: their options, and how they find their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from edgeconv.checkpoint import CheckpointError
from edgeconv.layers import (
    ConvolutionalSpatialGatingUnit,
    FeedForward,
    Layer,
    Linear,
    Norm,
    RelPositionMultiHeadedAttention,
)
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Geometry

HALF, ONE = np.float32(0.5), np.float32(1)


class BlockOptions(NamedTuple):
    """What a configuration decides about a block, and a state dict does not tell."""

    causal: bool
    activation: Activation  # of the feed-forward layers
    convolution_activation: Activation  # of a Conformer's convolution
    norm: Mapping[str, Any]  # kind, eps and partial, as `Norm.from_state_dict` takes them
    convolution_norm: Mapping[str, Any]  # of the convolution or the spatial gating unit


class Block(Layer):
    """A block: layers of ESPnet's names, of which some have a memory."""

    chunked = True
    norms: tuple[str, ...] = ()

    def __init__(self, state: Mapping[str, Any], prefix: str, options: BlockOptions) -> None:
        from edgeconv.kernels import pointwise

        self._add = pointwise.kernel(pointwise.add)
        self._state, self._prefix, self._options = state, prefix, options
        attention = RelPositionMultiHeadedAttention.from_state_dict(state, f"{prefix}.self_att")
        self.input_size = self.output_size = attention.input_size
        self._attention = attention
        # What a configuration may state as well, by the names that it has there.
        self.sizes = {"hidden_size": self.input_size, "heads": attention.n_heads}
        self._norms = {
            name: Norm.from_state_dict(
                state, f"{prefix}.{name}", size=self.input_size, **options.norm
            )
            for name in self.norms
        }
        self._layers: dict[str, Layer] = {"self_att": self._attention}
        self._build()
        del self._state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], prefix: str, options: BlockOptions) -> Block:
        """Take a block out of a state dict."""
        return cls(state, prefix, options)

    def _build(self) -> None:
        """Make the layers beside attention and norms."""
        raise NotImplementedError  # each kind of block has its own

    def _feed_forwards(self) -> Iterator[FeedForward]:
        """Yield the one before the other layers and the one behind them."""
        for name in (f"{self._prefix}.feed_forward_macaron", f"{self._prefix}.feed_forward"):
            layer = FeedForward.from_state_dict(self._state, name, self._options.activation)
            self._check(name, layer.input_size, self.input_size)
            yield layer

    def _linear(self, name: str, n_outputs: int, n_inputs: int) -> Linear:
        return Linear.from_state_dict(self._state, f"{self._prefix}.{name}", (n_outputs, n_inputs))

    def _check(self, name: str, width: int, expected: int) -> None:
        if width != expected:
            raise CheckpointError(f"{name} must be of width {expected}", str(width))

    def _gating(self) -> ConvolutionalSpatialGatingUnit:
        norm, causal = dict(self._options.convolution_norm), self._options.causal
        return ConvolutionalSpatialGatingUnit.from_state_dict(
            self._state, f"{self._prefix}.conv_mod", norm.pop("kind"), causal=causal, **norm
        )

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        memories = {name: layer._memory(geometry) for name, layer in self._layers.items()}
        return {name: memory for name, memory in memories.items() if memory}

    def _normed(self, name: str, x: Array) -> Array:
        return self._norms[name]._run(x, {})

    def _half_step(self, x: Array, layer: FeedForward, norm: str) -> Array:
        """Return x and half of a feed-forward layer's output."""
        y = layer._run(self._normed(norm, x), {})
        self._add(x, y, HALF)
        return y
