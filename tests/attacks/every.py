"""All attacks."""

from attacks import archives, payloads, structures
from attacks.catalogue import ATTACKS

__all__ = ["ATTACKS", "archives", "payloads", "structures"]
