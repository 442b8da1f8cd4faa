"""What every format is read into: a read-only mapping whose tensors are read when looked up."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from numpy.typing import NDArray

from edgeconv.checkpoint.error import CheckpointError, damaged, naming, shown

__all__ = [
    "Checkpoint",
    "Contents",
    "Entry",
    "Stamp",
    "TensorSpec",
    "check_name",
    "exactly",
    "open_regular",
    "reading",
]

NAME_CHARACTERS = 2**12
UNLISTED = "convert it in PyTorch or NumPy and save it again"


class TensorSpec(NamedTuple):
    """What a file says about a tensor: its type as NumPy or PyTorch calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """A tensor in a file: its description, and how to read it from the open file."""

    spec: TensorSpec
    read: Callable[[BinaryIO], NDArray[Any]] | None
    """None for a tensor that is not Boolean, integer or float: such a tensor is not listed."""
    remedy: str = UNLISTED
    verify: Callable[[BinaryIO], None] | None = None
    """Finds out whether damage is why a tensor is not listed."""


def check_name(name: str) -> None:
    """Refuse a tensor's name that is too long, or that cannot be written as UTF-8."""
    if len(name) > NAME_CHARACTERS or name != name.encode(errors="replace").decode():
        raise CheckpointError(
            f"the name of a tensor must be UTF-8 text of at most {NAME_CHARACTERS} characters",
            shown(name),
            "rename the tensor and save again",
        )


class Contents(NamedTuple):
    """What a format's reader finds in a file."""

    format: str
    entries: dict[str, Entry]
    header: str | None = None
    """The text of a converted checkpoint."""


class Stamp(NamedTuple):
    """Where a file lies and when it changed last: enough to notice that it is another one."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    """Also by what then restores `modified`."""


class Checkpoint(Mapping[str, NDArray[Any]]):
    """
    The tensors of a file by name, in file order, each read when it is looked up.

    Every lookup opens the file again and returns a new read-only array in the file's element type
    and native byte order; bfloat16 and the float8 types, which NumPy lacks, come as float32,
    exactly. If the file has changed since `read_checkpoint`, a lookup is a `CheckpointError`.

    Attributes
    ----------
    path : str
        The file, as it was given.
    format : str
        The file's format in words, such as ``PyTorch zip``.
    size : int
        The file's length in bytes.
    unlisted : dict of str to str
        What can be done about each tensor that is not listed, by name.
    header : str or None
        The text that makes an ``.npz`` a converted checkpoint.
    """

    def __init__(self, path: str, stamp: Stamp, contents: Contents) -> None:
        self.path = path
        self.format = contents.format
        self.header = contents.header
        self.size = stamp.size
        self._entries = contents.entries
        self._names = tuple(name for name, entry in contents.entries.items() if entry.read)
        self.unlisted = {
            name: entry.remedy for name, entry in contents.entries.items() if not entry.read
        }
        self._stamp = stamp
        # A later change of the working directory must not turn the path into another file's.
        self._absolute = os.path.abspath(path)  # noqa: PTH100 - `Path.absolute` keeps `..`

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self._entries[name]
        self.verify(name)
        with reading(self.path, self.format):
            if entry.read is None:
                raise CheckpointError(
                    f"{shown(name)} must be a Boolean, integer or float tensor",
                    entry.spec.dtype,
                    entry.remedy,
                )
            with self._opened() as file:
                array = entry.read(file)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._entries and self._entries[name].read is not None

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path!r}: {self.format}, {len(self)} tensors>"

    def spec(self, name: str) -> TensorSpec:
        """Describe a tensor, listed or not, without reading it; KeyError if there is none."""
        return self._entries[name].spec

    def verify(self, name: str) -> None:
        """Raise the CheckpointError of a tensor that is not listed because it is damaged."""
        verify = self._entries[name].verify
        if verify:
            with reading(self.path, self.format), self._opened() as file:
                verify(file)

    def sha256(self) -> str:
        """Return the file's SHA-256 as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        with naming(self.path, self.format), self._opened() as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Open the file for reading, if it is still the one whose layout is known."""
        with open_regular(self._absolute) as (file, stamp):
            self._check_unchanged(stamp)
            yield file
            self._check_unchanged(_stamp(file))

    def _check_unchanged(self, stamp: Stamp) -> None:
        """Refuse to read on from a file that is not the one whose layout is known."""
        if stamp != self._stamp:
            raise CheckpointError(
                "the file must stay as it was when it was opened",
                "that it has changed since",
                "call `read_checkpoint` again",
            )


@contextlib.contextmanager
def reading(path: str, file_format: str | None = None) -> Iterator[None]:
    """Name the file in errors, and make one of what the process lacks to read it."""
    with naming(path, file_format):
        try:
            yield
        except (MemoryError, RecursionError) as error:
            raise CheckpointError(
                "the process must have the memory and the stack to read the file",
                type(error).__name__,
                "save only the state dict, or read it in a process with more of both",
            ) from None


def exactly(file: BinaryIO, position: int, count: int, what: str) -> bytes:
    """Read `count` bytes at `position`, which may lie outside the file."""
    size = file.seek(0, os.SEEK_END)
    # Checked first: `read` would allocate whatever the file claims.
    inside = 0 <= position <= size - count
    data = file.read(count) if inside and file.seek(position) == position else b""
    if len(data) != count:
        raise damaged(f"{what} must lie within the file's {size} bytes", f"byte {position}")
    return data


@contextlib.contextmanager
def open_regular(path: str) -> Iterator[tuple[BinaryIO, Stamp]]:
    """Open a regular file to read; a pipe, a device or a directory is refused, and never waits."""
    # Looking first matters for devices, where opening alone can have effects; looking again
    # after opening, because the path may have come to mean something else.
    _check_regular(os.stat(path).st_mode)  # noqa: PTH116 - one call for all kinds of path
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _check_regular(os.fstat(descriptor).st_mode)
        yield file, _stamp(file)


def _check_regular(mode: int) -> None:
    """Refuse everything that is not a regular file."""
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise CheckpointError("the path must lead to a file", kind, "give the path of the file")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _stamp(file: BinaryIO) -> Stamp:
    """Identify the open file."""
    status = os.fstat(file.fileno())
    return Stamp(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )
