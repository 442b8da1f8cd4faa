"""Tensors as PyTorch saves them: views of storages, of which each view reads what it needs."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint.elements import decoded, item_size
from edgeconv.checkpoint.mapping import UNLISTED, Entry, TensorSpec

__all__ = ["Storage", "Tensor", "Views"]

OVERLAP = 4  # bytes of tensors per byte of storage, beyond which views share copies of as many


@dataclass(frozen=True)
class Storage:
    """A run of elements under a key of the file; its tensors see those from `first` to `stop`."""

    dtype: str
    key: str
    count: int
    byte_order: str
    first: int
    stop: int

    @property
    def size(self) -> int:
        """The number of bytes; 0 if the type is not known."""
        return self.count * item_size(self.dtype)


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, or of None if it is not listed. Offset and strides count elements."""

    spec: TensorSpec
    storage: Storage | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()
    negated: bool = False
    remedy: str = UNLISTED

    @property
    def span(self) -> tuple[int, int]:
        """The first element used and the one after the last."""
        if 0 in self.spec.shape:
            return 0, 0
        steps = zip(self.spec.shape, self.strides, strict=True)
        return self.offset, self.offset + 1 + sum((n - 1) * stride for n, stride in steps)


Fetch: TypeAlias = Callable[[BinaryIO, str, int, int], bytes | bytearray]
"""Reads a part of a storage: given the open file, the key, and where the part starts and stops."""


class Views:
    """The storages of a file, and how its tensors are read from them."""

    def __init__(
        self, tensors: Iterable[Tensor], fetch: Fetch, deflated: Container[str] = ()
    ) -> None:
        self.fetch = fetch
        viewers: Counter[str] = Counter()
        demand: Counter[str] = Counter()
        # These are read whole, once, and kept: that bounds the memory where many views overlap,
        # and the time where each view would inflate the storage again.
        self.whole = set()
        for tensor in tensors:
            if tensor.storage:
                start, stop = tensor.span
                key = tensor.storage.key
                viewers[key] += 1
                demand[key] += (stop - start) * item_size(tensor.spec.dtype)
                if (key in deflated and viewers[key] > 1) or (
                    demand[key] > OVERLAP * tensor.storage.size
                ):
                    self.whole.add(key)
        self.copies: dict[str, dict[tuple[str, bool], int]] = {}
        """The types and signs in which each of these is kept, and the bytes per byte of it."""
        self.kept: dict[object, NDArray[Any]] = {}
        self.alive: weakref.WeakValueDictionary[object, NDArray[Any]]
        self.alive = weakref.WeakValueDictionary()

    def entry(self, tensor: Tensor) -> Entry:
        """Describe a tensor and how it is read, if it is listed."""
        spec, storage = tensor.spec, tensor.storage
        if storage is None:
            return Entry(spec, None, tensor.remedy)
        if storage.key in self.whole:
            copies = self.copies.setdefault(storage.key, {})
            widening = decoded(b"", spec.dtype).itemsize // item_size(spec.dtype)
            copies[spec.dtype, tensor.negated] = widening
            if sum(copies.values()) > OVERLAP:
                del copies[spec.dtype, tensor.negated]
                return Entry(
                    spec._replace(dtype=f"reinterpreted {spec.dtype}"),
                    None,
                    "save a copy of it, such as its `clone()`",
                )
        return Entry(spec, partial(self.read, tensor, storage))

    def read(self, tensor: Tensor, storage: Storage, file: BinaryIO) -> NDArray[Any]:
        """Read one tensor, a view of `storage`."""
        dtype = tensor.spec.dtype
        if 0 in tensor.spec.shape:
            return decoded(b"", dtype).reshape(tensor.spec.shape)
        item = item_size(dtype)
        start, stop = tensor.span
        if storage.key in self.whole:
            start, stop = 0, storage.size // item
        key = (storage.key, dtype, tensor.negated, start, stop)
        elements = self.alive.get(key)
        if elements is None:
            raw = self.fetch(file, storage.key, start * item, stop * item)
            elements = decoded(raw, dtype, storage.byte_order)
            elements = -elements if tensor.negated else elements
            self.alive[key] = elements
            if storage.key in self.whole:
                self.kept[key] = elements
        strides = tuple(step * elements.itemsize for step in tensor.strides)
        offset = (tensor.offset - start) * elements.itemsize
        return np.ndarray(tensor.spec.shape, elements.dtype, elements, offset, strides)
