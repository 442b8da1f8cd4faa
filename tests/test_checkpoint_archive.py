"""Zip archives: damage is noticed, whatever the records hold."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch_files
from torch_files import tensor

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.archive import CHUNK

VALUES = np.arange(1000, dtype=np.float32)
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.pth"


def npz(deflated=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if deflated else np.savez)(file, **arrays)
    return bytearray(file.getvalue())


def refused(target, data, match):
    target.write_bytes(data)
    with pytest.raises(CheckpointError, match=match) as caught:
        dict(read_checkpoint(target))
    assert str(caught.value).startswith(f"{target}: ")


def patched(data, signature, offset, value, nth=0):
    position = -1
    for _ in range(nth + 1):
        position = data.index(signature, position + 1)
    data = bytearray(data)
    data[position + offset : position + offset + len(value)] = value
    return data


def test_checksums_are_verified(target):
    for data in (npz(x=VALUES), torch_files.saved({"x": tensor(VALUES)})):
        bad = bytearray(data)
        bad[data.index(VALUES[500:504].tobytes())] ^= 1
        refused(target, bad, "must have the checksum [0-9a-f]{8}, found [0-9a-f]{8}; the file is d")


def test_an_archive_without_checksums_is_read(target):
    data = torch_files.with_checksums(torch_files.saved({"x": tensor(VALUES)}), 0)
    target.write_bytes(data)
    assert np.array_equal(read_checkpoint(target)["x"], VALUES)
    refused(target, torch_files.with_checksums(data, 1), "must have the checksum 00000001")


def test_every_single_wrong_byte_is_refused_or_harmless(target):
    good = npz(x=np.arange(3, dtype=np.int16), y=np.float64(5))
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 0x55
        target.write_bytes(data)
        try:
            checkpoint = read_checkpoint(target)
            for name in checkpoint.unlisted:
                checkpoint.verify(name)
            read = dict(checkpoint)
        except CheckpointError:
            continue
        assert sorted(map(repr, read.values())) == [
            "array(5.)",
            "array([0, 1, 2], dtype=int16)",
        ]


@pytest.mark.parametrize("deflated", [False, True])
def test_truncated_files_are_refused(target, deflated):
    data = npz(deflated, x=VALUES, y=VALUES)
    for length in range(0, len(data), 64):
        refused(target, data[:length], ".")
    refused(target, data + b"\0", "end with its directory's end record, found other bytes, as in")
    refused(target, data[:-30], "end with its directory's end record")
    refused(target, data[:20], "the end of the archive must lie within the file's 20 bytes")


def test_a_file_that_shrinks_while_it_is_read(target):
    target.write_bytes(torch_files.saved({"x": tensor(VALUES)}))
    checkpoint = read_checkpoint(target)
    target.write_bytes(target.read_bytes()[:700])
    with pytest.raises(CheckpointError, match="that it has changed since; call `read_checkpoint`"):
        checkpoint["x"]


def test_a_file_rewritten_in_place_with_its_old_date_is_noticed(target):
    target.write_bytes(npz(x=VALUES))
    checkpoint = read_checkpoint(target)
    before = target.stat()
    while target.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of files is a coarse one
        target.write_bytes(npz(x=VALUES + 1))
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match="that it has changed since; call `read_checkpoint`"):
        checkpoint["x"]


def test_a_file_cut_short_under_the_reader(target, monkeypatch):
    target.write_bytes(torch_files.saved({"x": tensor(VALUES)}))
    checkpoint = read_checkpoint(target)
    monkeypatch.setattr(type(checkpoint), "_check_unchanged", lambda *_: None)
    target.write_bytes(target.read_bytes()[:700])
    with pytest.raises(CheckpointError, match="'archive/data/0' must have 4000 bytes, found fewer"):
        checkpoint["x"]


def test_a_file_replaced_while_open_is_noticed_after_reading(target):
    target.write_bytes(npz(x=VALUES))
    checkpoint = read_checkpoint(target)
    with pytest.raises(CheckpointError, match="has changed"), checkpoint._opened():
        target.write_bytes(npz(x=VALUES, y=VALUES))


def test_names_must_differ(target):
    data = npz(x=VALUES, y=VALUES).replace(b"y.npy", b"x.npy")
    refused(target, data, "names in the zip archive must differ, found one that occurs")


def test_records_must_not_overlap(target):
    data = npz(x=VALUES, y=VALUES)
    second = patched(data, CENTRAL, 42, struct.pack("<L", 64), nth=1)
    refused(target, second, "must end at byte 64, found that it overlaps")


@pytest.mark.parametrize(
    ("signature", "offset", "value", "match"),
    [
        (CENTRAL, 0, b"XX", "directory must list its records, found other bytes"),
        (CENTRAL, 8, b"\1", "must be stored or deflated, found an encrypted one"),
        (CENTRAL, 10, b"\x0e", "must be stored or deflated, found compression method 14"),
        (CENTRAL, 20, b"\0", "record 'x.npy' must have 4128 bytes"),
        (CENTRAL, 28, b"\xff\xff", "directory must list 1 records, found more bytes"),
        (CENTRAL, 46, b"\xff", "the names in the zip archive must be UTF-8 text, found ff 2e"),
        (CENTRAL, 28, b"\0\0", "the names in the zip archive must be UTF-8 text, found "),
        (CENTRAL, 32, b"\1", "directory must list 1 records, found more bytes|list its records"),
        (CENTRAL, 46, b"\0", "must be UTF-8 text, found 00 2e"),
        (CENTRAL, 24, b"\xff\xff\xff\xff", "must state its 64-bit size once, found none"),
        (LOCAL, 30, b"y", "'x.npy' must have the header that the directory describes"),
        (LOCAL, 28, b"\xff\xff", "'x.npy' must have the header that the directory describes"),
        (LOCAL, 8, b"\x08", "'x.npy' must have the header that the directory describes"),
        (LOCAL, 14, b"\1", "'x.npy' must have the header that the directory describes"),
        (b"PK\x05\x06", 4, b"\1", "zip archive must be in one part"),
        (b"PK\x05\x06", 8, b"\2\0\2\0", "directory must list its records"),
        (b"PK\x05\x06", 12, b"\1", r"directory must end at byte \d+, found \d+"),
        (b"PK\x05\x06", 20, b"\1", "must end with its directory's end record"),
    ],
)
def test_a_wrong_field_is_refused(target, signature, offset, value, match):
    refused(target, patched(npz(x=VALUES), signature, offset, value), match)


def test_more_records_than_the_directory_says(target):
    data = patched(npz(x=VALUES, y=VALUES), b"PK\x05\x06", 8, b"\1\0\1\0")
    refused(target, data, "directory must list 1 records, found more bytes")


def test_deflated_data_must_inflate_to_its_size(target):
    data = npz(True, x=VALUES)
    start = data.index(LOCAL) + 30 + len("x.npy") + 20
    for offset in (0, 200):
        bad = bytearray(data)
        bad[start + offset] ^= 0xFF
        refused(target, bad, "must inflate to 4128 bytes|checksum|type and shape|format 1 to 3")
    short = patched(data, CENTRAL, 24, struct.pack("<L", 1000))
    refused(target, short, "must inflate to 1000 bytes|must have the header that the directory")


def deflated_archive(content, stated):
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packed.compress(content) + packed.flush()
    sizes = struct.pack("<3L2H", zlib.crc32(content), len(raw), stated, 5, 0)
    local = LOCAL + struct.pack("<5H", 20, 0, 8, 0, 0) + sizes + b"x.npy" + raw
    central = CENTRAL + struct.pack("<6H", 20, 20, 0, 8, 0, 0) + sizes
    central += struct.pack("<3HLL", 0, 0, 0, 0, 0) + b"x.npy"
    return (
        local
        + central
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    )


def test_a_bomb_is_refused_before_it_inflates(target):
    array = io.BytesIO()
    np.save(array, np.zeros(2**18, np.uint8))
    content = array.getvalue()
    target.write_bytes(deflated_archive(content, len(content)))
    assert not read_checkpoint(target)["x"].any()
    refused(target, deflated_archive(content, 2**27), "inflate to at most 64 times the file's size")
    refused(target, deflated_archive(content * 20, len(content)), "must inflate to 262272 bytes")
    refused(target, deflated_archive(b"", len(content)), "must inflate to 262272 bytes")


def test_a_record_that_lies_inflates_to_a_chunk_more_at_most(target, monkeypatch):
    inflated, decompressobj = [], zlib.decompressobj

    class Counting:
        def __init__(self, bits):
            self.inflater = decompressobj(bits)
            inflated.append(0)

        def __getattr__(self, name):
            return getattr(self.inflater, name)

        def decompress(self, data, most):
            piece = self.inflater.decompress(data, most)
            inflated[-1] += len(piece)
            return piece

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    content = npz_record(np.zeros(CHUNK, np.uint8))
    stated = len(content)
    refused(target, deflated_archive(content * 20, stated), f"must inflate to {stated} bytes")
    assert stated < max(inflated) <= stated + CHUNK


def test_folders_are_left_out(target):
    files = {"folder/": b"", "x.npy": npz_record(VALUES)}
    target.write_bytes(torch_files.zipped(files))
    assert list(read_checkpoint(target)) == ["x"]
    others = torch_files.zipped({**files, "readme.txt": b"hello"})
    refused(target, others, r"an \.npz must hold \.npy records only, found 'readme.txt'")


def npz_record(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_64_bit_archives(target):
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("x.npy", "w", force_zip64=True) as record,
    ):
        record.write(npz_record(VALUES))
    data = bytearray(file.getvalue())
    end = data.index(b"PK\x05\x06")
    start = data.index(CENTRAL)
    # The directory's numbers moved to the 64-bit fields, as for an archive beyond 4 GiB.
    central = bytearray(data[start:end])
    (size,) = struct.unpack_from("<L", central, 24)
    central[20:28] = b"\xff" * 8
    central[42:46] = b"\xff" * 4
    extra = struct.pack("<2H2B", 7, 2, 0, 0) + struct.pack("<2H3Q", 1, 24, size, size, 0)
    central[30:32] = struct.pack("<H", len(extra))
    central = central[:51] + extra
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(central), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(central), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    good = bytes(data[:start] + central + end64 + locator + last)
    target.write_bytes(good)
    assert np.array_equal(read_checkpoint(target)["x"], VALUES)
    refused(target, patched(good, b"PK\6\6", 0, b"XX"), "must have a 64-bit end record")
    twice = struct.pack("<2H3Q", 1, 24, size, size, 0) * 2 + bytes(3)
    refused(
        target,
        data[:start]
        + patched(central[:51] + twice, CENTRAL, 30, struct.pack("<H", len(twice)))
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 51 + len(twice), start, 0),
        "'x.npy' must state its 64-bit size once, found others",
    )
    refused(target, patched(good, b"PK\6\7", 8, b"\1"), "must have a 64-bit end record")
    refused(target, patched(good, b"PK\6\6", 40, b"\xff" * 8), "directory must end at byte")


def test_too_many_records_are_refused(target, monkeypatch):
    monkeypatch.setattr("edgeconv.checkpoint.archive.RECORDS", 1)
    refused(target, npz(x=VALUES, y=VALUES), "at most 1 records, found 2; save less in it")
