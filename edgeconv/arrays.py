"""Arguments from callers: what is accepted, and how it becomes what the kernels take."""

from __future__ import annotations

import contextvars
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

_TABLE = Path("/proc/self/maps")  # what is mapped where in this process
_HAS_TABLE = os.access(_TABLE, os.R_OK)
FLOAT32 = np.dtype(np.float32)  # the one object that NumPy's own arrays have

P = ParamSpec("P")
Result = TypeVar("Result")


def is_array(value: object) -> TypeGuard[NDArray[Any]]:
    """Tell whether `value` is an ordinary array: masked arrays and matrices mean other things."""
    # Importing `numpy.ma` takes 2 % of a warm start; without it there are no masked arrays.
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    return isinstance(value, np.ndarray) and not isinstance(value, (masked, np.matrix))


def described(value: object) -> str:
    """Say what a rejected argument is."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{'an array' if is_array(value) else f'a {kind}'} of {value.dtype}"
    is_short = value is None or isinstance(value, bool | int | float | str | np.generic)
    return repr(value) if is_short else kind


def is_integer(value: object) -> TypeGuard[int]:
    """Tell whether `value` is an integer of Python or NumPy; a Boolean is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def float_array(name: str, value: object) -> NDArray[Any]:
    """Return an array of floats as it is; anything else is a TypeError."""
    if is_array(value) and value.dtype.kind == "f":
        return value
    hint = ""
    if is_array(value):
        hint = "; convert it with the scale that your features have"
    elif hasattr(value, "numpy"):
        hint = "; pass its `.numpy()`"
    raise TypeError(f"`{name}` must be a NumPy array of floats, got {described(value)}{hint}")


def ignoring_float_errors(function: Callable[P, Result]) -> Callable[P, Result]:
    """Have a function compute without warnings.

    In a context of its own, of which NumPy 2 makes its error state a part: an exception from a
    signal handler can leave that unrestored, but not the caller's.
    """

    def ignoring(*args: P.args, **kwargs: P.kwargs) -> Result:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        return contextvars.copy_context().run(ignoring, *args, **kwargs)

    return call


@ignoring_float_errors
def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return an array of floats in aligned, C-contiguous float32: itself where it is that already.

    Finite values beyond the range of float32 become infinite.
    """
    converted = np.require(np.asarray(array), FLOAT32, ["C", "A"])
    return converted.view(FLOAT32)  # an equal type may be another object, after unpickling say


def check_shape(
    name: str, array: NDArray[Any], shape: tuple[int | str, ...], source: object
) -> None:
    """Raise a ValueError unless `array` has `shape`, where a letter stands for any length."""
    if array.ndim != len(shape) or any(
        isinstance(expected, int) and expected != length
        for expected, length in zip(shape, array.shape, strict=True)
    ):
        expected = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(
            f"`{name}` must have shape ({expected}), got {array.shape}; expected by {source}"
        )


def check_cache(cache: object, shape: tuple[int, int, int], source: object) -> NDArray[np.float32]:
    """Return a cache in float32; a TypeError or ValueError unless it is one of `shape`."""
    array = float_array("cache", cache)
    if array.shape != shape:
        raise ValueError(
            f"`cache` must have shape (B, C, K - 1) = {shape}, got {array.shape}; expected by "
            f"{source}. (ESPnet's documentation says (1, conv_kernel, D_hidden), its code uses "
            "(B, C, K - 1).)"
        )
    return as_float32(array)


def check_out(
    out: object, shape: tuple[int, ...], name: str, x: NDArray[Any], source: object
) -> None:
    """Raise a TypeError or ValueError unless the kernels can write to `out` while they read `x`."""
    if not is_array(out) or out.dtype != np.float32 or not out.dtype.isnative:
        raise TypeError(f"`out` must be a NumPy array of float32, got {described(out)}")
    check_shape("out", out, shape, source)
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        lacks = [
            text
            for text, is_so in (
                ("not C-contiguous", out.flags.c_contiguous),
                ("misaligned", out.flags.aligned),
                ("read-only", out.flags.writeable),
            )
            if not is_so
        ]
        raise ValueError(
            f"`out` must be C-contiguous, aligned and writable, got one that is {lacks[0]}"
        )
    if np.shares_memory(out, x) or _are_maps_of_the_same(out, x):
        raise ValueError(f"`out` must not overlap `{name}`, got two arrays that share memory")


def owns_memory(array: NDArray[Any]) -> bool:
    """Tell whether an array's memory is NumPy's own, so that no other address leads to it."""
    base = array.base
    return base is None or (type(base) is np.ndarray and base.base is None)


def _are_maps_of_the_same(out: NDArray[Any], x: NDArray[Any]) -> bool:
    """Tell whether two arrays are maps of the same bytes, at different addresses.

    Of a file or of shared memory: Linux has an inode for either.
    """
    if owns_memory(out) or owns_memory(x) or x.size == 0 or out.size == 0 or not _HAS_TABLE:
        return False
    table = _TABLE.read_bytes().split(b"\n")[:-1]
    others = list(_maps(table, x))
    return any(
        mine.inode == other.inode and mine.start < other.end and other.start < mine.end
        for mine in _maps(table, out)
        for other in others
        # What is private to `out` changes nowhere else. Of one map NumPy knows better.
        if mine.shared and mine.origin != other.origin
    )


class _Map(NamedTuple):
    """A part of an array that is a map: from which byte to which of what."""

    inode: tuple[bytes, bytes]
    start: int
    end: int
    origin: int
    """The address at which byte 0 would be."""
    shared: bool


def _maps(table: list[bytes], array: NDArray[Any]) -> Iterator[_Map]:
    """Find the maps that an array lies in, in the kernel's table of a process."""
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    first = array.ctypes.data + sum(min(0, r) for r in reach)
    last = first + sum(map(abs, reach)) + array.itemsize
    for line in table:
        low, high = (int(address, 16) for address in line[: line.index(b" ")].split(b"-"))
        if low < last and first < high:
            _, permissions, offset, device, inode, *_ = line.split(maxsplit=5)
            if (device, inode) != (b"00:00", b"0"):
                origin = low - int(offset, 16)
                start, end = max(first, low) - origin, min(last, high) - origin
                yield _Map((device, inode), start, end, origin, permissions.endswith(b"s"))


def check_lengths(lengths: object, batch_size: int | None, n_frames: int) -> NDArray[np.int64]:
    """Return `lengths` as int64 (B,); a TypeError or ValueError unless all are from 0 to T."""
    if batch_size is None:
        raise ValueError("`lengths` must be None for a stream without a batch: pass fewer frames")
    array = _integers("lengths", lengths)
    if array.shape != (batch_size,):
        raise ValueError(f"`lengths` must have shape (B,) = ({batch_size},), got {array.shape}")
    for row, length in enumerate(array.tolist()):
        if not 0 <= length <= n_frames:
            raise ValueError(
                f"`lengths` must be from 0 to the {n_frames} frames of the chunk, got {length} for "
                f"row {row}"
            )
    return array.astype(np.int64)


def check_rows(rows: object, batch_size: int | None) -> NDArray[np.int64]:
    """Return different rows of the batch; all of them for None."""
    if rows is None:
        return np.arange(1 if batch_size is None else batch_size)
    if batch_size is None:
        raise ValueError(f"`rows` must be None for a stream without a batch, got {described(rows)}")
    array = np.atleast_1d(_integers("rows", rows))
    if array.ndim != 1 or len(np.unique(array)) != array.size:
        raise ValueError(f"`rows` must be one or more different rows, got {rows!r}")
    for row in array.tolist():
        if not 0 <= row < batch_size:
            raise ValueError(f"`rows` must be from 0 to {batch_size - 1}, got {row}")
    return array.astype(np.int64)


def _integers(name: str, value: object) -> NDArray[np.integer[Any]]:
    """Return integers as an array, a copy; a TypeError for anything else."""
    if is_array(value) or is_integer(value) or isinstance(value, list | tuple | range):
        try:
            array = np.array(value, None if np.size(value) else np.int64)
        except ValueError:  # lists of different lengths
            array = np.empty(0)
        if array.dtype.kind in "iu":
            return array
    raise TypeError(f"`{name}` must be integers, got {described(value)}")
