"""All attacks."""

from attacks import archives, npz_files, payloads, safetensors_files, storages, structures
from attacks.catalogue import ATTACKS

__all__ = [
    "ATTACKS",
    "archives",
    "npz_files",
    "payloads",
    "safetensors_files",
    "storages",
    "structures",
]
