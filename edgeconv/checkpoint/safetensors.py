"""The safetensors format: a length, a JSON text, and the bytes that it points into."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, BinaryIO, NoReturn

from numpy.typing import NDArray

from edgeconv.checkpoint.elements import decoded, element_count, item_size, listed
from edgeconv.checkpoint.error import CheckpointError, damaged, shown
from edgeconv.checkpoint.mapping import Contents, Entry, TensorSpec, check_name

__all__ = ["FORMAT", "HEADER_BYTES", "parse_object", "read"]

FORMAT = "safetensors"

HEADER_BYTES = 100_000_000  # the limit of the format's own library
PARSED_BYTES = 2**23  # enough for 70,000 tensors; parsed, they take up to 33 times as much
INTEGER_DIGITS = 32  # 2**64 has 20
DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
DTYPES |= {
    f"{kind}{bits}": name + bits
    for kind, name in (("I", "int"), ("U", "uint"))
    for bits in ("8", "16", "32", "64")
}
DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
DTYPES |= {"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "C64": "complex64"}


def read(file: BinaryIO, size: int) -> Contents:
    """Describe the tensors of a safetensors file of `size` bytes, in the order of their data."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES or 8 + length > size:
        raise damaged(f"the header must fit the file's {size} bytes", f"{length} bytes")
    if length > PARSED_BYTES:
        raise CheckpointError(
            f"the header must have at most {PARSED_BYTES} bytes", str(length), "save less in it"
        )
    header = parse_object(file.read(length), "the header")
    _check_metadata(header.pop("__metadata__", {}))
    entries: dict[str, Entry] = {}
    position = 0
    extents = {name: _extent(name, fields) for name, fields in header.items()}
    for name, (start, stop) in sorted(extents.items(), key=lambda item: item[1]):
        if start != position:
            raise damaged(f"{shown(name)} must start at byte {position} of the data", str(start))
        position = stop
        entries[name] = _entry(name, header[name], 8 + length + start, stop - start)
    if 8 + length + position != size:
        raise damaged(
            f"the tensors must end with the file, at byte {size}", f"byte {8 + length + position}"
        )
    return Contents(FORMAT, entries)


def parse_object(text: bytes | str, what: str) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no name twice, no NaN or infinity."""
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError):
        raise damaged(f"{what} must be a JSON object in UTF-8", "other bytes") from None
    if not isinstance(value, dict):
        raise damaged(f"{what} must be a JSON object", type(value).__name__)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its fields."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise damaged("the names in a JSON object must differ", "one that occurs twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    """Refuse the numbers that JSON does not have."""
    raise damaged("a JSON number must be finite", name)


def _integer(digits: str) -> int:
    """Convert a number of a length that is quick to convert."""
    if len(digits) > INTEGER_DIGITS:
        raise damaged(f"a JSON number must have at most {INTEGER_DIGITS} digits", "more")
    return int(digits)


def _check_metadata(metadata: object) -> None:
    """Refuse metadata that is not text by name."""
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged("'__metadata__' must hold text by name", "something else")


def _extent(name: str, fields: object) -> tuple[int, int]:
    """Return where a tensor's bytes start and stop."""
    check_name(name)
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise damaged(f"{shown(name)} must have dtype, shape and data_offsets", "other fields")
    offsets = fields["data_offsets"]
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(f"{shown(name)} must have two data_offsets", shown(str(offsets)))
    return offsets[0], offsets[1]


def _are_sizes(value: object) -> bool:
    """Tell whether a JSON value is a list of sizes; Python's Booleans would pass as integers."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _entry(name: str, fields: dict[str, Any], start: int, length: int) -> Entry:
    """Check the fields of a tensor, and describe it."""
    stored, shape = fields["dtype"], fields["shape"]
    if not isinstance(stored, str):
        raise damaged(f"{shown(name)} must have a dtype", shown(str(stored)))
    if not _are_sizes(shape):
        raise damaged(f"{shown(name)} must have a shape", shown(str(shape)))
    spec = TensorSpec(DTYPES.get(stored, shown(stored)), tuple(shape))
    count = element_count(spec.shape, shown(name))
    item = item_size(spec.dtype)
    if item and count * item != length:
        raise damaged(
            f"{shown(name)} must have {count * item} bytes for its shape", f"{length} bytes"
        )
    return Entry(spec, partial(_tensor, start, length, spec) if listed(spec.dtype) else None)


def _tensor(start: int, length: int, spec: TensorSpec, file: BinaryIO) -> NDArray[Any]:
    """Read one tensor."""
    file.seek(start)
    raw = file.read(length)
    if len(raw) != length:
        raise damaged(f"the tensor must have {length} bytes", f"{len(raw)} bytes")
    return decoded(raw, spec.dtype).reshape(spec.shape)
