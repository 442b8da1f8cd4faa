"""Arguments from callers: what is accepted, what errors say, what kernels are given."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

FLOAT32 = np.dtype(np.float32)
IN_USE = "a stream must be used by one thread at a time, got a call during another"


def is_array(value: object) -> TypeGuard[NDArray[Any]]:
    """Tell whether `value` is an ordinary array: masked arrays and matrices mean other things."""
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray | np.matrix)


def is_integer(value: object) -> TypeGuard[int]:
    """Tell whether `value` is an integer of Python or NumPy; a Boolean is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def described(value: object) -> str:
    """Say what a rejected argument is."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{'an array' if is_array(value) else f'a {kind}'} of {value.dtype}"
    return repr(value) if value is None or np.isscalar(value) else f"a {kind}"


def float32(name: str, value: object, shape: tuple[Any, ...], source: object) -> NDArray[Any]:
    """Return floats of `shape`, where a letter is any length, as kernels read them."""
    return as_float32(floats(name, value, shape, source))


def floats(name: str, value: Any, shape: tuple[Any, ...], source: object) -> NDArray[Any]:
    """Return an array if it is one of floats and of `shape`; else raise the error that says so."""
    is_plain = type(value) is np.ndarray and value.dtype is FLOAT32  # the usual case, soon told
    if not is_plain and (not is_array(value) or value.dtype.kind != "f"):
        got = f"{described(value)}{remedy(name, value)}"
        raise TypeError(f"`{name}` must be a NumPy array of floats, got {got}")
    check_shape(name, value, shape, source)
    array: NDArray[Any] = value
    return array


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return an array as kernels read it: C-contiguous, aligned, float32 and of no subclass."""
    flags = array.flags
    is_float32 = type(array) is np.ndarray and array.dtype is FLOAT32
    if is_float32 and flags.c_contiguous and flags.aligned:
        return array
    with np.errstate(over="ignore"):  # finite values beyond float32 become infinite
        return np.require(array, FLOAT32, ["C", "A"]).view(FLOAT32, np.ndarray)


def remedy(name: str, value: object) -> str:
    """Say what to pass instead of what is no array of floats."""
    if isinstance(value, np.ma.MaskedArray):
        return f"; pass `{name}.filled(0)`"
    if is_array(value) and value.dtype.kind in "iu":
        return "; features and activations are floats; samples are for `load_recogniser`'s streams"
    if is_array(value) and value.dtype.kind == "c":
        return f"; pass `abs({name})`, or its real and imaginary parts as channels"
    if is_array(value):  # Booleans, objects, floats of ml_dtypes
        return f"; pass `{name}.astype(np.float32)`"
    if hasattr(value, "numpy"):
        return f"; pass `{name}.numpy()`, with `.detach().cpu().float()` before it where needed"
    is_like = isinstance(value, list | tuple | np.matrix)
    return f"; pass `np.asarray({name}, np.float32)`" if is_like else ""


def check_shape(name: str, array: Any, shape: tuple[Any, ...], source: object) -> None:
    """Raise a ValueError unless an array has `shape`, where a letter is any length."""
    if _has_shape(array.shape, shape):
        return
    remedy = ""
    if len(shape) > 1 and _has_shape((*array.shape[:-2], *array.shape[:-3:-1]), shape):
        remedy = f"; transpose it: `{name}.swapaxes(-1, -2)`"
    elif _has_shape((1, *array.shape), shape):
        remedy = f"; pass `{name}[None]`"
    elif array.shape[:1] == (1,) and _has_shape(array.shape[1:], shape):
        remedy = f"; pass `{name}[0]`"
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    got = f"{array.shape}; expected by {source}{remedy}"
    raise ValueError(f"`{name}` must have shape {wanted}, got {got}")


def _has_shape(actual: tuple[int, ...], shape: tuple[Any, ...]) -> bool:
    for expected, n in zip(shape, actual):  # noqa: B905 - quicker, and lengths are compared below
        if expected != n and type(expected) is not str:
            return False
    return len(actual) == len(shape)


def check_out(
    out: object, shape: tuple[int, ...], x: NDArray[Any], given: NDArray[Any], source: object
) -> NDArray[np.float32]:
    """Return `out` as kernels write to it while they read `x`, which is `given` or a copy."""
    if not is_array(out) or out.dtype != FLOAT32:
        raise TypeError(f"`out` must be a NumPy array of float32, got {described(out)}")
    check_shape("out", out, shape, source)
    if not out.flags.carray:
        raise ValueError(f"`out` must be C-contiguous, aligned and writeable, got\n{out.flags}")
    if x is not given and np.shares_memory(out, given):  # else the kernels notice
        raise ValueError("`out` must not overlap the input, got two arrays that share memory")
    return out.view(FLOAT32, np.ndarray)


def check_state(state: Any, own: Mapping[str, Any], name: str) -> None:
    """Refuse what is no snapshot of a stream like that of `own`; `name` in it tells which."""
    if not isinstance(state, Mapping):
        raise TypeError(f"`state` must be a mapping of arrays, got {described(state)}")
    if missing := set(own) - set(state):
        raise ValueError(
            f"`state` must have {min(missing)}, got {sorted(map(str, state))[:3]}, ..."
        )
    if str(state[name]) != str(own[name]):
        raise ValueError(f"`state` must be of the same {name}, {own[name]}, got {state[name]}")


def integers(name: str, value: object, low: int, high: int) -> NDArray[np.int64]:
    """Return integers from `low` to `high` as a new array."""
    array = np.array(value)
    array = array if array.size else array.astype(np.int64)  # an empty list is of float64
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must be integers, got {described(value)}")
    if ((array < low) | (array > high)).any():
        raise ValueError(f"`{name}` must be from {low} to {high}, got {array.tolist()}")
    return array.astype(np.int64)


def integer(name: str, value: object, low: int, high: int) -> int:
    """Return one integer from `low` to `high`."""
    if not is_integer(value):
        raise TypeError(f"`{name}` must be an integer, got {described(value)}")
    return int(integers(name, value, low, high))
