"""Every compiled function, and how it is compiled. Nothing else imports Numba or llvmlite."""

import contextlib
import functools
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba

OPTIONS: Any = {
    "error_model": "numpy",  # the only divisors are sizes: no test for zero, no exception
    "fastmath": False,  # reordering would break the guarantee of equal bits
    "nogil": False,  # a call of microseconds that gives up the lock waits 5 ms to have it back
}
_faults: list[Exception] = []  # of the cache, the first of which is a warning


def compiled(function: Any, **options: Any) -> Any:
    """Compile a function that other kernels call; wrappers for Python and C cost time."""
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(function, **OPTIONS, **wrappers, **options)


def inlined(function: Any) -> Any:
    """Compile a function as a part of what calls it: LLVM then sees it once.

    An array that it is given may be freed after its last mention, while its address is in use.
    """
    return compiled(function, inline="always")


def entry(function: Any, *signatures: Any, **options: Any) -> Any:
    """Compile what Python calls, now, for these signatures alone; or load it from Numba's cache."""
    # Numba names its files after the function, and notices an edit in that function's file alone.
    function.__qualname__ = f"{function.__name__}_{_version()}"
    options, heard, hook = OPTIONS | options, [], sys.unraisablehook
    sys.unraisablehook = lambda lost: heard.append(lost.exc_type)
    try:
        return numba.njit(list(signatures), cache=True, **options)(function)
    except Exception as fault:  # what a damaged file raises, only its content knows
        if not _faults:
            text = f"edgeconv compiles anew in every process, as Numba cannot cache ({fault!r})"
            remedy = "set NUMBA_CACHE_DIR to a directory that can be written, or empty it"
            warnings.warn(f"{text}: {remedy}", RuntimeWarning, stacklevel=3)
        _faults.append(fault)
        return numba.njit(list(signatures), **options)(function)
    finally:
        sys.unraisablehook = hook
        if KeyboardInterrupt in heard:  # Ctrl-C that only a destructor of llvmlite's noticed
            raise KeyboardInterrupt


@contextlib.contextmanager
def heard_compiling(say: Callable[[], None]) -> Iterator[None]:
    """Call `say` whenever the block compiles something."""
    from numba.core import event  # as Numba documents

    listener = type("Listener", (event.Listener,), {"on_start": lambda *_: say(), "on_end": id})()
    with event.install_listener("numba:compile", listener):
        yield


@functools.cache
def _version() -> str:
    """Return a digest of this package's sources; of a zip or an executable, Numba asks the date."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
