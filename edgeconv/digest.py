"""A digest of the bits that a module computes; the README specifies it with the file format."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgeconv.convolution import DepthwiseConvolution

__all__ = ["of_module", "of_output", "signal"]

# 0, -0, the smallest and the largest subnormal, the largest numbers, the infinities and a NaN.
SPECIAL = np.array(
    [0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000],
    np.uint32,
).view(np.float32)
NAN = np.uint32(0x7FC00000)


def signal(channels: int, kernel_size: int) -> NDArray[np.float32]:
    """
    Return the input of the digest, the same on every machine and for every version of NumPy.

    Parameters
    ----------
    channels, kernel_size : int
        Geometry of the module, C and K.

    Returns
    -------
    ndarray, float32, (3 * K + 256, C)
        Multiples of 2**-22 within +-2 from a linear congruential generator, but for nine frames
        of special values. Before them and after them the ring of a stream wraps.
    """
    shape = 3 * kernel_size + 256, channels
    # n steps of s = a * s + b from s = 0 give b * (1 + a + ... + a**(n-1)), modulo 2**32.
    factors = np.full(shape[0] * shape[1], 1664525, np.uint32)
    factors[0] = 1
    state = np.cumsum(np.cumprod(factors, dtype=np.uint32), dtype=np.uint32)
    state *= np.uint32(1013904223)
    # Neighbouring states are a lattice, and their low bits repeat soon: mix before use.
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x7FEB352D)
    state ^= state >> np.uint32(15)
    x = (state >> np.uint32(8)).astype(np.float32).reshape(shape) / np.float32(2**22) - 2
    frames, lanes = np.arange(len(SPECIAL)), np.arange(channels)
    # In each of these frames neighbouring channels hold different values.
    x[kernel_size + 128 + frames] = SPECIAL[(frames[:, None] + lanes) % len(SPECIAL)]
    return x


def of_output(y: NDArray[np.float32]) -> str:
    """Return the SHA-256 of little-endian float32 values (T, C), any NaN as 0x7fc00000."""
    bits = np.where(np.isnan(y), NAN, y.view(np.uint32))
    return hashlib.sha256(bits.astype("<u4").tobytes()).hexdigest()


def of_module(conv: DepthwiseConvolution) -> str:
    """Return the digest of a module's output, offline; streamed it is the same."""
    return of_output(conv(signal(conv.channels, conv.kernel_size)[np.newaxis])[0][0])
