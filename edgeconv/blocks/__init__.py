"""The blocks of ESPnet's streaming encoders: wiring of layers, no arithmetic beyond a sum."""

from edgeconv.blocks.block import BlockOptions
from edgeconv.blocks.branchformer import Branchformer
from edgeconv.blocks.conformer import Conformer
from edgeconv.blocks.ebranchformer import EBranchformer

__all__ = ["BlockOptions", "Branchformer", "Conformer", "EBranchformer"]
