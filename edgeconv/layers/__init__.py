"""Every layer of ESPnet's streaming encoders; `layer.py` says what they have in common."""

from edgeconv.convolution import DepthwiseConvolution
from edgeconv.layers.attention import RelPositionMultiHeadedAttention
from edgeconv.layers.conformer_convolution import ConformerConvolution
from edgeconv.layers.feed_forward import FeedForward
from edgeconv.layers.gating import ConvolutionalSpatialGatingUnit
from edgeconv.layers.input import ConvInput
from edgeconv.layers.layer import Layer, Stream
from edgeconv.layers.linear import Linear
from edgeconv.layers.norm import Norm
from edgeconv.layers.positions import relative_positions

__all__ = [
    "ConformerConvolution",
    "ConvInput",
    "ConvolutionalSpatialGatingUnit",
    "DepthwiseConvolution",
    "FeedForward",
    "Layer",
    "Linear",
    "Norm",
    "RelPositionMultiHeadedAttention",
    "Stream",
    "relative_positions",
]
