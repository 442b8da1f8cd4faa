"""Relative positions: sines and cosines of the distance from a query back to a key."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array

# Half of pi in three parts, of which the first two have 33 bits each: products with the count of
# quarter turns are exact.
_QUARTER = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_SINE = [(-1) ** n / math.factorial(2 * n + 1) for n in range(9)]
_COSINE = [(-1) ** n / math.factorial(2 * n) for n in range(9)]


def relative_positions(most: int, least: int, size: int) -> Array:
    """
    Return ESPnet's encoding of the distances `most`, `most` - 1, ..., `least`.

    Parameters
    ----------
    most, least : int
        Distances in frames from a query back to a key; negative for later keys.
    size : int
        Width D of a row.

    Returns
    -------
    ndarray, float32, (most - least + 1, D)
        Column 2i is the sine of ``distance * 10000 ** (-2i / D)``, column 2i + 1 the cosine; the
        angle is a product in float32, as ESPnet's is.
    """
    exponents = np.arange(0, size, 2, dtype=np.float32) * np.float32(-9.210340371976184 / size)
    steps = Activation("exp")(exponents[None].copy())
    distances = np.arange(most, least - 1, -1, dtype=np.float32)[:, None]
    sine, cosine = sine_and_cosine((distances * steps).astype(np.float64))
    rows = np.empty((len(distances), size), np.float32)
    rows[:, 0::2], rows[:, 1::2] = sine, cosine[:, : size // 2]
    return rows


def sine_and_cosine(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute both by additions and products alone, which every CPU rounds alike."""
    quarters = np.rint(x * (2 / math.pi))
    for part in _QUARTER:
        x = x - quarters * part
    z = x * x
    sine, cosine = np.full_like(z, _SINE[-1]), np.full_like(z, _COSINE[-1])
    for s, c in zip(_SINE[-2::-1], _COSINE[-2::-1], strict=True):
        sine, cosine = sine * z + s, cosine * z + c
    sine *= x
    turn = quarters.astype(np.int64) % 4
    is_odd = turn % 2 == 1
    return (
        np.where(is_odd, cosine, sine) * np.where(turn >= 2, -1.0, 1.0),
        np.where(is_odd, sine, cosine) * np.where((turn == 1) | (turn == 2), -1.0, 1.0),
    )
