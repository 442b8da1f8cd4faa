"""What `torch.save` writes since PyTorch 1.6: a zip of a pickle and a record for each storage."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint.archive import Archive
from edgeconv.checkpoint.error import CheckpointError, damaged, printable, require, shown
from edgeconv.checkpoint.pickled import Global, Machine, Object
from edgeconv.checkpoint.tensors import SIZES, STORED, Entry, are_sizes, count, decoded

DEPTH = 64  # of containers within containers
VISITS, VISITS_PER_BYTE = 2**20, 16  # of values, in search of tensors, and for a byte of the pickle
ARRAYS = ("._reconstruct", "._frombuffer")  # functions that make them in NumPy
REBUILDERS = ("torch._utils", "torch._tensor", "torch.tensor", "torch")  # modules, of all versions
# Others are called as their type, such as Bool, BFloat16 and QInt8.
STORAGES = {"Untyped": "uint8", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32"}
STORAGES |= {"Long": "int64", "Half": "float16", "Float": "float32", "Double": "float64"}
STORAGES |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}


class Storage(NamedTuple):
    """A record of elements."""

    record: str
    dtype: str
    n_bytes: int


class Reader:
    """What the calls and references in a pickle mean, and where in it the tensors are."""

    def __init__(self, archive: Archive, pickle: str) -> None:
        self.archive, self.stem, self.order = archive, pickle.removesuffix("data.pkl"), "little"
        if f"{self.stem}byteorder" in archive.records:
            self.order = archive.read(f"{self.stem}byteorder").decode(errors="replace")
        require(self.order in ("little", "big"), "the byte order must be little or big")
        content = archive.read(pickle)
        self.entries: dict[str, Entry] = {}
        self.visits, self.bytes = min(VISITS, VISITS_PER_BYTE * len(content)), archive.limit
        self.visit(Machine(self.built, self.storage).load(content), ())

    def storage(self, description: Any) -> Storage:
        """Return the storage that the pickle describes."""
        match description:
            case ("storage", Global(name), str(key), _, n) if are_sizes([n]):
                kind = name.rpartition(".")[2].removesuffix("Storage")
                dtype = STORAGES.get(kind, printable(kind.lower()))
                record = self.archive.records.get(f"{self.stem}data/{key}")
                if record and (dtype not in STORED or record.file_size == n * SIZES[dtype]):
                    return Storage(record.filename, dtype, record.file_size)
        raise damaged("a storage must have a type, a key and a record of its size", "another")

    def built(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Do what a call means, if it makes a tensor or the shape of one; None if it does not."""
        module, _, function = name.rpartition(".")
        if module not in REBUILDERS or not function.startswith(("_rebuild_", "Size")):
            return None
        kind = function.removeprefix("_rebuild_").removesuffix("_v2")
        match kind, arguments:
            case "Size", (tuple(sizes),):
                return sizes
            case "tensor", (Storage(dtype=dtype), _, _, _, _, _, *flags):
                return self.view(dtype, flags, *arguments[:4])
            case "tensor_v3", (Storage(), _, _, _, _, _, Global(dtype), *flags):
                return self.view(printable(dtype.removeprefix("torch.")), flags, *arguments[:4])
            case "parameter" | "parameter_with_state", (Entry() as entry, *_):
                return entry
            case "from_type", (Global(inner), _, tuple(inside), _) if "_from_type" not in inner:
                return self.built(inner, inside) or Entry(printable(inner))
            case "qtensor", (Storage() as storage, _, tuple(size), *_):
                count(size, "a tensor")
                return Entry(storage.dtype, size, storage.n_bytes)
        parts = [x for y in arguments for x in (y if isinstance(y, tuple) else (y,))]
        n_bytes = sum(x.n_bytes for x in parts if isinstance(x, (Storage, Entry)))
        return Entry(printable(kind), (), n_bytes)

    def view(
        self, dtype: str, flags: list[Any], storage: Storage, offset: Any, size: Any, steps: Any
    ) -> Entry:
        """Describe a tensor in a storage; its offset, size and strides count elements."""
        n, item = count(size, "a tensor"), SIZES.get(dtype, 0)
        is_right = are_sizes(steps) and len(steps) == len(size) and are_sizes([offset])
        require(is_right, "a tensor must have an offset, and a stride for each size")
        # The stride of a dimension of length 1 means nothing, and may be any number.
        strides = [step if length > 1 else 1 for length, step in zip(size, steps, strict=True)]
        last = sum((length - 1) * step for length, step in zip(size, strides, strict=True))
        start, stop = (offset * item, (offset + last + 1) * item) if n else (0, 0)
        require(stop <= storage.n_bytes, f"a tensor must lie within its {storage.n_bytes} bytes")
        if dtype not in STORED or storage.dtype not in STORED:
            return Entry(dtype, size, storage.n_bytes)
        pairs = flags[0].items if flags and isinstance(flags[0], Object) else flags
        is_negated = ("neg", True) in pairs  # a view that PyTorch left lazy
        is_right = pairs in ([], [None], [("neg", False)], [("neg", dtype != "bool")])
        require(is_right, "the flags of a real tensor must be 'neg' or nothing")

        def read() -> NDArray[Any]:
            fetch = partial(self.archive.read, storage.record, start, stop)
            elements = decoded(fetch, dtype, self.order, -1)
            elements = -elements if is_negated else elements
            byte_strides = [step * elements.itemsize for step in strides]
            return np.ndarray(size, elements.dtype, elements, 0, byte_strides)

        is_whole = storage.record in self.archive.deflated
        return Entry(dtype, size, storage.n_bytes if is_whole else stop - start, read)

    def visit(self, value: Any, keys: tuple[str, ...], around: tuple[int, ...] = ()) -> None:
        """Add every tensor in nested containers under its dotted name, in the order of the file."""
        if isinstance(value, Object):
            attributes = value.state.items if isinstance(value.state, Object) else []
            self.spend(len(attributes))
            if any(key == "_parameters" for key, _ in attributes):
                value = Entry(f"a pickled module, {shown(value.kind)}")
            elif value.kind.startswith("numpy.") and value.kind.endswith(ARRAYS):
                value = Entry("a NumPy array")  # pickled beside the tensors
        if isinstance(value, Entry):
            name = ".".join(keys)
            if name in self.entries:
                found, remedy = f"{shown(name)} twice", "rename one of the two and save again"
                raise CheckpointError("the names of tensors must differ", found, remedy)
            self.entries[name] = value
            self.spend(len(name) // 16, value.n_bytes if value.read else 0)
        elif isinstance(value, (Object, tuple)) and id(value) not in around:
            for key, child in value.items if isinstance(value, Object) else enumerate(value):
                self.spend(1 if len(keys) < DEPTH else VISITS)
                if isinstance(key, str) or are_sizes([key]):  # other keys give no name
                    self.visit(child, (*keys, str(key)), (*around, id(value)))

    def spend(self, visits: int, n_bytes: int = 0) -> None:
        """Count what a file could have endlessly: values looked at, and bytes read."""
        self.visits, self.bytes = self.visits - visits, self.bytes - n_bytes
        if min(self.visits, self.bytes) < 0:
            limits = f"nest {DEPTH} deep, hold {VISITS} values and view {self.archive.limit} bytes"
            remedy = "save only the state dict, with a `clone()` of each tensor"
            raise CheckpointError(f"the containers must at most {limits}", "more", remedy)
