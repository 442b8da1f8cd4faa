"""How kernels are compiled, cached on disk, and kept from compiling ever again."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import pickle
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import float32, int64, types
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.np.ufunc import parallel as numba_parallel

from edgeconv import vectors
from edgeconv.files import is_fault, replacing


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


class _Cache:
    """
    Files of machine code; a Numba dispatcher loads from them, and saves to them.

    Numba's own cache links whatever it finds: of bits flipped in its files one in eight crashed the
    process, and some changed results. It overlooks a change in any file but the kernel's, and
    does not load from a directory that it cannot write to, such as one in a read-only image.

    Here a name says what the code was made from, and for. The file begins with the SHA-256 of name
    and content, and none of it is used before that fits. A file that is damaged, or that cannot be
    written, is no more than a warning.
    """

    def __init__(self, function: Any) -> None:
        # What this process imported: by the first compilation another version may be in its place.
        modules = function.__globals__, globals(), vars(vectors)
        self._sources = [m["__loader__"].get_data(m["__file__"]) for m in modules]
        self._function = function.__name__
        self.cache_path: str | None = None

    def load_overload(self, signature: Any, context: Any) -> Any:
        context.refresh()
        name = self._name(signature, context.codegen())
        for directory in _directories():
            try:
                content = (directory / name).read_bytes()
            except OSError as error:
                if not is_fault(error):
                    raise
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    _warn_of_the_cache(error)
                continue
            if content[:32] != _digest(name, content[32:]):
                _warn_of_the_cache(f"{directory / name} is damaged")
                continue
            self.cache_path = str(directory)
            return CompileResult._rebuild(context, *pickle.loads(content[32:]))
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        name = self._name(signature, result.codegen)
        content = dumps(result._reduce())
        for directory in _directories():
            fault = _write(directory / name, _digest(name, content) + content)
            if fault is None:
                self.cache_path = str(directory)
                return
        _warn_of_the_cache(fault)

    def _name(self, signature: Any, codegen: Any) -> str:
        python = sysconfig.get_config_var("SOABI")
        versions = numba.__version__, llvmlite.__version__, python
        options = numba.config.OPT, numba.config.DEBUGINFO_DEFAULT, numba.config.BOUNDSCHECK
        key = signature, codegen.magic_tuple(), versions, str(options), self._sources
        return f"edgeconv.{self._function}.{hashlib.sha256(repr(key).encode()).hexdigest()}.nbc"


def _directories() -> list[Path]:
    """Return where machine code may be, the first choice first."""
    if numba.config.CACHE_DIR:
        return [Path(numba.config.CACHE_DIR)]
    user = os.environ.get("XDG_CACHE_HOME", "")
    if not user.startswith("/"):
        user = os.path.expanduser("~/.cache")  # noqa: PTH111 - a `Path` raises where there is no home
    directories = Path(__file__).with_name("__pycache__"), Path(user, "edgeconv")
    return [directory for directory in directories if directory.is_absolute()]


def _write(path: Path, content: bytes) -> OSError | None:
    """Write a file; return what is in the way."""
    try:
        _make_directory(path.parent)
        path.unlink(missing_ok=True)  # whose permissions may have been what was wrong with it
        with replacing(path) as file:
            os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & 0o755)
            file.write(content)
    except OSError as error:
        if not is_fault(error):
            raise
        return error
    return None


def _make_directory(path: Path) -> None:
    """Make a directory, and what it lies in, to which nobody else may write, whatever the umask."""
    if not path.is_dir():
        _make_directory(path.parent)
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.mkdir(0o755)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


_warnings: list[object] = []


def _warn_of_the_cache(fault: object) -> None:
    """Warn once in a process."""
    if not _warnings:
        _warnings.append(fault)
        warnings.warn(
            f"edgeconv compiles what its cache cannot give or keep ({fault}); if this comes again, "
            "set NUMBA_CACHE_DIR to a directory that can be written to",
            RuntimeWarning,
            stacklevel=3,
        )


def compiled_for(**options: Any) -> Callable[[Any], Callable[[int], Any]]:
    """Compile a kernel on demand, once for each number of dimensions of its first argument.

    The decorated name becomes a function of that number. What it returns is compiled for one type
    of each argument, which the argument's name tells, and never compiles again: that would take
    half a second between two frames.

    Its `entry_point` is the compiled code itself, which trusts its arguments. Numba's own check of
    their types takes a third of a short call, loads half of Numba the first time, and looks neither
    for subclasses of arrays nor for misaligned ones: `Stream` checks all of it.
    """

    def decorate(function: Any) -> Callable[[int], Any]:
        cache = _Cache(function)

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
                "gate": types.Array(int64, 1, "C"),
            }
            names = function.__code__.co_varnames[: function.__code__.co_argcount]
            types_of_arguments = tuple(by_name.get(name, int64) for name in names)
            if numba.config.DISABLE_JIT:
                raise RuntimeError("unset NUMBA_DISABLE_JIT: nothing here runs uncompiled")
            kernel = _jit(function, **options)
            kernel._cache = cache
            kernel.compile(types_of_arguments)
            kernel.disable_compile()
            (result,) = kernel.overloads.values()
            kernel.entry_point = result.entry_point
            return kernel

        return kernel

    return decorate


def thread_counter() -> Callable[[], int]:
    """Start Numba's threads; return what tells how many a parallel loop would use, here and now.

    That is not `numba.get_num_threads`, which takes a lock in Python code each time: an exception
    from a signal handler would leave it taken, and all other threads waiting.
    """
    numba.get_num_threads()
    counter: Callable[[], int] = numba_parallel._get_num_threads
    return counter
