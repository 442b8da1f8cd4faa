"""Tensors in files: their types, and how bytes become arrays."""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint.error import CheckpointError, require, shown

DIMENSIONS, ELEMENTS = 32, 2**58  # so that NumPy 1 holds every shape, and 64 bits every size


class Entry(NamedTuple):
    """A tensor in a file; `read` is None for one that is not Boolean, integer or float."""

    dtype: str
    shape: tuple[int, ...] = ()
    n_bytes: int = 0
    read: Callable[[], NDArray[Any]] | None = None


# Through the bits of float16: a thread that flushes subnormal numbers to 0 changes nothing in that.
_CODES = np.arange(256, dtype=np.uint16)
_HALVES = {"float8_e5m2": _CODES << 8, "float8_e4m3fn": (_CODES & 128) << 8 | (_CODES & 127) << 7}
with np.errstate(invalid="ignore"):  # Arm tells of signalling NaN
    FLOAT8 = {name: half.view(np.float16).astype(np.float32) for name, half in _HALVES.items()}
FLOAT8["float8_e4m3fn"] *= 2**8  # its exponent counts from another number
FLOAT8["float8_e4m3fn"][[127, 255]] = np.nan
# How elements lie in a file. Long doubles are missing: other machines have others.
STORED = {name: name for name in ("float16", "float32", "float64")}
STORED |= {name: name for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")}
STORED |= {"bool": "uint8", "bfloat16": "uint16", **dict.fromkeys(FLOAT8, "uint8")}
SIZES = {name: np.dtype(stored).itemsize for name, stored in STORED.items()}
REMEDIES = {  # by how the type begins
    ("sparse",): "save its `to_dense()` instead",
    ("qint", "quint"): "save its `dequantize()` instead",
    ("a pickled module",): "load it where its class is, and save `model.state_dict()` instead",
    ("a NumPy array",): "save `torch.from_numpy(array)` instead",
    ("object",): "pickled objects are never loaded: save plain arrays",
    ("",): "convert it in PyTorch or NumPy and save it again",
}


def are_sizes(values: Any) -> TypeGuard[tuple[int, ...]]:
    """Tell whether all of a few values count something; Python's Booleans pass as integers."""
    is_short = isinstance(values, (list, tuple)) and len(values) <= DIMENSIONS
    return is_short and all(type(n) is int and 0 <= n < 2**63 for n in values)


def count(shape: Any, what: str) -> int:
    """Return the number of elements, for a shape that NumPy can hold."""
    # NumPy counts a dimension of length 0 as 1 when it looks for overflow.
    is_held = are_sizes(shape) and math.prod(n or 1 for n in shape) <= ELEMENTS
    require(is_held, f"{what} must have a shape of {DIMENSIONS} sizes and 2**58 elements at most")
    return math.prod(shape)


def decoded(fetch: Any, dtype: str, order: str, shape: Any, axes: Any = "C") -> NDArray[Any]:
    """Turn the bytes that `fetch` returns into an array; what NumPy lacks becomes float32."""
    elements: NDArray[Any] = np.frombuffer(fetch(), STORED[dtype]).reshape(shape, order=axes)
    elements = elements if order == sys.byteorder else elements.byteswap()
    if dtype == "bool":
        elements = elements.astype(bool)  # NumPy takes every byte for one of 0 or 1
    elif dtype == "bfloat16":
        elements = (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return FLOAT8[dtype][elements] if dtype in FLOAT8 else elements


def unlisted(name: str, dtype: str) -> CheckpointError:
    """Return the error for asking for a tensor that cannot be read."""
    remedy = next(remedy for starts, remedy in REMEDIES.items() if dtype.startswith(starts))
    expected = f"{shown(name)} must be a Boolean, integer or float tensor"
    return CheckpointError(expected, dtype, remedy)
