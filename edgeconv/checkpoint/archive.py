"""Files, and zip archives as NumPy and PyTorch write them, read at positions and within bounds."""

import os
import stat
import struct
import weakref
import zipfile
import zlib

from edgeconv.checkpoint.error import CheckpointError, damaged, refuse_other, require, shown

INFLATED_FLOOR, INFLATED_RATIO = 2**26, 64  # what all may inflate to: bytes, or times the size
ENCRYPTED, UTF_8 = 0x2041, 0x800  # flags; encryption has three


class File:
    """An open file without a position of its own: threads and forked processes may share it."""

    def __init__(self, path: str) -> None:
        # Looked at before it is opened, which would wait for the writer of a pipe.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - Path("") is "."
            found = "a directory, a pipe or a device"
            raise CheckpointError("the path must lead to a file", found, "give a checkpoint's path")
        self.stream = open(path, "rb")  # noqa: PTH123, SIM115 - likewise; it stays open
        weakref.finalize(self, self.stream.close)
        self.size = os.fstat(self.stream.fileno()).st_size

    def read(self, position: int, count: int, what: str) -> bytearray:
        """Read `count` bytes at `position`, which may lie outside the file."""
        # Checked before it is allocated: a file may claim any size.
        within = 0 <= position <= self.size - count
        require(within, f"{what} must lie within the file's {self.size} bytes", "its end")
        content, descriptor = bytearray(count), self.stream.fileno()
        rest = memoryview(content)
        while rest and (n := os.preadv(descriptor, [rest], position + count - len(rest))):
            rest = rest[n:]
        require(not rest, "the file must stay as long as when it was opened", "a shorter one")
        return content


class Archive:
    """The records of an archive by name, in the order of its directory."""

    def __init__(self, file: File) -> None:
        self._file, self.limit = file, max(INFLATED_FLOOR, INFLATED_RATIO * file.size)
        try:
            with zipfile.ZipFile(file.stream) as archive:
                infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
        except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, struct.error) as error:
            raise damaged("a zip archive must be complete", shown(str(error))) from None
        # `zipfile` takes a directory that lost entries for a whole one.
        stated = bytes(file.read(file.size - 22, 22, "the end of the archive")[10:12])
        number = struct.pack("<H", len(archive.infolist()) & 0xFFFF)
        require(stated in (number, b"\xff\xff"), "a zip archive must be complete, as it counts")
        self.records = {info.filename: info for info in infos}
        refuse_other(self.records)
        require(len(self.records) == len(infos), "names in an archive must differ", "one twice")
        if sum(info.file_size for info in infos) > self.limit:
            expected = f"the archive must inflate to at most {self.limit} bytes"
            raise CheckpointError(expected, "more", "save it without compression")
        # PyTorch can be told to leave checksums out, and then writes 0 everywhere.
        self._verified = set() if any(info.CRC for info in infos) else set(self.records)
        self._starts = {info.filename: self._start(info) for info in infos}
        self.deflated = {info.filename for info in infos if info.compress_type}

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Check the header in front of a record, also of one that nobody reads; return its end."""
        what = f"record {shown(info.filename)}"
        if info.flag_bits & ENCRYPTED or info.compress_type not in (0, zipfile.ZIP_DEFLATED):
            expected = f"{what} must be stored or deflated, without a password"
            raise CheckpointError(expected, f"method {info.compress_type}", "save it again so")
        name = info.orig_filename.encode("utf-8" if info.flag_bits & UTF_8 else "cp437")
        header = self._file.read(info.header_offset, 30 + len(name), what)
        require(header[:4] + header[30:] == b"PK\3\4" + name, f"{what} must start with its header")
        return info.header_offset + len(header) + int.from_bytes(header[28:30], "little")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray:
        """Read a record, or a part of it, and verify its checksum the first time."""
        info, is_verified = self.records[name], name in self._verified
        stop = info.file_size if stop is None else stop
        if name not in self.deflated and is_verified and stop <= info.compress_size:
            return self.unverified(name, stop - start, start)
        content = self.unverified(name, info.file_size + 1)
        is_right = is_verified or zlib.crc32(content) == info.CRC
        is_right = is_right and len(content) == info.file_size
        require(is_right, f"record {shown(name)} must have its size and checksum")
        self._verified.add(name)
        return content if stop - start == len(content) else content[start:stop]

    def unverified(self, name: str, most: int, start: int = 0) -> bytes | bytearray:
        """Read at most so many bytes of a record, from `start` if it is not deflated."""
        size, what = self.records[name].compress_size, f"record {shown(name)}"
        count = size if name in self.deflated else min(most, size - start)
        content = self._file.read(self._starts[name] + start, count, what)
        try:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            return inflater.decompress(content, most) if name in self.deflated else content
        except zlib.error as error:
            raise damaged(f"{what} must inflate", str(error)) from None
