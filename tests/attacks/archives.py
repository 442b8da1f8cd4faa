"""Zip archives that lie, overlap, explode or mean two things."""

import io
import struct
import zlib

import numpy as np
from torch_files import records, saved, tensor, with_checksums, zipped

from attacks.catalogue import W, loads, refused
from attacks.pickles import ONE

LOCAL = ("<4s5H3L2H", "signature version flags method time date crc stored size name extra")
CENTRAL = (
    "<4s6H3L5H2L",
    "signature made version flags method time date crc stored size name extra comment disk "
    "internal attributes start",
)
END = ("<4s4H2LH", "signature disk first entries total length start comment")
END64 = ("<4sQ2H2L4Q", "signature own made version disk first entries total length start")
ANOTHER = "must have the header that the directory describes, found another"
NOT_THE_END = "a zip archive must end with its directory's end record, found other bytes"
INSIDE = "must lie within the file's"


def packed(layout, **fields):
    form, names = layout
    return struct.pack(form, *(fields.get(name, 0) for name in names.split()))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAY = npy(W)


def deflate(content):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


DEFLATED = {"method": 8, "local": {"method": 8}}


class Record:
    """A record, whose headers say what is true but for the changes asked for."""

    def __init__(self, name="w.npy", content=ARRAY, *, data=None, local=(), extra=b"", **central):
        self.name = name if isinstance(name, bytes) else name.encode()
        self.data = content if data is None else data
        self.extra = extra
        fields = {"crc": zlib.crc32(content), "stored": len(self.data), "size": len(content)}
        fields |= {"version": 20, "name": len(self.name)}
        self.local = {"signature": b"PK\3\4", **fields, **dict(local)}
        self.central = {"signature": b"PK\1\2", **fields, "extra": len(extra), **central}
        self.local_name = self.name

    def header(self):
        return packed(LOCAL, **self.local) + self.local_name


def archive(*members, before=b"", gap=b"", after=b"", end64=None, end64_at=None, **end):
    """Return an archive of records."""
    data, directory = before, b""
    for member in members:
        directory += packed(CENTRAL, **{"start": len(data), **member.central})
        directory += member.name + member.extra
        data += member.header() + member.data + gap
    fields = {"entries": len(members), "total": len(members)}
    fields |= {"length": len(directory), "start": len(data)}
    if end64 is not None:
        at = len(data) + len(directory) if end64_at is None else end64_at
        directory += packed(END64, signature=b"PK\6\6", own=44, **{**fields, **end64})
        directory += struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    return data + directory + packed(END, signature=b"PK\5\6", **{**fields, **end}) + after


def deflated(content, size=None, **changes):
    size = len(content) if size is None else size
    local = {"method": 8, "size": size}
    return Record(content=content, data=deflate(content), local=local, **local, **changes)


@loads()
def a_record_as_it_should_be():
    return archive(Record())


@refused("the names in the zip archive must differ, found one that occurs twice")
def a_name_that_occurs_twice():
    return archive(Record(), Record(content=npy(-W)))


@refused("the archive must have one data.pkl")
def two_pickles():
    return zipped({**ONE, **records({"w": tensor(-W)}, stem="other")})


@refused("the archive must have one data.pkl")
def a_pickle_in_the_folder_of_another():
    return zipped({**ONE, "archive/archive/data.pkl": ONE["archive/data.pkl"]})


@refused("found that it overlaps")
def two_names_for_the_same_bytes():
    return archive(Record(), Record("v.npy", start=0))


@refused("found that it overlaps")
def records_that_quote_each_other():
    inner = Record("v.npy", ARRAY)
    whole = inner.header() + inner.data
    first = Record("w.npy", whole)
    at = len(first.header())
    return archive(first, Record("v.npy", ARRAY, start=at))


@refused("found that it overlaps")
def a_thousand_names_for_one_bomb():
    bomb = deflate(bytes(2**20))
    members = [
        Record(f"{i}.npy", bytes(2**20), data=bomb, method=8, local={"method": 8}, start=0)
        for i in range(1000)
    ]
    return archive(*members)


@refused("found that it overlaps")
def a_record_that_is_the_directory():
    return archive(Record(), Record("v.npy", start=170))


@refused(ANOTHER)
def another_name_in_front_of_the_data():
    record = Record()
    record.local_name = b"v.npy"
    return archive(record)


@refused(ANOTHER)
def another_method_in_front_of_the_data():
    return archive(Record(local={"method": 8}))


@refused(ANOTHER)
def another_size_in_front_of_the_data():
    return archive(Record(local={"size": 1, "stored": 1}))


@refused(ANOTHER)
def another_checksum_in_front_of_the_data():
    return archive(Record(local={"crc": 1}))


@refused(ANOTHER)
def no_header_in_front_of_the_data():
    return archive(Record("v.npy"), Record(local={"signature": b"PK\7\x08"}))


@refused(ANOTHER)
def a_header_that_reaches_into_the_next_record():
    return archive(Record(local={"extra": 65535}), Record("v.npy", bytes(70000)))


@refused(ANOTHER)
def a_record_that_the_directory_calls_a_folder():
    record = Record("w.np/")
    record.local_name = b"w.npy"
    return archive(Record("v.npy"), record)


@refused(ANOTHER)
def a_byte_order_under_another_name():
    data = saved({"w": tensor(W, "big")}, byte_order="big")
    at = data.rindex(b"byteorder")
    return data[:at] + b"x" + data[at + 1 :]


@refused("must have the checksum 00000000, found")
def one_checksum_left_out():
    return archive(Record("v.npy"), Record(crc=0, local={"crc": 0}))


@loads()
def all_checksums_left_out():
    return with_checksums(saved({"w": tensor(W)}), 0)


@refused("the records must inflate to at most 64 times the file's size, found 67108865 bytes from")
def a_bomb():
    return archive(deflated(bytes(2**26 + 1)))


@refused("the records must inflate to at most 64 times the file's size")
def a_bomb_in_a_thousand_pieces():
    return archive(*(deflated_as(f"{i}.npy") for i in range(1100)))


def deflated_as(name, content=bytes(2**16)):
    return Record(name, content, data=deflate(content), method=8, local={"method": 8})


@refused("record 'w.npy' must inflate to 140 bytes, found others")
def a_bomb_that_claims_to_be_small():
    return archive(deflated(ARRAY + bytes(2**26), 140))


@refused("must inflate to 141 bytes, found others")
def a_record_that_inflates_to_less():
    return archive(deflated(ARRAY, 141))


@refused("must inflate to 140 bytes, found others")
def bytes_after_the_deflated_ones():
    data = deflate(ARRAY) + b"x"
    return archive(Record(data=data, method=8, local={"method": 8}))


@refused("must inflate to 400128 bytes, found others")
def bytes_after_many_deflated_ones():
    content = npy(np.zeros(100_000, np.float32))
    return archive(Record(content=content, data=deflate(content) + bytes(99), **DEFLATED))


@refused("must inflate to 262124 bytes, found others")
def bytes_after_deflated_ones_that_fill_a_buffer():
    content = npy(np.zeros(261_996, np.uint8))
    parts = [content[:65531], content[65531:131062], content[131062:196593], content[196593:]]
    data = b"".join(
        struct.pack("<B2H", part is parts[-1], len(part), len(part) ^ 0xFFFF) + part
        for part in parts
    )
    return archive(Record(content=content, data=data + b"more", **DEFLATED))


@refused("must inflate to 140 bytes, found others|must be an array of format 1 to 3")
def a_record_that_does_not_inflate():
    return archive(Record(data=b"\xff" * 50, method=8, local={"method": 8}))


@refused("record 'w.npy' must have 141 bytes, found 140")
def a_stored_record_of_two_sizes():
    return archive(Record(size=141))


@refused("found that it overlaps")
def a_record_beyond_the_end():
    return archive(Record(start=2**31))


@refused("found that it overlaps")
def a_record_of_four_gigabytes():
    return archive(Record(size=2**32 - 2, stored=2**32 - 2))


def wide(*numbers):
    return struct.pack("<2H", 1, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)


@loads()
def numbers_in_64_bits():
    full = 2**32 - 1
    return archive(Record(size=full, stored=full, extra=wide(140, 140)), end64={})


@refused("found that it overlaps")
def a_record_of_eight_exabytes():
    full = 2**32 - 1
    return archive(Record(size=full, stored=full, extra=wide(2**63, 2**63)))


@refused("found that it overlaps")
def a_record_that_starts_at_two_to_the_64th():
    return archive(Record(start=2**32 - 1, extra=wide(2**64 - 1)))


@refused("must state its 64-bit size once, found none")
def a_64_bit_size_that_is_missing():
    return archive(Record(size=2**32 - 1))


@refused("the zip archive must have at most 262144 records, found 1152921504606846976")
def a_quintillion_records():
    return archive(Record(), end64={"entries": 2**60, "total": 2**60})


@refused("the zip archive's directory must end at byte")
def a_directory_of_eight_exabytes():
    return archive(Record(), end64={"length": 2**63})


@refused("the zip archive's directory must have at most")
def a_directory_of_a_terabyte():
    def make(path):
        last = packed(END64, signature=b"PK\6\6", length=2**40 - 118, start=20)
        last += struct.pack("<4sLQL", b"PK\6\7", 0, 2**40 - 98, 1)
        with path.open("wb") as file:
            file.write(b"PK\3\4")
            file.seek(2**40 - 98)
            file.write(last + packed(END, signature=b"PK\5\6"))

    return make


@refused("the zip archive must have a 64-bit end record")
def a_64_bit_end_elsewhere():
    return archive(Record(), end64={}, end64_at=0)


@refused("directory must list 1 records, found more bytes")
def more_records_than_stated():
    return archive(Record(), Record("v.npy"), entries=1, total=1)


@refused("the zip archive's directory must list its records, found other bytes")
def fewer_records_than_stated():
    return archive(Record(), entries=2, total=2)


@refused("found an empty zip archive")
def no_records():
    return archive()


@refused("the zip archive must be in one part, found one of several parts")
def several_disks():
    return archive(Record(), disk=1, first=1)


@refused("the zip archive must be in one part")
def records_on_another_disk():
    return archive(Record(), entries=0)


for flag, kind in ((1, "encrypted"), (0x41, "strongly_encrypted"), (0x2000, "masked")):

    @refused("'w.npy' must be stored or deflated, found an encrypted one; save it without")
    def _encrypted(flag=flag):
        return archive(Record(flags=flag, local={"flags": flag}))

    _encrypted.__name__ = kind


@refused("'w.npy' must be stored or deflated, found compression method 14")
def an_LZMA_record():
    return archive(Record(method=14, local={"method": 14}))


@refused("found other data, starting with the bytes 4d 5a")
def a_program_in_front():
    return archive(Record(), before=b"MZ" + bytes(100))


@refused("the zip archive's directory must end at byte")
def an_archive_in_front():
    return archive(Record(content=npy(-W))) + archive(Record())


@refused(NOT_THE_END)
def bytes_after_the_end():
    return archive(Record(), after=b"\0")


@refused(NOT_THE_END)
def a_comment():
    return archive(Record(), after=b"hello", comment=5)


@refused(NOT_THE_END)
def an_archive_in_the_comment():
    inner = archive(Record(content=npy(-W)))
    return archive(Record(), after=inner + b"x", comment=len(inner) + 1)


@loads()
def bytes_between_the_records():
    return archive(Record(), gap=b"PK\3\4 and more")


@loads()
def an_extra_field_with_another_name():
    extra = struct.pack("<2HBL", 0x7075, 10, 1, zlib.crc32(b"w.npy")) + b"v.npy"
    return archive(Record(extra=extra))


@loads()
def extra_fields_without_end():
    flood = struct.pack("<2H", 9, 0) * 16_000
    members = [Record(f"archive/{i}", b"", extra=flood) for i in range(30)]
    return archive(*(Record(name, content) for name, content in ONE.items()), *members)


@loads()
def twenty_thousand_records_that_nobody_needs():
    return zipped({**ONE, **{f"archive/{i}": b"" for i in range(20_000)}})


@loads()
def a_symbolic_link():
    link = Record("archive/link", b"/etc/passwd", attributes=0o120777 << 16)
    return archive(*(Record(name, content) for name, content in ONE.items()), link)


@loads({"/etc/passwd": W})
def an_absolute_name():
    return archive(Record("/etc/passwd.npy"))


@loads({"../../w": W})
def a_name_that_climbs():
    return archive(Record("../../w.npy"))


@loads({"C:\\w": W})
def a_name_of_Windows():
    return archive(Record("C:\\w.npy"))


@refused("the names in the zip archive must be UTF-8 text, found 77 00")
def a_name_with_a_zero():
    return archive(Record(b"w\0.npy"))


@refused("the names in the zip archive must be UTF-8 text, found ff fe")
def a_name_that_is_not_UTF_8():
    return archive(Record(b"\xff\xfe.npy"))


@refused("the names in the zip archive must be UTF-8 text")
def a_name_with_half_a_character():
    return archive(Record("\ud800.npy".encode(errors="surrogatepass")))


@refused("the names in the zip archive must be UTF-8 text")
def a_name_without_characters():
    return archive(Record(""))


@refused("the name of a tensor must be UTF-8 text of at most 4096 characters")
def a_name_of_65_535_characters():
    return archive(Record("x" * 65531 + ".npy"))


@refused("found a zip archive of other files, such as 'README'")
def other_files():
    return archive(Record("README"))


@refused(r"an \.npz must hold \.npy records only, found 'README'")
def another_file_beside_the_arrays():
    return archive(Record(), Record("README"))
