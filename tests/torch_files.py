"""Writes what `torch.save` writes, without PyTorch: for the tests of the reader."""

import io
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass
from functools import cache

import numpy as np

KINDS = {
    "bool": "Bool",
    "uint8": "Byte",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "float16": "Half",
    "float32": "Float",
    "float64": "Double",
    "complex64": "ComplexFloat",
}


@dataclass(frozen=True)
class Named:
    """A class or function of a module that need not exist."""

    module: str
    name: str

    def __call__(self):
        raise AssertionError("only to be named")


named = cache(Named)


@dataclass(eq=False)
class Storage:
    """`raw` is the record's content; `kind` is PyTorch's name, as in FloatStorage."""

    raw: bytes
    kind: str
    count: int
    key: str | None = None
    """The record's name; counted if None."""


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for."""

    function: Named
    arguments: tuple
    state: object = None


def storage(array, byte_order="little"):
    array = np.ascontiguousarray(array)
    raw = array.astype(array.dtype.newbyteorder(byte_order)).tobytes()
    return Storage(raw, KINDS[array.dtype.name], array.size)


def view(storage, offset, size, strides, *flags):
    arguments = (storage, offset, tuple(size), tuple(strides), False, {}, *flags)
    return Call(named("torch._utils", "_rebuild_tensor_v2"), arguments)


def untyped_view(raw, dtype, offset, size, strides):
    stored = Storage(raw, "Untyped", len(raw))
    dtype = named("torch", dtype)
    arguments = (stored, offset, tuple(size), tuple(strides), False, {}, dtype)
    return Call(named("torch._utils", "_rebuild_tensor_v3"), arguments)


def tensor(array, byte_order="little"):
    array = np.asarray(array)
    return view(storage(array, byte_order), 0, array.shape, contiguous(array.shape))


def contiguous(shape):
    strides = [1]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(length, 1))
    return strides[: len(shape)]


def parameter(array, byte_order="little"):
    arguments = (tensor(array, byte_order), True, {})
    return Call(named("torch._utils", "_rebuild_parameter"), arguments)


class Pickler(pickle._Pickler):
    """Pickles names without looking them up, and storages by reference."""

    def __init__(self, file, protocol):
        super().__init__(file, protocol)
        self.storages = []

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
            value.key = str(len(self.storages) - 1) if value.key is None else value.key
        module = "torch.storage" if value.kind == "Untyped" else "torch"
        kind = named(module, value.kind + "Storage")
        return "storage", kind, value.key, "cpu", value.count

    def save_named(self, value):
        if self.proto >= 4:
            self.save(value.module)
            self.save(value.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(f"c{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    def save_call(self, value):
        self.save_reduce(value.function, value.arguments, value.state, obj=value)

    dispatch = {**pickle._Pickler.dispatch, Named: save_named, Call: save_call}  # noqa: RUF012 - pickle's own name and kind


def pickled(value, protocol=2):
    file = io.BytesIO()
    pickler = Pickler(file, protocol)
    pickler.dump(value)
    return file.getvalue(), pickler.storages


def records(value, *, stem="archive", protocol=2, byte_order="little"):
    data, storages = pickled(value, protocol)
    files = {f"{stem}/data.pkl": data}
    if byte_order:
        files[f"{stem}/byteorder"] = byte_order.encode()
    files |= {f"{stem}/data/{stored.key}": stored.raw for stored in storages}
    return {**files, f"{stem}/version": b"3\n"}


def zipped(files, *, deflated=False):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", 8 if deflated else 0) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def saved(value, *, deflated=False, **options):
    """Return the bytes of a file with `value` in it."""
    return zipped(records(value, **options), deflated=deflated)


def with_checksums(data, checksum):
    """Return a zip archive with every checksum replaced: 0 means that none was recorded."""
    data = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            struct.pack_into("<L", data, info.header_offset + 14, checksum)
        position = archive.start_dir
    while (position := data.find(b"PK\x01\x02", position)) >= 0:
        struct.pack_into("<L", data, position + 16, checksum)
        position += 46
    return bytes(data)


W = np.float32([1, 2, 3])
"""The tensor ``w`` that most of the attacks hold."""


def text(value):
    """Return the opcodes that push a text."""
    raw = value.encode(errors="surrogatepass")
    return b"X" + struct.pack("<L", len(raw)) + raw


def name(dotted):
    """Return the opcodes that push a class or function."""
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


BODY = pickled(tensor(W))[0][2:-1]
"""What pushes the tensor ``w``; it uses the first dozens of the memo."""


def with_pickle(opcodes, start=b"\x80\x02", *, deflated=False):
    """Return a file with this pickle beside the storage of ``w``."""
    files = {**records({"w": tensor(W)}), "archive/data.pkl": start + opcodes + b"."}
    return zipped(files, deflated=deflated)


def beside(opcodes, start=b"\x80\x02"):
    """Return a file with ``w`` and a value, given as opcodes, in a dictionary."""
    return with_pickle(b"}(" + text("w") + BODY + text("x") + opcodes + b"u", start)


def call(dotted, *arguments):
    """Return a call for `saved`."""
    module, _, attribute = dotted.rpartition(".")
    return Call(named(module, attribute), arguments)


def npy(array):
    """Return the record of an array."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


RAW = W.tobytes()


def safetensors(header, data=RAW, length=None):
    """Return a safetensors file with this header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data
