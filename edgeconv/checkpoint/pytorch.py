"""What `torch.save` writes since PyTorch 1.6: a zip of a pickle and a record for each storage."""

from __future__ import annotations

import io
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import BinaryIO, TypeGuard

from edgeconv.checkpoint.archive import DEFLATED, INFLATED_RATIO, Archive
from edgeconv.checkpoint.elements import BOUNDS, is_held, item_size, listed
from edgeconv.checkpoint.error import CheckpointError, damaged, naming, shown
from edgeconv.checkpoint.mapping import NAME_CHARACTERS, Contents, TensorSpec, check_name
from edgeconv.checkpoint.pickled import Global, Object, load
from edgeconv.checkpoint.views import Fetch, Storage, Tensor, Views

__all__ = ["FORMAT", "Storages", "contents", "is_size", "read", "rebuild"]

FORMAT = "PyTorch zip"

PICKLE_BYTES = 2**27
PICKLE_FLOOR = 2**18  # bytes that it may always take; beyond, times the file's size
DEPTH = 64  # of containers within containers
VISITS = 2**21  # values looked at in search of tensors
VISITS_PER_BYTE = 16  # of the pickle: a container that is put into others is looked at in each
TENSORS = 2**18
DIMENSIONS = 2**6  # of a tensor in a pickle, as many as PyTorch has
NAMES_CHARACTERS = 2**24  # of all containers and tensors

_STORAGES = {"BFloat16": "bfloat16", "Half": "float16", "Float": "float32", "Double": "float64"}
_STORAGES |= {"Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32"}
_STORAGES |= {"Long": "int64", "ComplexFloat": "complex64", "ComplexDouble": "complex128"}
_STORAGES |= {"QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "Untyped": "uint8"}
_STORAGES |= {"QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4"}
_REBUILDERS = ("torch._utils", "torch._tensor", "torch.tensor")  # modules of functions, by age


def read(file: BinaryIO, archive: Archive, stem: str) -> Contents:
    """Describe the tensors of a file that `torch.save` wrote, given what precedes ``data.pkl``."""
    pickle, order, folder = (stem + name for name in ("data.pkl", "byteorder", "data/"))
    byte_order = "little"
    if order in archive.records:
        byte_order = archive.read(file, order).decode(errors="replace")
    if byte_order not in ("little", "big"):
        raise damaged("the byte order must be 'little' or 'big'", shown(byte_order))
    size = archive.records[pickle].size
    most = min(PICKLE_BYTES, max(PICKLE_FLOOR, INFLATED_RATIO * archive.size))
    if size > most:
        raise CheckpointError(
            f"record {shown(pickle)} must have at most {most} bytes",
            str(size),
            "save only the state dict",
        )
    storages = Storages(byte_order, byte_order)
    stream = io.BytesIO(archive.read(file, pickle))
    with naming(record=shown(pickle)):
        root = load(stream, size, rebuild, storages.described)
        if stream.tell() != size:
            raise damaged("the pickle must end with its value", "more")
    for storage in storages.by_key.values():
        record = archive.records.get(folder + storage.key)
        found = record.size if record else "no such record"
        if item_size(storage.dtype) and found != storage.size:
            expected = f"record {shown(folder + storage.key)} must have {storage.size} bytes"
            raise damaged(expected, str(found))

    def fetch(file: BinaryIO, key: str, start: int, stop: int) -> bytes | bytearray:
        return archive.read(file, folder + key, start, stop)

    deflated = {
        name.removeprefix(folder)
        for name, record in archive.records.items()
        if record.method == DEFLATED
    }
    return contents(FORMAT, root, size, fetch, deflated)


def contents(
    file_format: str, root: object, pickle_size: int, fetch: Fetch, deflated: Container[str] = ()
) -> Contents:
    """Describe the tensors in the value of a pickle."""
    search = _Search(min(VISITS, VISITS_PER_BYTE * pickle_size))
    search.visit(root)
    views = Views(search.found.values(), fetch, deflated)
    entries = {name: views.entry(tensor) for name, tensor in search.found.items()}
    return Contents(file_format, entries)


class _Search:
    """The search for tensors in nested containers, which a file can make endless."""

    def __init__(self, visits: int) -> None:
        self.found: dict[str, Tensor] = {}
        self.limit = self.visits_left = visits
        self.characters_left = NAMES_CHARACTERS
        self.keys: list[str] = []
        """The keys that lead to the value that is looked at."""
        self.open: set[int] = set()
        """The containers around it, by identity."""
        self.barren: set[int] = set()
        """Those beyond `DEPTH` that were looked into."""

    def visit(self, value: object) -> None:
        """Add every tensor under its dotted name, in the order of the file."""
        if isinstance(value, Object) and isinstance(value.state, Object):
            self.count(len(value.state.items))
            if any(key == "_parameters" for key, _ in value.state.items):
                spec = TensorSpec(f"a whole pickled module, {shown(value.kind)}", ())
                value = Tensor(spec, remedy="save `model.state_dict()` instead of `model`")
        if isinstance(value, Tensor):
            self.add(value)
        elif len(self.keys) == DEPTH:
            self.visit_deep(value)
        elif id(value) not in self.open:  # one within itself holds nothing new
            self.open.add(id(value))
            holding: dict[str | bytes, bool] = {}
            for key, child in _items(value):
                self.count(1)
                holds = _may_hold(child)
                if isinstance(value, Object):
                    # PyTorch keeps the last value of a key. The hash of a number could be one that
                    # the file chose.
                    same = _compared(key)
                    if same is not None:
                        if same in holding and (holds or holding[same]):
                            found = f"{shown(str(key))} twice"
                            raise damaged("the keys of a dictionary must differ", found)
                        holding[same] = holds
                # What lies under a key that is neither text nor a whole number has no name.
                if holds and isinstance(key, (str, int)):
                    self.keys.append(str(key))
                    self.visit(child)
                    self.keys.pop()
            self.open.remove(id(value))

    def visit_deep(self, value: object) -> None:
        """Refuse a tensor that lies too deep; each container is looked into once."""
        values = [value]
        while values:
            value = values.pop()
            if isinstance(value, Tensor):
                raise self.exceeded()
            if id(value) not in self.barren:
                self.barren.add(id(value))
                for _, child in _items(value):
                    self.count(1)
                    if _may_hold(child):
                        values.append(child)

    def add(self, tensor: Tensor) -> None:
        """Add a tensor under the keys that lead to it."""
        self.characters_left -= sum(map(len, self.keys))
        if self.characters_left < 0 or len(self.found) == TENSORS:
            raise self.exceeded()
        name = ".".join(self.keys)
        check_name(name)
        if name in self.found:
            raise CheckpointError(
                "the names of tensors must differ",
                f"{shown(name)} twice",
                "rename one of the two and save again",
            )
        self.found[name] = tensor

    def count(self, visits: int) -> None:
        """Count values that are looked at."""
        self.visits_left -= visits
        if self.visits_left < 0:
            raise self.exceeded()

    def exceeded(self) -> CheckpointError:
        """Return the error for a file that the search would take too long in."""
        return CheckpointError(
            f"containers must nest at most {DEPTH} deep and hold at most {self.limit} "
            f"values, {TENSORS} tensors and {NAMES_CHARACTERS} characters of names",
            "more",
            "save only the state dict",
        )


def _items(value: object) -> Iterable[tuple[object, object]]:
    """Return the keys and values of a container."""
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    return value.items if isinstance(value, Object) else ()


def _compared(key: object) -> str | bytes | None:
    """Return what is the same for equal keys, or None for a key that names no tensor."""
    if isinstance(key, float) and key.is_integer():
        key = int(key)
    if isinstance(key, int):
        return b"%d" % key
    return key if isinstance(key, str) and len(key) <= NAME_CHARACTERS else None


def _may_hold(value: object) -> bool:
    """Tell whether a value is a tensor or could hold one."""
    return isinstance(value, (Tensor, Object, list, tuple))


class Storages:
    """
    The storages that a pickle describes, by key.

    `untyped_order` and `typed_order` are the byte orders of storages of bytes, in which a tensor
    may see wider elements, and of those of a type.
    """

    def __init__(self, untyped_order: str, typed_order: str) -> None:
        self.untyped_order = untyped_order
        self.typed_order = typed_order
        self.by_key: dict[str, Storage] = {}

    def described(self, description: object) -> Storage:
        """Turn the description of a storage in the pickle into one."""
        match description:
            case tuple(("storage", Global(name), str(key), str(), count)) if (
                is_size(count) and len(key) <= NAME_CHARACTERS
            ):
                kind = name.rpartition(".")[2].removesuffix("Storage")
                dtype = _STORAGES.get(kind, shown(name))
                order = self.untyped_order if item_size(dtype) == 1 else self.typed_order
                storage = Storage(dtype, key, count, order, 0, count)
                if self.by_key.setdefault(key, storage) != storage:
                    raise damaged(f"storage {shown(key)} must have one type and size", "two")
                return storage
        raise damaged("the pickle must describe storages by type, key and size", "something else")


def rebuild(name: str, arguments: tuple[object, ...]) -> object:
    """Do what a call in the pickle means, if it makes a tensor, the shape of one, or a dict."""
    match name, arguments:
        case "torch.Size", (tuple(sizes),):
            return sizes
        case (("builtins.str" | "__builtin__.str" | "__builtin__.unicode"), (str(text),)):
            return text
        case "collections.OrderedDict", (list(pairs),):
            return _ordered(name, pairs)
    module, _, function = name.rpartition(".")
    if module not in _REBUILDERS or not function.startswith("_rebuild_"):
        return None
    match function.removeprefix("_rebuild_"), arguments:
        case "tensor", (Storage() as s, offset, size, steps):
            return _tensor(s, s.dtype, offset, size, steps, [])
        case "tensor_v2", (Storage() as s, offset, size, steps, bool(), Object() | None, *flags):
            return _tensor(s, s.dtype, offset, size, steps, flags)
        case "tensor_v3", (
            Storage() as s,
            offset,
            size,
            steps,
            bool(),
            Object() | None,
            Global(kind),
            *flags,
        ):
            return _tensor(s, _dtype(kind), offset, size, steps, flags)
        case ("parameter", (Tensor() as tensor, bool(), Object() | None)) | (
            "parameter_with_state",
            (Tensor() as tensor, bool(), Object() | None, _),
        ):
            return tensor
        case ("parameter" | "parameter_with_state", (Object(kind=kind), *_)):
            return Tensor(TensorSpec(shown(kind), ()))  # of a subclass with a function of its own
        case (
            "from_type" | "from_type_v2",
            (Global(inner), Global(), tuple(view), _),
        ) if "_from_type" not in inner:
            return rebuild(inner, view) or Tensor(TensorSpec(shown(inner), ()))
        case (
            ("tensor" | "tensor_v2" | "tensor_v3" | "parameter" | "parameter_with_state")
            | ("from_type" | "from_type_v2"),
            _,
        ):
            raise damaged(f"the pickle must call {function} with its arguments", "others")
        case "qtensor", (Storage() as s, *_):
            return Tensor(TensorSpec(s.dtype, ()), remedy="save its `dequantize()` instead")
        case "sparse_tensor", (_, tuple(parts)):
            dtypes = [part.spec.dtype for part in parts[:4] if isinstance(part, Tensor)]
            spec = TensorSpec(" ".join(["sparse", *dtypes[-1:]]), ())
            return Tensor(spec, remedy="save its `to_dense()` instead")
    # Nested tensors, those without elements ("meta"), and kinds that are still to be invented.
    return Tensor(TensorSpec(shown(function.removeprefix("_rebuild_")), ()))


def _ordered(name: str, pairs: list[object]) -> Object:
    """Return a dictionary of the pairs in a list, as Python 2 pickles it."""
    ordered = Object(name)
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise damaged("the pickle must make an OrderedDict of pairs", type(pair).__name__)
        ordered.items.append((pair[0], pair[1]))
    pairs.clear()  # lest a file have one list copied again and again
    return ordered


def _dtype(name: str) -> str:
    """Name an element type as PyTorch does."""
    dtype = name.removeprefix("torch.")
    return dtype if dtype.isidentifier() else shown(name)


def _tensor(
    storage: Storage, dtype: str, offset: object, size: object, steps: object, flags: list[object]
) -> Tensor:
    """Check a tensor's description."""
    if not is_size(offset) or not _are_sizes(size) or not _are_sizes(steps) or len(flags) > 1:
        expected = "a tensor must have an offset, a size, strides and one set of flags"
        raise damaged(expected, "something else")
    if len(size) != len(steps):
        raise damaged(f"a tensor of {len(size)} dimensions must have as many strides", "others")
    if not is_held(size):
        return Tensor(
            TensorSpec(f"oversized {dtype}", size),
            remedy=f"save it with at most {BOUNDS}",
        )
    spec = TensorSpec(dtype, size)
    if not item_size(dtype) or not item_size(storage.dtype):
        return Tensor(spec)
    # The stride of a dimension of length 1 means nothing, and may be any number.
    strides = tuple(step if n > 1 else 1 for n, step in zip(size, steps, strict=True))
    tensor = Tensor(spec, storage, storage.first + offset, strides)
    if tensor.span[1] * item_size(dtype) > storage.stop * item_size(storage.dtype):
        found = f"size {shown(str(size))} with strides {shown(str(strides))} at {offset}"
        size_seen = (storage.stop - storage.first) * item_size(storage.dtype)
        raise damaged(f"a tensor must lie within its storage of {size_seen} bytes", found)
    if not listed(dtype) or not listed(storage.dtype):
        return Tensor(spec)
    return replace(tensor, negated=_is_negated(flags, dtype))


def is_size(value: object) -> TypeGuard[int]:
    """Tell whether a value counts something; Python's Booleans would pass as integers."""
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    """Tell whether a value is a tuple of sizes: of so few that looking at them takes no time."""
    return isinstance(value, tuple) and len(value) <= DIMENSIONS and all(map(is_size, value))


def _is_negated(flags: list[object], dtype: str) -> bool:
    """Tell whether the elements are to be negated when read: a view that PyTorch left lazy."""
    match flags:
        case [] | [None] | [Object(items=[])]:
            return False
        case [Object(items=[("neg", bool(negated))])] if not (negated and dtype == "bool"):
            return negated
    raise damaged("the flags of a real tensor must be 'neg' or nothing", "something else")
