"""Streaming depthwise convolutions of ESPnet speech recognisers, without PyTorch."""

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.proof import VerificationError, verify
from edgeconv.stream import Stream
from edgeconv.weights import Convolution, convert, find_convolutions, load, load_all, save

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Convolution",
    "DepthwiseConvolution",
    "Stream",
    "VerificationError",
    "convert",
    "find_convolutions",
    "load",
    "load_all",
    "read_checkpoint",
    "save",
    "verify",
]
