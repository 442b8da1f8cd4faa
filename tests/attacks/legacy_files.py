"""Files of PyTorch before 1.6: five pickles and the storages, without any checksum."""

import struct

import torch_files
from torch_files import pickled, tensor, view

from attacks.catalogue import RAW, W, loads, refused
from attacks.pickles import call, text

TREE = {"w": tensor(W)}
MAGIC, VERSION, SYSTEM, VALUE, KEYS, STORED = range(6)


def file(value=None, **parts):
    """Return a file with some of its parts, by their number, replaced."""
    pieces = torch_files.legacy(TREE if value is None else value)
    for name, part in parts.items():
        pieces[globals()[name]] = part
    return b"".join(pieces)


def opcodes(text):
    return b"\x80\x02" + text + b"."


@loads()
def a_file_as_it_should_be():
    return file()


@loads(live=("pickles",))
def a_payload_beside_the_weights(m):
    return file({"x": call("os.mkdir", m), "w": tensor(W)})


@refused("the file must start with its magic number and version 1001", live=("pickles",))
def a_payload_as_the_version(m):
    return file(VERSION=pickled(call("os.mkdir", m))[0])


@refused("the writer's system must state its byte order", live=("pickles",))
def a_payload_as_the_system(m):
    return file(SYSTEM=pickled(call("os.mkdir", m))[0])


@refused("the storage keys must be a list of texts", live=("pickles",))
def a_payload_as_the_keys(m):
    return file(KEYS=pickled(call("os.mkdir", m))[0])


@refused("found a plain pickle, which could run any code", live=("pickles",))
def a_payload_before_the_magic_number(m):
    return pickled(call("os.mkdir", m))[0] + file()


@refused("must start with its magic number and version 1001")
def a_version_that_is_newer():
    return file(VERSION=opcodes(b"M\xea\x03"))


@refused("the writer's system must state its byte order")
def a_byte_order_that_is_a_number():
    return file(SYSTEM=opcodes(b"}" + text("little_endian") + b"K\x01s"))


@refused("the pickle must hold a plain value, found a reference to a storage")
def a_storage_as_the_system():
    return file(SYSTEM=opcodes(b"NQ"))


@refused("the storage keys must be those that the pickle describes")
def keys_that_are_missing():
    return file(KEYS=opcodes(b"]"))


@refused("the storage keys must be those that the pickle describes")
def a_key_that_occurs_twice():
    return file(KEYS=opcodes(b"](" + text("0") * 2 + b"e"))


@refused("the storage keys must be those that the pickle describes")
def a_key_of_another_storage():
    return file(KEYS=opcodes(b"](" + text("1") + b"e"))


@refused("storage '0' must have 3 elements, found 4")
def a_storage_of_more_elements():
    return file(STORED=struct.pack("<q", 4) + RAW)


@refused("storage '0' must have 3 elements, found 18446744073709551615")
def a_storage_of_a_negative_count():
    return file(STORED=struct.pack("<q", -1) + RAW)


@refused("the storages must end with the file")
def a_file_that_breaks_off():
    return file()[:-1]


@refused("the storages must end with the file, at byte")
def bytes_after_the_storages():
    return file() + b"\0"


@refused("a tensor must lie within its storage of 12 bytes")
def a_tensor_beyond_its_storage():
    return file({"w": view(torch_files.storage(W), 1, (3,), (1,))})


@refused("the pickle must describe storages by type, key, size and part")
def a_part_beyond_its_storage():
    part = torch_files.Storage(RAW, "Float", 3, part=("1", 1, 3))
    return file({"w": view(part, 0, (3,), (1,))})


@refused("must describe storages by type, key, size and part")
def a_part_that_is_negative():
    part = torch_files.Storage(RAW, "Float", 3, part=("1", -1, 3))
    return file({"w": view(part, 0, (3,), (1,))})
