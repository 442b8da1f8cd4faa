"""Element types: how the bytes of a tensor become numbers."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint.error import damaged, shown

__all__ = ["BOUNDS", "decoded", "element_count", "is_held", "item_size", "listed"]

DIMENSIONS = 32  # what NumPy 1 allows
ELEMENTS = 2**58
BOUNDS = f"{DIMENSIONS} dimensions and 2**58 elements"


def listed(dtype: str) -> bool:
    """Tell whether tensors of this type are listed: Boolean, integer or float, a byte or more."""
    return dtype in _STORED


def item_size(dtype: str) -> int:
    """Return the number of bytes of an element; 0 for a type that is not known."""
    return _STORED[dtype].itemsize if listed(dtype) else _OTHERS.get(dtype, 0)


def element_count(shape: tuple[int, ...], what: str) -> int:
    """Return the number of elements of `what`, whose shape must be one that NumPy can hold."""
    if not is_held(shape):
        raise damaged(f"{what} must have at most {BOUNDS}", shown(str(shape)))
    return math.prod(shape)


def is_held(shape: tuple[int, ...]) -> bool:
    """Tell whether NumPy can hold a tensor of a shape."""
    # NumPy counts a dimension of length 0 as 1 when it looks for overflow.
    return len(shape) <= DIMENSIONS and math.prod(max(n, 1) for n in shape) <= ELEMENTS


def decoded(raw: bytes | bytearray, dtype: str, byte_order: str = "little") -> NDArray[Any]:
    """
    Turn the bytes of elements into a one-dimensional array in native byte order.

    It has the same type, or float32 for one that NumPy lacks, and may share the memory of `raw`.
    """
    elements: NDArray[Any] = np.frombuffer(raw, _STORED[dtype])
    if byte_order != sys.byteorder:
        elements = elements.byteswap()
    if dtype == "bool":
        # NumPy computes nonsense with a Boolean that is neither 0 nor 1.
        elements = elements.astype(bool)
    elif dtype == "bfloat16":
        elements = (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif dtype in _FLOAT8:
        elements = _FLOAT8[dtype][elements]
    return elements


def _float8(
    exponent_bits: int, bias: int, nan_codes: tuple[int, ...] = (), *, signed: bool = True
) -> NDArray[np.float32]:
    """Tabulate an 8-bit float type; one without `nan_codes` has NaN and infinity as IEEE says."""
    mantissa_bits = 8 - signed - exponent_bits
    top = 2**exponent_bits - 1
    values = []
    for code in range(256):
        mantissa = code % 2**mantissa_bits
        exponent = code >> mantissa_bits & top
        subnormal = signed and exponent == 0
        fraction = mantissa / 2**mantissa_bits + (not subnormal)
        value = math.ldexp(fraction, exponent + subnormal - bias)
        if not nan_codes and exponent == top:
            value = math.nan if mantissa else math.inf
        if code in nan_codes:
            value = math.nan
        values.append(-value if signed and code >= 128 else value)
    return np.array(values, np.float32)


_FLOAT8 = {
    "float8_e4m3fn": _float8(4, 7, (127, 255)),
    "float8_e4m3fnuz": _float8(4, 8, (128,)),
    "float8_e5m2": _float8(5, 15),
    "float8_e5m2fnuz": _float8(5, 16, (128,)),
    "float8_e8m0fnu": _float8(8, 127, (255,), signed=False),
}

# How the elements lie in a file. Long doubles are missing on purpose: their bytes mean another
# number on another machine.
_NATIVE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_STORED = {name: np.dtype(name) for name in (*_NATIVE, "float16", "float32", "float64")}
_STORED |= {"bool": np.dtype(np.uint8), "bfloat16": np.dtype(np.uint16)}
_STORED |= dict.fromkeys(_FLOAT8, np.dtype(np.uint8))

# Types whose elements can be counted, though not listed.
_OTHERS = {"complex32": 4, "complex64": 8, "complex128": 16, "float4_e2m1fn_x2": 1}
_OTHERS |= {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
