"""PyTorch's zip files: every value is read exactly, and nothing is executed."""

import argparse
import collections
import datetime
import hashlib
import pathlib

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_files import Call, Storage, named, tensor, untyped_view, view

from edgeconv.checkpoint import CheckpointError, read_checkpoint

DTYPES = ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
arrays = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
keys = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="."), max_size=4)
trees = st.recursive(
    arrays | st.integers() | st.none() | st.floats() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("torch") / "file.pth"


def read(target, value, **options):
    target.unlink(missing_ok=True)
    target.write_bytes(torch_files.saved(value, **options))
    return read_checkpoint(target)


def flat(tree, name=""):
    if isinstance(tree, np.ndarray):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = {}
    for key, child in items:
        if isinstance(child, (dict, list, np.ndarray)):
            found |= flat(child, f"{name}.{key}" if name is not None else str(key))
    return found


def as_saved(tree, byte_order):
    if isinstance(tree, np.ndarray):
        return tensor(tree, byte_order)
    if isinstance(tree, dict):
        return {key: as_saved(child, byte_order) for key, child in tree.items()}
    return [as_saved(child, byte_order) for child in tree] if isinstance(tree, list) else tree


def same(left, right):
    return left.dtype == right.dtype and np.array_equal(
        left, right, equal_nan=left.dtype.kind == "f"
    )


@given(
    st.dictionaries(keys, trees, max_size=4),
    st.sampled_from(["little", "big"]),
    st.integers(2, 5),
    st.booleans(),
    st.sampled_from(["archive", "a b", "x/y", "ü"]),
)
def test_nested_containers_are_read_under_dotted_names(
    target, tree, order, protocol, deflated, stem
):
    tree = {"model": tree, "first": np.float32([1, 2])}
    expected = flat(tree, None)
    checkpoint = read(
        target,
        as_saved(tree, order),
        byte_order=order,
        protocol=protocol,
        deflated=deflated,
        stem=stem,
    )
    assert list(checkpoint) == list(expected)
    assert len(checkpoint) == len(expected)
    for name, array in expected.items():
        assert same(checkpoint[name], array)
        assert checkpoint.entries[name][:2] == (array.dtype.name, array.shape)


@given(st.data())
def test_every_view_of_a_storage_is_read_exactly(target, data):
    stored = np.arange(data.draw(st.integers(1, 60)), dtype=np.int16)
    views, expected = {}, {}
    for index in range(data.draw(st.integers(1, 6))):
        size = data.draw(st.lists(st.integers(0, 4), max_size=3))
        strides = data.draw(st.lists(st.integers(0, 9), min_size=len(size), max_size=len(size)))
        last = sum((n - 1) * step for n, step in zip(size, strides, strict=True) if n)
        offset = data.draw(st.integers(0, 60))
        if offset + last >= len(stored) and 0 not in size:
            offset = last = 0
            strides = [0] * len(size)
        views[f"v{index}"] = (offset, size, strides)
        window = stored[offset:] if 0 not in size else stored
        expected[f"v{index}"] = np.lib.stride_tricks.as_strided(
            window, size, [2 * step for step in strides]
        )
    shared = torch_files.storage(stored)
    checkpoint = read(target, {name: view(shared, *where) for name, where in views.items()})
    for name, array in expected.items():
        assert same(checkpoint[name], array)


def test_tensors_are_read_only_and_fresh(target):
    checkpoint = read(target, {"a": tensor(np.float32([1, 2]))})
    with pytest.raises(ValueError, match="read-only"):
        checkpoint["a"][0] = 3
    assert checkpoint.get("b") is None
    assert "b" not in checkpoint
    assert checkpoint.format == "PyTorch zip"
    assert checkpoint.header is None
    data = target.read_bytes()
    assert (checkpoint.size, checkpoint.path) == (len(data), str(target))
    assert checkpoint.sha256() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("dtype", "known"),
    [
        ("float8_e4m3fn", {0x00: 0, 0x01: 2**-9, 0x38: 1, 0x7E: 448, 0x7F: np.nan, 0xFE: -448}),
        ("float8_e5m2", {0x01: 2**-16, 0x3C: 1, 0x7B: 57344, 0x7C: np.inf, 0xFE: np.nan}),
    ],
)
def test_float8_is_read_as_float32(target, dtype, known):
    checkpoint = read(target, {"f": untyped_view(bytes(range(256)), dtype, 0, [256], [1])})
    array = checkpoint["f"]
    assert array.dtype == np.float32
    assert checkpoint.entries["f"].dtype == dtype
    for code, value in known.items():
        assert np.array_equal(array[code], np.float32(value), equal_nan=True)


def test_a_boolean_byte_is_true_or_false(target):
    stored = Storage(b"\x00\x01\x02", "Bool", 3)
    assert read(target, {"b": view(stored, 0, [3], [1])})["b"].tolist() == [False, True, True]


def test_a_negated_view_is_negated(target):
    stored = torch_files.storage(np.float32([1, -2]))
    tree = {
        "n": view(stored, 0, [2], [1], {"neg": True}),
        "p": view(stored, 0, [2], [1], {"neg": False}),
        "q": view(stored, 0, [2], [1], {}),
    }
    checkpoint = read(target, tree)
    assert checkpoint["n"].tolist() == [-1, 2]
    assert checkpoint["p"].tolist() == checkpoint["q"].tolist() == [1, -2]


def test_parameters_and_tensors_with_attributes(target):
    weight = tensor(np.float32([1]))
    with_state = named("torch._utils", "_rebuild_parameter_with_state")
    from_type = named("torch._tensor", "_rebuild_from_type_v2")
    old = named("torch.tensor", "_rebuild_from_type")
    tree = {
        "p": torch_files.parameter(np.float32([2])),
        "s": Call(with_state, (weight, True, {}, {"tag": 1})),
        "t": Call(from_type, (weight.function, named("torch", "Tensor"), weight.arguments, {})),
        "old": Call(old, (weight.function, named("my", "Tensor"), weight.arguments, {})),
        "own": Call(from_type, (named("my", "rebuild"), named("my", "Tensor"), (), {})),
        "size": Call(named("torch", "Size"), ((3, 4),)),
    }
    checkpoint = read(target, tree)
    assert {name: checkpoint[name].tolist() for name in checkpoint} == {
        "p": [2],
        "s": [1],
        "t": [1],
        "old": [1],
    }
    assert checkpoint.entries["own"].dtype == "my.rebuild"


def test_an_expanded_tensor_takes_no_memory(target):
    huge = view(torch_files.storage(np.float32([5])), 0, [2**30, 2**20], [0, 0])
    array = read(target, {"x": huge})["x"]
    assert array.shape == (2**30, 2**20)
    assert array[-1, -1] == 5


def test_only_the_bytes_of_a_view_are_read(target):
    stored = torch_files.storage(np.arange(100, dtype=np.float32))
    tree = {"a": view(stored, 0, [50], [1]), "b": view(stored, 50, [50], [1])}
    checkpoint = read(target, tree)
    for _ in range(2):  # the second time, the checksum is known to be right
        assert checkpoint["b"].tolist() == list(range(50, 100))
    assert checkpoint["b"].base.nbytes == 200


class Unknown:
    """An object such as training leaves beside the weights."""

    def __init__(self, **state):
        self.__dict__.update(state)


class Kept(dict):
    """A dictionary of a class of its own."""


class Listed(list):
    """A list of a class of its own."""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_unknown_objects_are_placeholders(target, protocol):
    tree = {
        "args": argparse.Namespace(lr=1e-3, optim="adam"),
        "reporter": [datetime.timedelta(seconds=3), pathlib.PurePosixPath("x")],
        "numpy": np.float64(3.5),
        "array": np.arange(3),
        "scalars": [np.float32(1), np.bool_(True)],
        "count": collections.Counter("aab"),
        "order": collections.OrderedDict(weight=tensor(np.float32([1]))),
        "default": collections.defaultdict(list, {"x": [tensor(np.int8([2]))]}),
        "own": Kept(y=tensor(np.int8([3]))),
        "list": Listed([tensor(np.int8([4]))]),
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "bytes": b"abc" * 100,
        "bytearray": bytearray(b"xyz"),
        "long": [2**100, -(2**3000), 2**2039, 70000, -5],
        "text": "x" * 300,
        "nothing": None,
        "unnamed": {(1, 2): tensor(np.int8([5])), None: tensor(np.int8([6]))},
        "state": Unknown(weight=[1, 2, 3]),
        7: tensor(np.int8([7])),
    }
    checkpoint = read(target, tree, protocol=protocol)
    values = {name: checkpoint[name].tolist() for name in checkpoint}
    assert values == {
        "order.weight": [1],
        "default.x.0": [2],
        "own.y": [3],
        "list.0": [4],
        "7": [7],
    }


def test_complex_quantized_sparse_and_other_tensors_are_not_listed(target):
    utils = "torch._utils"
    quantized = Storage(b"abc", "QInt8", 3)
    values = tensor(np.float32([1]))
    tree = {
        "good": values,
        "complex": tensor(np.complex64([1j])),
        "quantized": Call(named(utils, "_rebuild_qtensor"), (quantized, 0, (3,), (1,), (), False)),
        "sparse": Call(named(utils, "_rebuild_sparse_tensor"), ("coo", (values, values, (9,)))),
        "odd": Call(named(utils, "_rebuild_sparse_tensor"), ("coo", (1, 2, 3, 4, values))),
        "meta": Call(named(utils, "_rebuild_meta_tensor_no_storage"), ()),
        "packed": untyped_view(b"ab", "float4_e2m1fn_x2", 0, [2], [1]),
        "unknown": untyped_view(b"ab", "x\x1b", 0, [2], [1]),
        "own": Call(named(utils, "_rebuild_parameter"), (Call(named("a", "B"), ()), True, {})),
    }
    checkpoint = read(target, tree)
    assert list(checkpoint) == ["good"]
    sizes = {name: (e.shape, e.n_bytes) for name, e in checkpoint.entries.items()}
    assert (sizes["quantized"], sizes["sparse"]) == (((3,), 3), ((), 8))
    for name, dtype in {
        "complex": "complex64; convert it in PyTorch",
        "quantized": "qint8; save its `dequantize",
        "sparse": "sparse_tensor; save its `to_dense",
        "odd": "sparse",
        "meta": "meta_tensor_no_storage",
        "packed": "float4_e2m1fn_x2",
        "unknown": r"x\\x1b",
        "own": "parameter",
    }.items():
        assert name not in checkpoint
        match = f"'{name}' must be a Boolean, integer or float tensor, found {dtype}"
        with pytest.raises(CheckpointError, match=match):
            checkpoint[name]


def test_a_pickled_module_is_refused(target):
    module = Call(named("torch.nn", "Linear"), (), {"_parameters": {"weight": tensor([1.0])}})
    found = (
        r"found a pickled module, 'torch\.nn\.Linear'; load it where its class is, and save `mod"
    )
    with pytest.raises(CheckpointError, match=found):
        read(target, module)
    checkpoint = read(target, {"model": module, "optimizer": [tensor(np.float32([1]))]})
    assert list(checkpoint) == ["optimizer.0"]
    with pytest.raises(CheckpointError, match=f"'model' must be a .* float tensor, {found}"):
        checkpoint["model"]
    with pytest.raises(
        CheckpointError, match=r"must hold a tensor, found none; load it in PyTorch and save"
    ):
        read(target, 5)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_numpy_are_named(target, protocol):
    with pytest.raises(CheckpointError, match=r"'w' .*a NumPy array; save `torch.from_numpy"):
        read(target, {"w": np.ones((2, 3), np.float32)}, protocol=protocol)
    one = tensor(np.float32([1]))
    checkpoint = read(target, {"x": one, "a": [np.arange(3)]}, protocol=protocol)
    assert list(checkpoint) == ["x"]
    assert checkpoint.entries["a.0"].dtype == "a NumPy array"
