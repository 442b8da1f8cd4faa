"""Write a file so that others see the old one or the new one, and never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["as_text", "ignoring_faults", "is_fault", "package_stamp", "replacing"]


def as_text(name: str, path: object) -> str:
    """Return the path that an argument holds; an error that names it for anything else."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"`{name}` must be a str or path-like, got {type(path).__name__}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise ValueError(f"`{name}` must be a path without null characters, got {text!r}")
    return text


def package_stamp() -> list[tuple[str, int, int]]:
    """Return what changes when another version of this package takes its place."""
    files = sorted(filter(Path.exists, Path(__file__).parent.glob("*.py*")))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def is_fault(error: OSError) -> bool:
    """Tell what the system reports from what a signal handler raises, `TimeoutError()` say."""
    return error.errno is not None


@contextlib.contextmanager
def ignoring_faults() -> Iterator[None]:
    """Leave the block where the system reports that something cannot be done."""
    try:
        yield
    except OSError as error:
        if not is_fault(error):
            raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    Open a temporary file that takes the place of `path` when the block succeeds.

    Parameters
    ----------
    path : str or path-like
        The target, exactly as given. A symbolic link stays a link: the file that it points to
        is replaced.

    Yields
    ------
    file : binary file, readable and writable
        A new file beside the target, with the permissions of the file that it replaces, or those
        of any new file.

    Raises
    ------
    OSError
        As creating a file beside it would, and where the target is a device, a pipe or another
        special file: putting a file in its place would destroy it.

    Notes
    -----
    The file is on the disk before it gets its name, so a kill or a power cut leaves the old file or
    the new one, and maybe a temporary one, ``.edgeconv-*.tmp``. Any exception in the block,
    `KeyboardInterrupt` included, removes the temporary file and leaves the target alone.
    """
    target = Path(os.path.realpath(as_text("path", path)))
    mode = _permissions(target, path)
    temporary = target.with_name(f".edgeconv-{secrets.token_hex(8)}.tmp")
    try:
        # Not by `tempfile`: the umask decides the permissions of a new file.
        with temporary.open("x+b") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with ignoring_faults():
            temporary.unlink()
        # A failed write does not say where, and the user never chose the temporary name.
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)
        raise
    _sync_directory(target.parent)


def _permissions(target: Path, path: str | os.PathLike[str]) -> int | None:
    """Return the permissions of the regular file that `path` leads to, or None without one."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
    return stat.S_IMODE(mode) & 0o777


def _sync_directory(directory: Path) -> None:
    """Make the new name durable, on file systems that can and where we may."""
    # The file is complete and in place: that this cannot be done is no error.
    with ignoring_faults():
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
