"""All attacks."""

from attacks import (
    archives,
    converted_files,
    kinds,
    npz_files,
    payloads,
    safetensors_files,
    storages,
    structures,
)
from attacks.catalogue import ATTACKS

__all__ = [
    "ATTACKS",
    "archives",
    "converted_files",
    "kinds",
    "npz_files",
    "payloads",
    "safetensors_files",
    "storages",
    "structures",
]
