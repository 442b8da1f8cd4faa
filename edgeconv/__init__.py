"""Streaming encoders of ESPnet speech recognisers, and their convolutions, without PyTorch."""

from typing import TYPE_CHECKING, Any

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.digest import VerificationError
from edgeconv.state_dict import Convolution
from edgeconv.weights import convert, find_convolutions, load, load_all, save, verify

if TYPE_CHECKING:
    from edgeconv.encoder import Encoder, load_encoder

__version__ = "0.1.0"

__all__ = ["CheckpointError", "Convolution", "DepthwiseConvolution", "Encoder"]
__all__ += ["VerificationError", "convert", "find_convolutions", "load", "load_all"]
__all__ += ["load_encoder", "read_checkpoint", "save", "verify"]


def __getattr__(name: str) -> Any:
    if name not in ("Encoder", "load_encoder"):
        raise AttributeError(f"module 'edgeconv' has no attribute {name!r}")
    from edgeconv import encoder  # imports Numba, which those who move weights do without

    return getattr(encoder, name)
