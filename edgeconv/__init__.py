"""Streaming depthwise convolutions of ESPnet speech recognisers, without PyTorch."""

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.digest import VerificationError
from edgeconv.state_dict import Convolution
from edgeconv.weights import convert, find_convolutions, load, load_all, save, verify

__version__ = "0.1.0"

__all__ = ["CheckpointError", "Convolution", "DepthwiseConvolution", "VerificationError", "convert"]
__all__ += ["find_convolutions", "load", "load_all", "read_checkpoint", "save", "verify"]
