"""
What `torch.save` wrote before PyTorch 1.6, and still writes if it is asked to.

Five pickles follow one another: a magic number, the protocol's version, the writer's system, the
saved value, and the keys of its storages. Then come the storages in the order of their keys, each
a number of elements and the elements. Nothing says where they are: it follows from their sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from edgeconv.checkpoint.elements import item_size
from edgeconv.checkpoint.error import CheckpointError, damaged, naming, shown
from edgeconv.checkpoint.mapping import Contents, exactly
from edgeconv.checkpoint.pickled import Global, Object, load
from edgeconv.checkpoint.pytorch import Storages, contents, is_size, rebuild
from edgeconv.checkpoint.views import Storage

__all__ = ["FORMAT", "MAGIC", "read"]

FORMAT = "PyTorch legacy"
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of the magic number, without its protocol
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read(file: BinaryIO, size: int) -> Contents:
    """Describe the tensors of a file of `size` bytes."""
    file.seek(0)
    numbers = [_pickled(file, size, part) for part in ("magic number", "version")]
    if numbers != [MAGIC_NUMBER, VERSION]:
        raise damaged(f"the file must start with its magic number and version {VERSION}", "others")
    little = _little_endian(_pickled(file, size, "system"))
    # Elements of several bytes are little-endian on every machine; bytes are written as they are.
    storages = Storages("little" if little else "big", "little")
    start = file.tell()
    root = _pickled(file, size, "value", lambda value: _persistent(value, storages))
    pickle_size = file.tell() - start
    keys = _pickled(file, size, "storage keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged("the storage keys must be a list of texts", "something else")
    if len(keys) != len(storages.by_key) or set(keys) != storages.by_key.keys():
        raise damaged("the storage keys must be those that the pickle describes", "others")
    starts = {}
    position = file.tell()
    for key in keys:
        storage = storages.by_key[key]
        starts[key] = position + 8
        position = starts[key] + _checked_size(file, position, storage)
    if position != size:
        raise damaged(f"the storages must end with the file, at byte {size}", f"byte {position}")

    def fetch(file: BinaryIO, key: str, start: int, stop: int) -> bytes:
        return exactly(file, starts[key] + start, stop - start, f"storage {shown(key)}")

    return contents(FORMAT, root, pickle_size, fetch)


def _pickled(
    file: BinaryIO, size: int, part: str, persistent: Callable[[object], object] | None = None
) -> object:
    """Follow the pickle at the file's position."""
    with naming(record=f"the pickle of the {part}"):
        return load(file, size - file.tell(), rebuild, persistent or _refused)


def _refused(_: object) -> object:
    """Refuse storages where there cannot be any."""
    raise damaged("the pickle must hold a plain value", "a reference to a storage")


def _little_endian(system: object) -> bool:
    """Return the writer's byte order."""
    for key, value in system.items if isinstance(system, Object) else ():
        if key == "little_endian" and isinstance(value, bool):
            return value
    raise damaged("the writer's system must state its byte order", "nothing about it")


def _persistent(description: object, storages: Storages) -> Storage | Global:
    """Turn a description in the pickle into a storage, a part of one, or the class of a module."""
    match description:
        case tuple(("module", Global() as module, _, _)):
            return module
        case tuple((*whole, None)):
            return storages.described(tuple(whole))
        case tuple((*whole, tuple((str(), first, count)))) if is_size(first) and is_size(count):
            storage = storages.described(tuple(whole))
            if first + count <= storage.count:
                return replace(storage, first=first, stop=first + count)
    raise damaged("the pickle must describe storages by type, key, size and part", "something else")


def _checked_size(file: BinaryIO, position: int, storage: Storage) -> int:
    """Check the count of a storage's elements; return the number of bytes after it."""
    what = f"storage {shown(storage.key)}"
    if not item_size(storage.dtype):
        raise CheckpointError(
            f"{what} must be of a known type",
            storage.dtype,
            "load the file in PyTorch and save it again with `torch.save`",
        )
    count = int.from_bytes(exactly(file, position, 8, what), "little")
    if count != storage.count:
        raise damaged(f"{what} must have {storage.count} elements", str(count))
    return storage.size
