"""Straightforward readers, one for each format without checksums.

They share no code with the library, check nothing, and read whole files: Python's own unpickler
with inert classes, Python's `json`, and NumPy. Where the library loads a changed file, it must load
what these say. What they cannot read, because they hash keys or evaluate more than the library
does, they refuse with any exception.
"""

import collections
import io
import json
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"Half": "f2", "Float": "f4", "Double": "f8", "Bool": "?", "BFloat16": "bf16"}
STORAGES |= {"Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8", "Untyped": "u1"}
DTYPES = {"float16": "f2", "float32": "f4", "float64": "f8", "bool": "?", "bfloat16": "bf16"}
DTYPES |= {"uint8": "u1", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8"}
DTYPES |= {"uint16": "u2", "uint32": "u4", "uint64": "u8", "float8_e5m2": "e5m2"}
SAFETENSORS = {"BOOL": "?", "F16": "f2", "F32": "f4", "F64": "f8", "BF16": "bf16"}
SAFETENSORS |= {f"{k}{8 * n}": f"{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)}
LARGE = 10**6  # elements, beyond which a tensor is refused


class Thing:
    """An instance of a class that is only known by name."""

    def __new__(cls, *arguments, **_):
        self = object.__new__(cls)
        self.arguments, self.items = arguments, []
        return self

    def __init__(self, *_, **__):
        pass

    def __call__(self, *arguments):
        return type(self)(*arguments)

    def __setitem__(self, key, value):
        self.items.append((key, value))

    def __setstate__(self, _):
        pass

    def append(self, value):
        self.items.append((len(self.items), value))


class Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file, encoding="utf-8", errors="surrogateescape")

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return type(name, (Thing,), {"of": f"{module}.{name}"})

    def persistent_load(self, description):
        return description


def from_bytes(raw, code, order="<"):
    """Decode elements, which may be of a type that NumPy lacks."""
    if code == "bf16":
        return (np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    if code == "e5m2":  # the first byte of a float16
        wide = (np.frombuffer(raw, "u1").astype(np.uint16) << 8).view(np.float16).astype("f4")
        return np.where(np.isnan(wide), np.copysign(np.float32(np.nan), wide), wide)
    if code == "?":
        return np.frombuffer(raw, "u1").astype(bool)
    return np.frombuffer(raw, order + code).astype(code)


def tensors(root, stored):
    """Find the tensors in what was unpickled, and make arrays of them."""
    found = {}

    def visit(value, name):
        if isinstance(value, Thing) and value.of.rpartition(".")[2].startswith("_rebuild"):
            array = rebuilt(value.of, value.arguments, stored)
            if array is not None:
                found[".".join(name)] = array
            return
        if isinstance(value, (set, frozenset)):
            raise TypeError("no order")
        children = value.items if isinstance(value, Thing) else ()
        children = value.items() if isinstance(value, dict) else children
        children = enumerate(value) if isinstance(value, (list, tuple)) else children
        for key, child in children:
            if isinstance(key, (str, int)):
                visit(child, [*name, str(key)])

    visit(root, [])
    return found


def rebuilt(function, arguments, stored):
    """Make the array that a call describes; None for what is not listed."""
    for module in ("torch._utils", "torch._tensor", "torch.tensor"):
        function = function.removeprefix(f"{module}._rebuild_")
    if function in ("parameter", "parameter_with_state"):
        inner = arguments[0]
        return rebuilt(inner.of, inner.arguments, stored)
    if function in ("from_type", "from_type_v2"):
        return rebuilt(arguments[0].of, arguments[2], stored)
    if function not in ("tensor", "tensor_v2", "tensor_v3"):
        return None
    storage, offset, size, strides, *rest = arguments
    code = STORAGES.get(kind(storage))
    flags = rest[2:]
    if function == "tensor_v3":
        code, flags = code and DTYPES.get(rest[2].of.removeprefix("torch.")), rest[3:]
    if code is None:
        return None
    raw, order = stored(storage)
    elements = from_bytes(raw, code, order)
    size = getattr(size, "arguments", (size,))[0]
    index = np.int64(offset)
    for length, step in zip(size, strides, strict=True):
        if length * max(np.size(index), 1) > LARGE:
            raise ValueError("too large")
        index = np.add.outer(index, np.arange(length) * (step if length > 1 else 0))
    array = elements[index] if np.size(index) else elements[:0].reshape(size)
    return -array if flags and flags[0] and flags[0]["neg"] else array


def kind(storage):
    """Name the type of a storage, given its description."""
    return storage[1].of.rpartition(".")[2].removesuffix("Storage")


def torch_zip(content):
    """Read an archive whose checksums nobody looks at."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        raw = {}
        for info in archive.infolist():
            header = struct.unpack_from("<2H", content, info.header_offset + 26)
            start = info.header_offset + 30 + sum(header)
            raw[info.filename] = content[start : start + info.file_size]
    (stem,) = (name.removesuffix("data.pkl") for name in raw if name.endswith("/data.pkl"))
    return torch_records(raw[f"{stem}data.pkl"], {k.removeprefix(stem): v for k, v in raw.items()})


def torch_records(data, files):
    """Read a pickle and the records beside it."""
    order = "<" if files.get("byteorder", b"little") == b"little" else ">"
    root = Unpickler(io.BytesIO(data)).load()
    return tensors(root, lambda storage: (files[f"data/{storage[2]}"], order))


def torch_legacy(content):
    """Read a file of PyTorch before 1.6."""
    file, sizes = io.BytesIO(content), {}

    class Noting(Unpickler):
        def persistent_load(self, description):
            code = STORAGES[kind(description)]
            item = 2 if code == "bf16" else np.dtype(code).itemsize
            sizes[description[2]] = description[4] * item
            return description

    _, _, system, root, keys = (Noting(file).load() for _ in range(5))
    raw, native = {}, "<" if system["little_endian"] else ">"
    for key in keys:
        file.seek(8, io.SEEK_CUR)
        raw[key] = file.read(sizes[key])
    bytewise = ("Untyped", "Byte", "Char", "Bool")  # which are written as they lie in memory
    return tensors(
        root, lambda storage: (raw[storage[2]], native if kind(storage) in bytewise else "<")
    )


def safetensors(content):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, fields in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = fields["data_offsets"]
        if code := SAFETENSORS.get(fields["dtype"]):
            raw = content[8 + length + start : 8 + length + stop]
            found[name] = from_bytes(raw, code).reshape(fields["shape"])
    return found


def npy(content):
    array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="))
