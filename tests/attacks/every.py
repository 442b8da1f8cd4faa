"""All attacks, in the order of the table in docs/attacks.md."""

import importlib

from attacks.catalogue import ATTACKS

__all__ = ["ATTACKS", "GROUPS"]

GROUPS = (
    "payloads",
    "structures",
    "storages",
    "archives",
    "legacy_files",
    "safetensors_files",
    "npz_files",
    "converted_files",
    "kinds",
    "damaged",
    "unusual",
)
for group in GROUPS:
    importlib.import_module(f"attacks.{group}")
