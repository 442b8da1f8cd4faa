"""What the blocks have in common: their options, and how they find their layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeconv.checkpoint import CheckpointError
from edgeconv.layers import (
    ConvolutionalSpatialGatingUnit,
    FeedForward,
    Layer,
    Norm,
    RelPositionMultiHeadedAttention,
)
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Geometry
from edgeconv.layers.parameters import Weights, tensor


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
    _conv: Layer  # ESPnet's `conv_mod`, of which each kind of block has its own

    def __init__(self, state: Mapping[str, Any], prefix: str, options: BlockOptions) -> None:
        self._state, self._prefix, self._options = state, prefix, options
        heads = tensor(state, f"{prefix}.self_att.pos_bias_u", ("heads", "size"))
        self.input_size = self.output_size = heads.size
        self._attention = RelPositionMultiHeadedAttention(
            state, f"{prefix}.self_att", norm=self._norm("norm_self_att")
        )
        # What a configuration may state as well, by the names that it has there.
        self.sizes = {"hidden_size": self.input_size, "heads": self._attention.n_heads}
        self._final = self._norm("norm_final")
        self._build()
        del self._state

    def _build(self) -> None:
        """Make the layers beside attention and norms."""
        raise NotImplementedError  # each kind of block has its own

    def _norm(self, name: str) -> Norm:
        name, options = f"{self._prefix}.{name}", self._options.norm
        return Norm(self._state, name, size=self.input_size, **options)

    def _half_step(self, name: str, norm: str) -> FeedForward:
        """Return a feed-forward layer, half of which is added to what went in."""
        name, activation = f"{self._prefix}.{name}", self._options.activation
        layer = FeedForward(self._state, name, activation, norm=self._norm(norm), factor=0.5)
        self._check(name, layer.input_size, self.input_size)
        return layer

    def _weights(self, name: str, n_outputs: int, n_inputs: int, **beside: Any) -> Weights:
        name, shape = f"{self._prefix}.{name}", (n_outputs, n_inputs)
        return Weights(self._state, name, shape=shape, **beside)

    def _check(self, name: str, width: int, expected: int) -> None:
        if width != expected:
            raise CheckpointError(f"{name} must be of width {expected}", str(width))

    def _gating(self) -> ConvolutionalSpatialGatingUnit:
        norm, causal = dict(self._options.convolution_norm), self._options.causal
        return ConvolutionalSpatialGatingUnit(
            self._state, f"{self._prefix}.conv_mod", norm.pop("kind"), causal=causal, **norm
        )

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        attention, conv = self._attention._memory(geometry), self._conv._memory(geometry)
        return {"self_att": attention, "conv_mod": conv}
