"""NumPy's `.npz`: a zip of `.npy` records, each a short text and the elements."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint.archive import Archive
from edgeconv.checkpoint.elements import decoded, element_count, item_size, listed
from edgeconv.checkpoint.error import damaged, shown
from edgeconv.checkpoint.mapping import UNLISTED, Contents, Entry, TensorSpec, check_name
from edgeconv.files import replacing

__all__ = ["FORMAT", "HEADER", "read", "write"]

FORMAT = "NumPy npz"

HEADER = "edgeconv"  # the name of the text that makes a `.npz` a converted checkpoint
HEADER_BYTES = 2**24  # of that text
PREAMBLE_BYTES = 2**16  # more than any `.npy` needs for its type and shape
FORMATS = {1: ("<u2", "latin-1"), 2: ("<u4", "latin-1"), 3: ("<u4", "utf-8")}

# The preamble is the text of a dictionary. NumPy evaluates it as Python; three fields need less.
_FIELD = re.compile(
    r"""\s*(?:
        'descr'\s*:\s*(?P<descr>'[^']*'|\[.*\](?=\s*[,}]))
      | 'fortran_order'\s*:\s*(?P<fortran_order>True|False)
      | 'shape'\s*:\s*(?P<shape>\((?:\d{1,19}L?,\s*)*(?:\d{1,19}L?)?\))
    )\s*,?\s*""",
    re.DOTALL | re.VERBOSE,
)
_DESCR = re.compile(r"'(?P<order>[<>|=]?)(?P<kind>[a-zA-Z?])(?P<length>\d{0,9})(?:\[\w*\])?'")


class Preamble(NamedTuple):
    """What precedes the elements of an array."""

    spec: TensorSpec
    length: int
    byte_order: str
    fortran_order: bool


def read(file: BinaryIO, archive: Archive) -> Contents:
    """Describe the arrays of a `.npz`, each named as its record is, without ``.npy``."""
    entries: dict[str, Entry] = {}
    header = None
    for record in archive.records:
        if not record.endswith(".npy"):
            raise damaged("an .npz must hold .npy records only", shown(record))
        name = record.removesuffix(".npy")
        check_name(name)
        size = archive.records[record].size
        preamble = _preamble(archive.peek(file, record, PREAMBLE_BYTES), size, record)
        spec = preamble.spec
        if listed(spec.dtype):
            entries[name] = Entry(spec, partial(_array, archive, record, preamble))
        else:
            remedy = "pickled objects are never loaded: save plain arrays"
            remedy = remedy if spec.dtype == "object" else UNLISTED
            entries[name] = Entry(spec, None, remedy, partial(_verify, archive, record))
        if name == HEADER:  # damage must not make it disappear
            _verify(archive, record, file)
        if name == HEADER and spec.dtype == "str" and not spec.shape and size <= HEADER_BYTES:
            text = archive.read(file, record, preamble.length)
            encoding = f"utf-32-{'le' if preamble.byte_order == 'little' else 'be'}"
            header = text.decode(encoding, errors="replace").rstrip("\0")
    return Contents(FORMAT, entries, header)


def _preamble(head: bytes, size: int, record: str) -> Preamble:
    """Parse the bytes before the elements, and check that the elements fill the record."""
    version = head[6] if len(head) > 12 and head.startswith(b"\x93NUMPY") else 0
    if version not in FORMATS:
        raise damaged(f"record {shown(record)} must be an array of format 1 to 3", "another")
    length_type, encoding = FORMATS[version]
    text_start = 8 + np.dtype(length_type).itemsize
    length = text_start + int(np.frombuffer(head[8:text_start], length_type)[0])
    text = head[text_start:length].decode(encoding, errors="replace")
    fields: dict[str, str] = {}
    start = position = text.find("{") + 1
    for _ in range(3):
        if match := _FIELD.match(text, position):
            fields |= {name: value for name, value in match.groupdict().items() if value}
            position = match.end()
    outside = text[:start].strip() + text[position:].strip()
    if length > len(head) or len(fields) != 3 or outside != "{}":
        raise damaged(f"record {shown(record)} must state its type and shape", shown(text.strip()))
    shape = tuple(int(number) for number in re.findall(r"\d+", fields["shape"]))
    count = element_count(shape, f"record {shown(record)}")
    dtype, item = _dtype(fields["descr"])
    needed = length + count * item
    if item and needed != size:
        raise damaged(
            f"record {shown(record)} must have {needed} bytes for its shape", f"{size} bytes"
        )
    byte_order = "big" if fields["descr"].startswith("'>") else "little"
    return Preamble(TensorSpec(dtype, shape), length, byte_order, fields["fortran_order"] == "True")


def _dtype(descr: str) -> tuple[str, int]:
    """Name the element type that NumPy calls `descr`, and its size: 0 if it is not known."""
    match = _DESCR.fullmatch(descr)
    if match is None:
        return ("structured" if descr.startswith("[") else shown(descr)), 0
    kinds = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex", "O": "object"}
    kinds |= {"U": "str", "S": "bytes", "V": "void", "M": "datetime64", "m": "timedelta64"}
    kind, length = match["kind"], int(match["length"] or 0)
    name = kinds.get(kind, shown(descr))
    if kind in "iufc":
        name = f"{name}{8 * length}"
    return name, item_size(name)


def write(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a `.npz` in one step, the same bytes for the same arrays."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            record = io.BytesIO()
            np.lib.format.write_array(record, array, version=(1, 0), allow_pickle=False)
            # A `ZipInfo` of one's own has no date.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), record.getvalue())


def _verify(archive: Archive, record: str, file: BinaryIO) -> None:
    """Check the CRC of an array: damage to its type may be why it is not listed."""
    archive.read(file, record, archive.records[record].size)


def _array(archive: Archive, record: str, preamble: Preamble, file: BinaryIO) -> NDArray[Any]:
    """Read one array."""
    spec = preamble.spec
    raw = archive.read(file, record, preamble.length)
    elements = decoded(raw, spec.dtype, preamble.byte_order)
    return elements.reshape(spec.shape, order="F" if preamble.fortran_order else "C")
