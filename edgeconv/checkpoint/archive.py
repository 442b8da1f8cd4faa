"""
Zip archives, as far as `.npz` and PyTorch's files use them.

Python's `zipfile` accepts names that occur twice and records that overlap, and refuses PyTorch's
archives without checksums; this reader is the other way round in each case.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from edgeconv.checkpoint.error import CheckpointError, damaged, shown
from edgeconv.checkpoint.mapping import exactly

__all__ = ["DEFLATED", "INFLATED_RATIO", "Archive"]

RECORDS = 2**18  # the largest models have some thousand
DIRECTORY_BYTES = 2**26  # of the list of records
INFLATED_FLOOR = 2**26  # bytes that deflated records may always take
INFLATED_RATIO = 64  # beyond the floor, times the file's size; weights reach less than 2
CHUNK = 2**18

CUT = "other bytes, as in a file that was cut short"
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x2041  # three flags: encrypted, strongly, or with a masked directory
SIZES_FOLLOW = 0x0008
IN_ZIP64 = 0xFFFFFFFF
END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")


class Record(NamedTuple):
    """A file in the archive, as the central directory describes it."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    stored_size: int
    size: int
    start: int
    end: int
    """Where its local header starts, and the next record's or the directory."""


class Archive:
    """The records of a zip file by name, in the order of their data; folders are left out."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        records = _records(*_directory(file, size))
        # Also of those that nobody reads: one of another name may be missing elsewhere.
        for record in records:
            _data_start(file, record)
        self.records = {r.name: r for r in records if not r.name.endswith("/")}
        inflated = sum(r.size for r in self.records.values() if r.method == DEFLATED)
        if inflated > max(INFLATED_FLOOR, INFLATED_RATIO * size):
            raise CheckpointError(
                f"the records must inflate to at most {INFLATED_RATIO} times the file's size",
                f"{inflated} bytes from {size}",
                "save it without compression",
            )
        # PyTorch can be told to leave checksums out, and then writes 0 everywhere.
        self._has_checksums = any(record.crc for record in self.records.values())
        self._verified: set[str] = set()

    def read(
        self, file: BinaryIO, name: str, start: int = 0, stop: int | None = None
    ) -> bytes | bytearray:
        """Read a record, or a part of it, and verify its checksum the first time."""
        record = self.records[name]
        stop = record.size if stop is None else stop
        if record.method == STORED and name in self._verified:
            return exactly(file, _data_start(file, record) + start, stop - start, shown(name))
        part = bytearray(stop - start)
        position = crc = 0
        for chunk in _chunks(file, record):
            crc = zlib.crc32(chunk, crc)
            first, last = max(start, position), min(stop, position + len(chunk))
            if first < last:
                part[first - start : last - start] = chunk[first - position : last - position]
            position += len(chunk)
        if self._has_checksums and crc != record.crc:
            expected = f"record {shown(name)} must have the checksum {record.crc:08x}"
            raise damaged(expected, f"{crc:08x}")
        self._verified.add(name)
        return part

    def peek(self, file: BinaryIO, name: str, count: int) -> bytes:
        """Read the first bytes of a record, as many as there are up to `count`, unverified."""
        head = b""
        for chunk in _chunks(file, self.records[name], min(count, CHUNK)):
            head += chunk
            if len(head) >= count:
                break
        return head[:count]


def _directory(file: BinaryIO, size: int) -> tuple[bytes, int, int]:
    """Return the central directory, its number of entries and its position."""
    end_position = size - END.size
    end = END.unpack(exactly(file, end_position, END.size, "the end of the archive"))
    signature, *disks, entries, total, length, start, comment = end
    if signature != b"PK\x05\x06" or comment:
        raise damaged("a zip archive must end with its directory's end record", CUT)
    locator_position = end_position - END64_LOCATOR.size
    if locator_position >= 0:
        raw = exactly(file, locator_position, END64_LOCATOR.size, "the end of the archive")
        signature, _, position, _ = END64_LOCATOR.unpack(raw)
        if signature == b"PK\x06\x07":
            end_position = locator_position - END64.size
            raw = exactly(file, end_position, END64.size, "the 64-bit end of the archive")
            signature, _, _, _, *disks, entries, total, length, start = END64.unpack(raw)
            if signature != b"PK\x06\x06" or position != end_position:
                raise damaged("the zip archive must have a 64-bit end record", "other bytes")
    if any(disks) or entries != total:
        raise damaged("the zip archive must be in one part", "one of several parts")
    if start + length != end_position:
        raise damaged(
            f"the zip archive's directory must end at byte {end_position}", str(start + length)
        )
    if total > RECORDS:
        raise CheckpointError(
            f"the zip archive must have at most {RECORDS} records", str(total), "save less in it"
        )
    if length > DIRECTORY_BYTES:
        raise CheckpointError(
            f"the zip archive's directory must have at most {DIRECTORY_BYTES} bytes",
            str(length),
            "save less in it",
        )
    return exactly(file, start, length, "the zip archive's directory"), total, start


def _records(directory: bytes, total: int, directory_start: int) -> list[Record]:
    """Parse the central directory; the records come in the order of their data."""
    records = []
    position = 0
    for _ in range(total):
        record, position = _record(directory, position)
        records.append(record)
    if position != len(directory):
        raise damaged(f"the zip archive's directory must list {total} records", "more bytes")
    records.sort(key=lambda record: record.start)
    ends = [record.start for record in records[1:]] + [directory_start]
    placed = []
    for record, end in zip(records, ends, strict=False):
        if record.start + LOCAL.size + len(record.raw_name) + record.stored_size > end:
            raise damaged(f"record {shown(record.name)} must end at byte {end}", "that it overlaps")
        placed.append(record._replace(end=end))
    if len({record.name for record in placed}) != total:
        raise damaged("the names in the zip archive must differ", "one that occurs twice")
    return placed


def _record(directory: bytes, position: int) -> tuple[Record, int]:
    """Parse the entry at `position`; return it and the position of the next one."""
    fixed = directory[position : position + CENTRAL.size]
    if len(fixed) < CENTRAL.size or not fixed.startswith(b"PK\x01\x02"):
        raise damaged("the zip archive's directory must list its records", "other bytes")
    _, _, _, flags, method, _, _, crc, stored, size, *lengths, _, _, _, start = CENTRAL.unpack(
        fixed
    )
    name_start = position + CENTRAL.size
    _, extra_start, comment_start, position = itertools.accumulate(lengths, initial=name_start)
    raw_name, extra = directory[name_start:extra_start], directory[extra_start:comment_start]
    try:
        name = raw_name.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or "\0" in name:
        raise damaged("the names in the zip archive must be UTF-8 text", raw_name[:64].hex(" "))
    if flags & ENCRYPTED or method not in (STORED, DEFLATED):
        raise CheckpointError(
            f"record {shown(name)} must be stored or deflated",
            "an encrypted one" if flags & ENCRYPTED else f"compression method {method}",
            "save it without compression or password",
        )
    size, stored, start = _wide(extra, (size, stored, start), name)
    if method == STORED and size != stored:
        raise damaged(f"record {shown(name)} must have {size} bytes", str(stored))
    return Record(name, raw_name, flags, method, crc, stored, size, start, 0), position


def _wide(extra: bytes, narrow: tuple[int, int, int], name: str) -> list[int]:
    """Replace the numbers that do not fit 32 bits by those of the 64-bit extra field."""
    fields = []
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4 + length
        if kind == 1:
            fields.append(extra[position - length : position])
    wide = fields[0] if len(fields) == 1 else b""
    numbers = iter([number for (number,) in struct.iter_unpack("<Q", wide[: len(wide) // 8 * 8])])
    values = [next(numbers, -1) if value == IN_ZIP64 else value for value in narrow]
    if -1 in values:
        expected = f"record {shown(name)} must state its 64-bit size once"
        raise damaged(expected, "none" if not fields else "others")
    return values


def _data_start(file: BinaryIO, record: Record) -> int:
    """Check the header in front of a record's data; return the position after it."""
    what = f"record {shown(record.name)}"
    raw = exactly(file, record.start, LOCAL.size, what)
    signature, _, flags, method, _, _, *numbers, name_length, extra_length = LOCAL.unpack(raw)
    start: int = record.start + LOCAL.size + name_length + extra_length
    stated = (record.crc, record.stored_size, record.size)
    agrees = all(
        number in (expected, IN_ZIP64) or (flags & SIZES_FOLLOW and number == 0)
        for number, expected in zip(numbers, stated, strict=True)
    )
    if (
        signature != b"PK\x03\x04"
        or (flags, method) != (record.flags, record.method)
        or not agrees
        or file.read(name_length) != record.raw_name
        or start + record.stored_size > record.end
    ):
        raise damaged(f"{what} must have the header that the directory describes", "another")
    return start


def _chunks(file: BinaryIO, record: Record, count: int = CHUNK) -> Iterator[bytes]:
    """Yield the record's content piece by piece, and check its length."""
    file.seek(_data_start(file, record))
    left, produced = record.stored_size, 0
    inflater = zlib.decompressobj(-zlib.MAX_WBITS) if record.method == DEFLATED else None
    while left and not (inflater and inflater.eof):
        chunk = file.read(min(count, left))
        if not chunk:
            raise _cut_short(record)
        left -= len(chunk)
        if inflater is None:
            yield chunk
            continue
        piece = b""
        # Once it has seen the end, zlib leaves what follows in `unconsumed_tail` for ever.
        while not inflater.eof and produced <= record.size and (chunk or len(piece) == CHUNK):
            try:
                piece = inflater.decompress(chunk, CHUNK)
            except zlib.error:
                break
            chunk = inflater.unconsumed_tail
            produced += len(piece)
            yield piece
    if inflater and (not inflater.eof or inflater.unused_data or left or produced != record.size):
        raise damaged(f"record {shown(record.name)} must inflate to {record.size} bytes", "others")


def _cut_short(record: Record) -> CheckpointError:
    """Return the error for a file that ends within a record."""
    return damaged(f"record {shown(record.name)} must have {record.size} bytes", "fewer")
