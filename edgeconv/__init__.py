"""Streaming speech recognition with ESPnet's transducers, on small CPUs and without PyTorch."""

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.digest import VerificationError
from edgeconv.encoder import Encoder, load_encoder
from edgeconv.recogniser import Recogniser, load_recogniser
from edgeconv.state_dict import Convolution
from edgeconv.weights import convert, find_convolutions, load, load_all, save, verify

__version__ = "0.2.0"

__all__ = ["CheckpointError", "Convolution", "DepthwiseConvolution", "Encoder", "Recogniser"]
__all__ += ["VerificationError", "convert", "find_convolutions", "load", "load_all"]
__all__ += ["load_encoder", "load_recogniser", "read_checkpoint", "save", "verify"]
