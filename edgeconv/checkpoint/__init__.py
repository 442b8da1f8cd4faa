"""Files with tensors in them, as mappings of names to arrays."""

from __future__ import annotations

import os
from typing import BinaryIO

from edgeconv.checkpoint import legacy, npz, pytorch, safetensors
from edgeconv.checkpoint.archive import Archive
from edgeconv.checkpoint.error import CheckpointError, damaged, naming, shown
from edgeconv.checkpoint.mapping import Checkpoint, Contents, TensorSpec, open_regular, reading
from edgeconv.checkpoint.wrong import HEAD_BYTES, wrong_archive, wrong_file
from edgeconv.files import as_text

__all__ = ["Checkpoint", "CheckpointError", "TensorSpec", "read_checkpoint"]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """
    Open a checkpoint of PyTorch, safetensors or NumPy.

    Parameters
    ----------
    path : str or path-like
        The file. Its content decides what it is, not its name.

    Returns
    -------
    Checkpoint
        A read-only mapping of names to arrays, in file order. A tensor is read when it is looked
        up. Tensors that are not Boolean, integer or float are not listed.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint, is damaged, or holds no such tensor.
    OSError
        If the file is missing, or may not be read.

    Notes
    -----
    Nothing in the file is executed: no object that it describes is imported or constructed.
    """
    name = as_text("path", path)
    with reading(name), open_regular(name) as (file, stamp):
        contents = _contents(file, stamp.size)
        with naming(file_format=contents.format):
            if not any(entry.read for entry in contents.entries.values()):
                raise _nothing_listed(contents)
    return Checkpoint(name, stamp, contents)


def _contents(file: BinaryIO, size: int) -> Contents:
    """Recognise the format, and describe the tensors."""
    head = file.read(min(size, HEAD_BYTES))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped(file, size)
    if head.startswith(b"\x80") and legacy.MAGIC in head[:32]:
        with naming(file_format=legacy.FORMAT):
            return legacy.read(file, size)
    # The length of a header that could be read, and a header: no other format starts so.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= safetensors.HEADER_BYTES:
        with naming(file_format=safetensors.FORMAT):
            return safetensors.read(file, size)
    raise wrong_file(head)


def _zipped(file: BinaryIO, size: int) -> Contents:
    """Recognise what a zip archive holds, and describe the tensors."""
    with naming(file_format="zip archive"):
        archive = Archive(file, size)
        if error := wrong_archive(archive.records):
            raise error
        pickles = [name for name in archive.records if ("/" + name).endswith("/data.pkl")]
        if len(pickles) > 1:
            raise damaged("the archive must have one data.pkl", shown(", ".join(pickles)))
    with naming(file_format=pytorch.FORMAT if pickles else npz.FORMAT):
        if pickles:
            return pytorch.read(file, archive, pickles[0].removesuffix("data.pkl"))
        return npz.read(file, archive)


def _nothing_listed(contents: Contents) -> CheckpointError:
    """Return the error for a file without a tensor to list."""
    for name, entry in contents.entries.items():
        dtype = entry.spec.dtype
        found = f"only others, such as {shown(name)} of {dtype}" if name else f"only {dtype}"
        return CheckpointError(_EXPECTED, found, entry.remedy)
    return CheckpointError(_EXPECTED, "none", "save `model.state_dict()` with `torch.save`")


_EXPECTED = "the file must hold a Boolean, integer or float tensor"
