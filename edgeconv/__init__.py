"""Streaming depthwise convolutions of ESPnet speech recognisers, without PyTorch."""

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.proof import VerificationError, verify
from edgeconv.state import StreamState, load_state, save_state
from edgeconv.stream import Stream
from edgeconv.streams import Streams
from edgeconv.weights import Convolution, convert, find_convolutions, load, load_all, save

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Convolution",
    "DepthwiseConvolution",
    "Stream",
    "StreamState",
    "Streams",
    "VerificationError",
    "convert",
    "find_convolutions",
    "load",
    "load_all",
    "load_state",
    "read_checkpoint",
    "save",
    "save_state",
    "verify",
]
