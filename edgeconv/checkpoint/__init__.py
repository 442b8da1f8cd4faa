"""Files with tensors in them, as read-only mappings of names to arrays."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from edgeconv.checkpoint.archive import Archive, File
from edgeconv.checkpoint.error import SAVE, CheckpointError, naming, require, shown, wrong_file
from edgeconv.checkpoint.plain import read_npz, read_safetensors
from edgeconv.checkpoint.pytorch import Reader
from edgeconv.checkpoint.tensors import Entry, unlisted

__all__ = ["Checkpoint", "CheckpointError", "Entry", "read_checkpoint"]

NAME_CHARACTERS = 2**12


class Checkpoint(Mapping[str, NDArray[Any]]):
    """
    The tensors of a file by name, in file order, each read when it is looked up.

    A lookup returns a new read-only array in the file's element type and native byte order;
    bfloat16 and float8, which NumPy lacks, come as float32, exactly. `entries` describes all, also
    those that are not listed; `header` is the text that makes an ``.npz`` a converted file.
    """

    header: str | None = None

    def __init__(self, path: str) -> None:
        self.path, self._file = path, File(path)
        self.size = self._file.size
        head = bytes(self._file.read(0, min(self.size, 512), "the file"))
        if head[8:9] == b"{" and head[4:8] == bytes(4):
            self.format, self.entries = "safetensors", read_safetensors(self._file)
        elif head.startswith((b"PK\3\4", b"PK\5\6")):
            archive = Archive(self._file)
            pickles = [name for name in archive.records if f"/{name}".endswith("/data.pkl")]
            require(len(pickles) < 2, "the archive must have one data.pkl", shown(pickles))
            self.format = "PyTorch zip" if pickles else "NumPy npz"
            if pickles:
                self.entries = Reader(archive, pickles[0]).entries
            else:
                self.entries, self.header = read_npz(archive)
        else:
            raise wrong_file(head)
        for name in self.entries:
            if len(name) > NAME_CHARACTERS or not name.isprintable():
                expected = f"a name must be printable, of at most {NAME_CHARACTERS} characters"
                raise CheckpointError(expected, shown(name), "rename the tensor")
        if not len(self):
            for name, entry in self.entries.items():
                raise unlisted(name, entry.dtype)
            raise CheckpointError("the file must hold a tensor", "none", SAVE)

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        with naming(self.path):
            if entry.read is None:
                raise unlisted(name, entry.dtype)
            array = entry.read()
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self.entries.items() if entry.read)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.entries and bool(self.entries[name].read)

    def sha256(self) -> str:
        """Return the file's SHA-256 as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        with naming(self.path):
            for start in range(0, self.size, 2**20):
                digest.update(self._file.read(start, min(2**20, self.size - start), "the file"))
        return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """
    Open a checkpoint of PyTorch, safetensors or NumPy, whatever its name; nothing is executed.

    A CheckpointError says why a file is no checkpoint, is damaged, or lists no tensor.
    """
    name = os.fsdecode(path)
    with naming(name):
        return Checkpoint(name)
