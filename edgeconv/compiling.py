"""How kernels are compiled, cached on disk, and kept from compiling ever again."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba import float32, int64, types


def _jit(function: Any, **options: Any) -> Any:
    return numba.njit(
        nogil=True,  # other threads' streams go on meanwhile
        error_model="numpy",  # the only divisors are sizes: no test for zero, no exception
        fastmath=False,  # reordering would break the guarantee
        _nrt=False,  # no array is made here: counting references took a quarter of a short call
        **options,
    )(function)


def compiled(function: Any) -> Any:
    """Compile a function that other kernels call."""
    return _jit(function)


_warnings: list[Exception] = []


def _warn_that_nothing_is_cached(error: Exception) -> None:
    """Warn once in a process."""
    if not _warnings:
        _warnings.append(error)
        warnings.warn(
            f"edgeconv compiles without Numba's cache, which failed ({error!r}): empty it, or set "
            "NUMBA_CACHE_DIR to a directory that can be written to",
            RuntimeWarning,
            stacklevel=3,
        )


def compiled_for(**options: Any) -> Callable[[Any], Callable[[int], Any]]:
    """Compile a kernel on demand, once for each number of dimensions of its first argument.

    The decorated name becomes a function of that number. What it returns is compiled, accepts one
    type for each argument and never compiles again: another dtype or layout is a TypeError at
    once instead of half a second of compilation between two frames.
    """

    def decorate(function: Any) -> Callable[[int], Any]:
        @functools.cache
        def kernel(dimensions: int) -> Any:
            by_name = {
                "x": types.Array(float32, dimensions, "C", readonly=True),
                "out": types.Array(float32, dimensions, "C"),
                "taps": types.Array(float32, 3, "C", readonly=True),
                "state": types.Array(float32, 2, "C"),
                "copy": types.Array(float32, 2, "C"),
                "lengths": types.Array(int64, 1, "C", readonly=True),
                "rows": types.Array(int64, 1, "C", readonly=True),
                "expected": types.Array(int64, 1, "C", readonly=True),
            }
            names = function.__code__.co_varnames[: function.__code__.co_argcount]
            types_of_arguments = tuple(by_name.get(name, int64) for name in names)
            if numba.config.DISABLE_JIT:
                raise RuntimeError("unset NUMBA_DISABLE_JIT: nothing here runs uncompiled")
            try:
                kernel = _jit(function, cache=True, **options)
                kernel.compile(types_of_arguments)
            except Exception as error:  # no writable directory, a full disk, a damaged file, ...
                _warn_that_nothing_is_cached(error)
                kernel = _jit(function, **options)
                kernel.compile(types_of_arguments)
            kernel.disable_compile()
            return kernel

        return kernel

    return decorate


def entry_point(kernel: Any) -> Callable[..., int]:
    """Return a kernel's compiled code, which trusts its arguments.

    Numba's own check of their types takes a third of a short call, and looks neither for subclasses
    of arrays nor for misaligned ones: `Stream` checks all of it.
    """
    (compiled,) = kernel.overloads.values()
    return compiled.entry_point  # type: ignore[no-any-return]  # Numba's


def n_threads() -> int:
    """Return how many threads a parallel loop would use, here and now."""
    return int(numba.get_num_threads())
