"""The formats without objects: `.safetensors` and `.npz`."""

import io
import json
import warnings
from functools import partial
from typing import Any

import numpy as np

from edgeconv.checkpoint.archive import Archive, File
from edgeconv.checkpoint.error import damaged, require, shown
from edgeconv.checkpoint.tensors import SIZES, STORED, Entry, are_sizes, count, decoded

HEADER_BYTES = 2**23  # of safetensors, enough for 70,000 tensors; parsed, it takes 33 times as much
DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
DTYPES |= {f"{k}{b}": f"{n}{b}" for k, n in (("I", "int"), ("U", "uint")) for b in (8, 16, 32, 64)}
DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"}
PREAMBLE_BYTES = 2**14  # of an array; NumPy reads no longer one
PARSERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
TEXT, TEXT_BYTES = "edgeconv", 2**24  # the text that makes an `.npz` a converted file


def read_safetensors(file: File) -> dict[str, Entry]:
    """Describe the tensors of a file, in the order of their data."""
    length = int.from_bytes(file.read(0, 8, "the header's length"), "little")
    require(length <= HEADER_BYTES, f"the header must have at most {HEADER_BYTES} bytes")
    text = file.read(8, length, "the header")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        places = sorted((_place(*item) for item in header.items()), key=lambda place: place[:2])
    except (ValueError, AttributeError, RecursionError) as error:
        expected = "the header must be a JSON object of tensors by unique names"
        raise damaged(expected, shown(str(error))) from None
    entries, end = {}, 0
    for start, stop, name, stored, shape in places:
        dtype = DTYPES.get(stored, shown(stored))
        n_bytes = count(shape, shown(name)) * SIZES.get(dtype, 0)
        is_right = start == end and (stop - start == n_bytes or dtype not in STORED)
        require(is_right, f"{shown(name)} must have {n_bytes} bytes at {end}", f"{start} to {stop}")
        fetch = partial(file.read, 8 + length + start, stop - start, name)
        read = partial(decoded, fetch, dtype, "little", shape) if dtype in STORED else None
        entries[name] = Entry(dtype, tuple(shape), stop - start, read)
        end = stop
    require(8 + length + end == file.size, f"tensors must end with the file, at {file.size}")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its fields."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name that occurs twice")
    return dict(pairs)


def _place(name: str, fields: Any) -> tuple[int, int, str, str, list[int]]:
    """Return where a tensor's bytes start and stop, its name, type and shape."""
    match fields:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]}:
            if len(fields) == 3 and are_sizes([start, stop]) and start <= stop:
                return start, stop, name, dtype, shape
    raise ValueError(f"{name}: {fields}")


def read_npz(archive: Archive) -> tuple[dict[str, Entry], str | None]:
    """Describe the arrays of an archive, and return the text of a converted file."""
    entries, text = {}, None
    for record, info in archive.records.items():
        what = f"record {shown(record)}"
        head = io.BytesIO(archive.unverified(record, PREAMBLE_BYTES))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about types that damage made
                shape, is_fortran, dtype = PARSERS[np.lib.format.read_magic(head)](head)
        except Exception as error:  # NumPy's parser fails in many ways on what is not its own
            found = type(error).__name__
            raise damaged(f"{what} must be an array of NumPy's format 1 or 2", found) from None
        kind = dtype.name if dtype.kind in "biufcO" else shown(str(dtype))
        start, n_bytes = head.tell(), info.file_size - head.tell()
        is_right = dtype.hasobject or n_bytes == count(shape, what) * dtype.itemsize
        require(is_right, f"{what} must have as many bytes as its type and shape", str(n_bytes))
        name, order = record.removesuffix(".npy"), "big" if dtype.str[0] == ">" else "little"
        fetch, axes = partial(archive.read, record, start), "CF"[is_fortran]
        read = partial(decoded, fetch, kind, order, shape, axes) if kind in STORED else None
        entries[name] = Entry(kind, shape, n_bytes, read)
        if not read:  # damage to its type may be the reason
            content = fetch()
            if name == TEXT and dtype.kind == "U" and not shape and n_bytes <= TEXT_BYTES:
                text = content.decode(f"utf-32-{order[0]}e", errors="replace").rstrip("\0")
    return entries, text
