"""PyTorch's zip format: a pickle that describes tensors, and a record for each storage."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint.archive import DEFLATED, Archive
from edgeconv.checkpoint.elements import decoded, element_count, item_size, listed
from edgeconv.checkpoint.error import CheckpointError, damaged, shown
from edgeconv.checkpoint.mapping import Contents, Entry, TensorSpec, check_name
from edgeconv.checkpoint.pickled import Global, Object, load

__all__ = ["read"]

PICKLE_BYTES = 2**27
DEPTH = 64  # of containers within containers
VISITS = 2**20  # values looked at in search of tensors
TENSORS = 2**16
OVERLAP = 4  # bytes of tensors per byte of storage, beyond which views share one copy

_STORAGES = {"BFloat16": "bfloat16", "Half": "float16", "Float": "float32", "Double": "float64"}
_STORAGES |= {"Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32"}
_STORAGES |= {"Long": "int64", "ComplexFloat": "complex64", "ComplexDouble": "complex128"}
_STORAGES |= {"QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "Untyped": "uint8"}


@dataclass(frozen=True)
class Storage:
    """A run of elements in a record of its own."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, or of None if it is not listed. Offset and strides count elements."""

    spec: TensorSpec
    storage: Storage | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()
    negated: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """The first element used and the one after the last."""
        if 0 in self.spec.shape:
            return 0, 0
        steps = zip(self.spec.shape, self.strides, strict=True)
        return self.offset, self.offset + 1 + sum((n - 1) * stride for n, stride in steps)


def read(file: BinaryIO, archive: Archive, stem: str) -> Contents:
    """Describe the tensors of a file that `torch.save` wrote, given what precedes ``data.pkl``."""
    pickle = stem + "data.pkl"
    if archive.records[pickle].size > PICKLE_BYTES:
        raise CheckpointError(
            f"record {shown(pickle)} must have at most {PICKLE_BYTES} bytes",
            str(archive.records[pickle].size),
            "save only the state dict",
        )
    root = load(archive.read(file, pickle), _rebuild, _storage)
    search = _Search()
    search.visit(root, "", 0)
    tensors = search.found
    storages = _Storages(file, archive, stem, tensors.values())
    entries = {
        name: Entry(tensor.spec, storages.reader(tensor)) for name, tensor in tensors.items()
    }
    if not entries and search.module is not None:
        raise CheckpointError(
            "the file must hold a state dict",
            f"a whole pickled module, {shown(search.module)}",
            "save `model.state_dict()` instead of `model` with `torch.save`",
        )
    return Contents("PyTorch zip", entries)


class _Search:
    """The search for tensors in nested containers, which a file can make endless."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.module: str | None = None
        self.visits = 0

    def visit(self, value: object, name: str, depth: int) -> None:
        """Add every tensor under its dotted name, in the order of the file."""
        check_name(name)
        if isinstance(value, Tensor):
            if name in self.found:
                raise damaged("the names of tensors must differ", f"{shown(name)} twice")
            self.found[name] = value
        items = value.items if isinstance(value, Object) else ()
        attributes = value.state if isinstance(value, Object) else None
        if isinstance(value, Object) and isinstance(attributes, Object):
            self.visits += len(attributes.items)  # many objects can share them
            is_module = any(key == "_parameters" for key, _ in attributes.items)
            self.module = value.kind if is_module else self.module
        for key, child in enumerate(value) if isinstance(value, (list, tuple)) else items:
            self.visits += 1
            if depth == DEPTH or self.visits > VISITS or len(self.found) > TENSORS:
                raise CheckpointError(
                    f"containers must nest at most {DEPTH} deep and hold at most {VISITS} values "
                    f"and {TENSORS} tensors",
                    "more",
                    "save only the state dict",
                )
            # What lies under a key that is neither text nor a number has no name.
            if isinstance(child, (Tensor, Object, list, tuple)) and isinstance(key, (str, int)):
                self.visit(child, f"{name}.{key}" if depth else str(key), depth + 1)


def _storage(description: object) -> Storage:
    """Turn the description of a storage in the pickle into one."""
    match description:
        case ("storage", Global(name), str(key), _, count) if _is_size(count):
            kind = name.rpartition(".")[2].removesuffix("Storage")
            return Storage(_STORAGES.get(kind, shown(name)), key, count)
    raise damaged("the pickle must describe storages by type, key and size", "something else")


def _rebuild(name: str, arguments: tuple[object, ...]) -> object:
    """Do what a call in the pickle means, if it makes a tensor or the shape of one."""
    if name == "torch.Size" and len(arguments) == 1:
        return arguments[0]
    function = name.removeprefix("torch._utils.").removeprefix("torch._tensor.")
    if function == name or not function.startswith("_rebuild_"):
        return None
    match function.removeprefix("_rebuild_"), arguments:
        case "tensor_v2", (Storage() as s, offset, size, steps, bool(), _, *flags):
            return _tensor(s, s.dtype, offset, size, steps, flags)
        case "tensor_v3", (Storage() as s, offset, size, steps, bool(), _, Global(kind), *flags):
            return _tensor(s, kind.removeprefix("torch."), offset, size, steps, flags)
        case "parameter", (Tensor() as tensor, bool(), _):
            return tensor
        case "parameter_with_state", (Tensor() as tensor, bool(), _, _):
            return tensor
        case "from_type_v2", (Global(inner), Global(), tuple(view), _) if "_type_" not in inner:
            return _rebuild(inner, view)
        case (
            ("tensor_v2" | "tensor_v3" | "parameter" | "parameter_with_state" | "from_type_v2"),
            _,
        ):
            raise damaged(f"the pickle must call {function} with its arguments", "others")
        case "qtensor", (Storage() as s, *_):
            return Tensor(TensorSpec(s.dtype, ()))
        case "sparse_tensor", (_, tuple(parts)):
            dtypes = [part.spec.dtype for part in parts if isinstance(part, Tensor)]
            return Tensor(TensorSpec(" ".join(["sparse", *dtypes[-1:]]), ()))
    # Nested tensors, those without elements ("meta"), and kinds that are still to be invented.
    return Tensor(TensorSpec(shown(function.removeprefix("_rebuild_")), ()))


def _tensor(
    storage: Storage, dtype: str, offset: object, size: object, steps: object, flags: list[object]
) -> Tensor:
    """Check a tensor's description."""
    if not _is_size(offset) or not _are_sizes(size) or not _are_sizes(steps):
        raise damaged("a tensor must have an offset, a size and strides", "something else")
    if len(size) != len(steps):
        raise damaged(f"a tensor of {len(size)} dimensions must have as many strides", "others")
    element_count(size, "a tensor")
    spec = TensorSpec(dtype if dtype.isidentifier() else shown(dtype), size)
    if not listed(dtype) or not listed(storage.dtype):
        return Tensor(spec)
    # The stride of a dimension of length 1 means nothing, and may be any number.
    strides = tuple(step if n > 1 else 1 for n, step in zip(size, steps, strict=True))
    tensor = Tensor(spec, storage, offset, strides, _is_negated(flags, dtype))
    available = storage.count * item_size(storage.dtype)
    if tensor.span[1] * item_size(dtype) > available:
        found = f"size {shown(str(size))} with strides {shown(str(strides))} at {offset}"
        raise damaged(f"a tensor must lie within its storage of {available} bytes", found)
    return tensor


def _is_size(value: object) -> TypeGuard[int]:
    """Tell whether a value counts something; Python's Booleans would pass as integers."""
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    """Tell whether a value is a tuple of sizes."""
    return isinstance(value, tuple) and all(map(_is_size, value))


def _is_negated(flags: list[object], dtype: str) -> bool:
    """Tell whether the elements are to be negated when read: a view that PyTorch left lazy."""
    match flags:
        case [] | [None] | [Object(items=[])]:
            return False
        case [Object(items=[("neg", bool(negated))])] if not (negated and dtype == "bool"):
            return negated
    raise damaged("the flags of a real tensor must be 'neg' or nothing", "something else")


class _Storages:
    """The storages of a file, of which each view reads what it needs."""

    def __init__(
        self, file: BinaryIO, archive: Archive, stem: str, tensors: Iterable[Tensor]
    ) -> None:
        self.archive = archive
        self.folder = stem + "data/"
        self.byte_order = "little"
        if stem + "byteorder" in archive.records:
            self.byte_order = archive.read(file, stem + "byteorder").decode(errors="replace")
        if self.byte_order not in ("little", "big"):
            raise damaged("the byte order must be 'little' or 'big'", shown(self.byte_order))
        demand: Counter[str] = Counter()
        for tensor in tensors:
            if tensor.storage:
                self.check(tensor.storage)
                start, stop = tensor.span
                demand[tensor.storage.key] += (stop - start) * item_size(tensor.spec.dtype)
        # These are read whole, and kept while in use: that bounds the memory where many views
        # overlap, and the time where each view would inflate the storage again.
        self.whole = set()
        for key, size in demand.items():
            record = archive.records[self.folder + key]
            if record.method == DEFLATED or size > OVERLAP * record.size:
                self.whole.add(key)
        self.alive: weakref.WeakValueDictionary[object, NDArray[Any]]
        self.alive = weakref.WeakValueDictionary()
        self.last: NDArray[Any] | None = None

    def check(self, storage: Storage) -> None:
        """Check that a storage is a record of its size."""
        name, size = self.folder + storage.key, storage.count * item_size(storage.dtype)
        found = self.archive.records[name].size if name in self.archive.records else "no such one"
        if found != size:
            raise damaged(f"record {shown(name)} must have {size} bytes", str(found))

    def reader(self, tensor: Tensor) -> partial[NDArray[Any]] | None:
        """Return what reads a tensor from the open file; None if it is not listed."""
        return partial(self.read, tensor, tensor.storage) if tensor.storage else None

    def read(self, tensor: Tensor, storage: Storage, file: BinaryIO) -> NDArray[Any]:
        """Read one tensor, a view of `storage`."""
        dtype = tensor.spec.dtype
        if 0 in tensor.spec.shape:
            return decoded(b"", dtype).reshape(tensor.spec.shape)
        item = item_size(dtype)
        start, stop = tensor.span
        if storage.key in self.whole:
            start, stop = 0, storage.count * item_size(storage.dtype) // item
        key = (storage.key, dtype, tensor.negated, start, stop)
        elements = self.alive.get(key)
        if elements is None:
            raw = self.archive.read(file, self.folder + storage.key, start * item, stop * item)
            elements = decoded(raw, dtype, self.byte_order)
            elements = -elements if tensor.negated else elements
            self.alive[key] = elements
        if storage.key in self.whole:
            self.last = elements
        strides = tuple(step * elements.itemsize for step in tensor.strides)
        offset = (tensor.offset - start) * elements.itemsize
        return np.ndarray(tensor.spec.shape, elements.dtype, elements, offset, strides)
