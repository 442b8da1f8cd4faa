"""Streaming depthwise convolutions of ESPnet speech recognisers, without PyTorch."""

from edgeconv.checkpoint import CheckpointError
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.stream import Stream

__version__ = "0.1.0"
__all__ = ["CheckpointError", "DepthwiseConvolution", "Stream"]
