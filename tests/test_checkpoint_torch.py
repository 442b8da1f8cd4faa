"""PyTorch's zip files: every value is read exactly, and nothing is executed."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_files import Call, Storage, named, tensor, untyped_view, view

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.tensors import none_found

DTYPES = ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
arrays = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), max_size=4)
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
        assert checkpoint.spec(name) == (array.dtype.name, array.shape)


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
    assert repr(checkpoint) == f"<Checkpoint {str(target)!r}: PyTorch zip, 1 tensors>"
    assert len(checkpoint.sha256()) == 64


def test_bfloat16_is_read_as_float32(target):
    raw = np.arange(0, 65536, 37, np.uint16)
    stored = Storage(raw.astype("<u2").tobytes(), "BFloat16", raw.size)
    checkpoint = read(target, {"b": view(stored, 0, raw.shape, [1])})
    expected = (raw.astype(np.uint32) << 16).view(np.float32)
    assert checkpoint.spec("b") == ("bfloat16", raw.shape)
    assert np.array_equal(checkpoint["b"].view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("dtype", "known"),
    [
        ("float8_e4m3fn", {0x00: 0, 0x01: 2**-9, 0x38: 1, 0x7E: 448, 0x7F: np.nan, 0xFE: -448}),
        ("float8_e4m3fnuz", {0x01: 2**-10, 0x40: 1, 0x7F: 240, 0x80: np.nan, 0xC0: -1}),
        ("float8_e5m2", {0x01: 2**-16, 0x3C: 1, 0x7B: 57344, 0x7C: np.inf, 0xFE: np.nan}),
        ("float8_e5m2fnuz", {0x01: 2**-17, 0x40: 1, 0x7F: 57344, 0x80: np.nan}),
        ("float8_e8m0fnu", {0x00: 2**-127, 0x7F: 1, 0xFE: 2**127, 0xFF: np.nan}),
    ],
)
def test_float8_is_read_as_float32(target, dtype, known):
    checkpoint = read(target, {"f": untyped_view(bytes(range(256)), dtype, 0, [256], [1])})
    array = checkpoint["f"]
    assert array.dtype == np.float32
    assert checkpoint.spec("f").dtype == dtype
    for code, value in known.items():
        assert np.array_equal(array[code], np.float32(value), equal_nan=True)


def test_a_boolean_byte_is_true_or_false(target):
    stored = Storage(b"\x00\x01\x02", "Bool", 3)
    assert read(target, {"b": view(stored, 0, [3], [1])})["b"].tolist() == [False, True, True]


def test_an_untyped_storage_of_many_byte_elements(target):
    raw = np.arange(4, dtype="<u4").tobytes()
    checkpoint = read(target, {"u": untyped_view(raw, "uint32", 1, [3], [1])})
    assert same(checkpoint["u"], np.uint32([1, 2, 3]))


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
    assert checkpoint.spec("own").dtype == "'my.rebuild'"


def test_tied_tensors_share_memory_while_they_are_held(target):
    tied = tensor(np.float32([1, 2]))
    checkpoint = read(target, {"a": tied, "b": tied})
    held = dict(checkpoint)
    assert np.shares_memory(held["a"], held["b"])


@pytest.mark.parametrize("deflated", [False, True])
def test_many_views_of_one_storage_share_its_memory(target, deflated):
    stored = torch_files.storage(np.arange(2**16, dtype=np.int64))
    tree = [view(stored, i, [2**15], [1]) for i in range(2000)]
    arrays = list(read(target, tree, deflated=deflated).values())
    assert all(np.shares_memory(arrays[0], array) for array in arrays[1:])
    assert arrays[1999][0] == 1999


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
    for name, dtype in {
        "complex": "complex64",
        "quantized": "qint8",
        "sparse": "sparse float32",
        "odd": "sparse",
        "meta": "'meta_tensor_no_storage'",
        "packed": "float4_e2m1fn_x2",
        "unknown": r"'torch.x\\x1b'",
        "own": "'a.B'",
    }.items():
        assert name not in checkpoint
        match = f"'{name}' must be a Boolean, integer or float tensor, found {dtype}; "
        with pytest.raises(CheckpointError, match=match):
            checkpoint[name]


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_executed(target, tmp_path, protocol):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    payload = Payload()
    data = torch_files.saved({"w": tensor(np.float32([1])), "x": payload}, protocol=protocol)
    target.write_bytes(data)
    checkpoint = read_checkpoint(target)
    assert checkpoint["w"].tolist() == [1]
    assert not marker.exists()
    pickle.loads(pickle.dumps(payload))  # the payload is live: Python's unpickler follows it
    assert marker.exists()


def test_a_pickled_module_is_refused(target):
    module = Call(named("torch.nn", "Linear"), (), {"_parameters": {"weight": tensor([1.0])}})
    remedy = r"a whole pickled module, 'torch\.nn\.Linear'; save `model\.state_dict\(\)` instead of"
    with pytest.raises(CheckpointError, match=f"found only {remedy}"):
        read(target, module)
    with pytest.raises(CheckpointError, match=rf"only others, such as 'model\.0' of {remedy}"):
        read(target, {"model": [module]})
    checkpoint = read(target, {"model": module, "optimizer": [tensor(np.float32([1]))]})
    assert list(checkpoint) == ["optimizer.0"]
    assert list(checkpoint.unlisted) == ["model"]
    with pytest.raises(CheckpointError, match=f"'model' must be a .* float tensor, found {remedy}"):
        checkpoint["model"]
    assert none_found(checkpoint) == (
        "there is 'model', a whole pickled module, 'torch.nn.Linear': "
        "save `model.state_dict()` instead of `model`"
    )
    with pytest.raises(CheckpointError, match="found only others, such as 'c' of complex64; conv"):
        read(target, {"c": tensor(np.complex64([1]))})
    with pytest.raises(CheckpointError, match="integer or float tensor, found none"):
        read(target, 5)


def function(name, *arguments):
    return {"x": Call(named("torch._utils", name), arguments)}


def typed(count):
    return Storage(b"abcd", "Float", count)


one = tensor(np.float32([1]))
v2, v3 = "_rebuild_tensor_v2", "_rebuild_tensor_v3"


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"a": {"b": one}, "a.b": one}, "names of tensors must differ, found 'a.b' twice"),
        (
            {1: one, "1": one},
            "names of tensors must differ, found '1' twice; rename one of the two",
        ),
        (function(v2, typed(1), 0, (1,), (1,), False, 0), f"must call {v2} with its arguments"),
        (function("_rebuild_parameter", one, 1, {}), "must call _rebuild_parameter with"),
        ({"x" * 5000: one}, "the name of a tensor must be UTF-8 text of at most 4096 characters"),
        ({"\ud800": one}, r"UTF-8 text of at most 4096 characters, found '\\ud800'; rename"),
        (function(v2, 1, 0, (), (), False, {}), f"must call {v2} with its arguments"),
        (function(v2, typed(1)), f"must call {v2} with its arguments"),
        (function("_rebuild_parameter", 1, True, {}), "must call _rebuild_parameter with"),
        (function("_rebuild_from_type_v2", named("t", "_rebuild_from_type_v2")), "_from_type_v2"),
        ({"x": view(typed(1), True, [1], [1])}, "an offset, a size, strides and one"),
        ({"x": view(typed(1), -1, [1], [1])}, "an offset, a size, strides and one"),
        ({"x": view(typed(1), 0, [1.0], [1])}, "an offset, a size, strides and one"),
        ({"x": view(typed(1), 0, [1], [2**63])}, "an offset, a size, strides and one"),
        (function(v2, typed(1), 0, [1], (1,), False, {}), "an offset, a size, strides and one"),
        ({"x": view(typed(1), 0, [1], [1], {}, {})}, "strides and one set of flags, found some"),
        ({"x": view(typed(1), 0, [1], [])}, "a tensor of 1 dimensions must have as many strides"),
        ({"x": view(typed(1), 1, [1], [1])}, "lie within its storage of 4 bytes, found size"),
        ({"x": view(typed(1), 0, [2], [1])}, "lie within its storage of 4 bytes"),
        ({"x": view(typed(2), 0, [1], [1])}, "'archive/data/0' must have 8 bytes, found 4"),
        (
            {"x": view(Storage(b"abcd", "ComplexFloat", 1), 0, [1], [1])},
            "data/0' must have 8 bytes",
        ),
        ({"x": view(Storage(b"12345678", "ComplexFloat", 1), 0, [2], [1])}, "lie within its stor"),
        (
            {
                "x": view(Storage(b"abcd", "Float", 1, key="7"), 0, [1], [1]),
                "y": view(Storage(b"abcd", "Int", 1, key="7"), 0, [1], [1]),
            },
            "storage '7' must have one type and size, found two",
        ),
        ({"x": view(Storage(b"", "Float", -1), 0, [1], [1])}, "describe storages by type, key"),
        ({"x": view(Storage(b"", "Float", True), 0, [1], [1])}, "describe storages by type, key"),
        ({"x": view(typed(1), 0, [1], [1], {"neg": 1})}, "must be 'neg' or nothing"),
        ({"x": view(typed(1), 0, [1], [1], {"new": True})}, "must be 'neg' or nothing"),
        ({"x": view(Storage(b"1", "Bool", 1), 0, [1], [1], {"neg": True})}, "'neg' or nothing"),
    ],
)
def test_a_wrong_description_of_a_tensor_is_refused(target, tree, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        read(target, tree)
    assert str(caught.value).startswith(f"{target}: ")
    assert "\n" not in str(caught.value)


def test_a_storage_without_a_record_is_refused(target):
    files = torch_files.records({"x": one})
    del files["archive/data/0"]
    target.write_bytes(torch_files.zipped(files))
    with pytest.raises(CheckpointError, match="'archive/data/0' must have 4 bytes, found no such"):
        read_checkpoint(target)


def test_an_unknown_byte_order_is_refused(target):
    with pytest.raises(CheckpointError, match="must be 'little' or 'big', found 'middle'"):
        read(target, {"x": one}, byte_order="middle")
    assert read(target, {"x": one}, byte_order=None)["x"].tolist() == [1]


def nested(value, times):
    for _ in range(times):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        (nested(one, 63), ["x" + ".0" * 63]),
        ([nested(None, 200), nested([], 90), nested({}, 64)], []),
        ({1: ["a", 1], "1": ["b", 2]}, []),
        ({1: {"a": one}, "1": {"b": one}}, ["x.1.a", "x.1.b"]),
        ({"k" * 5000: [1], "\ud800": [{}]}, []),
    ],
    ids=["deep", "deeper", "keys", "keys of tensors", "names"],
)
def test_what_lies_beside_the_weights_needs_no_name(target, beside, names):
    assert list(read(target, {"w": one, "x": beside})) == ["w", *names]


def test_containers_within_themselves_are_passed_over(target):
    values, table = [one], {"t": one}
    values.append(values)
    table |= {"table": table, "values": values}
    expected = ["w", "x.0", "y.t", "y.values.0"]
    assert list(read(target, {"w": one, "x": values, "y": table})) == expected
    deep = nested(values, 80)
    with pytest.raises(CheckpointError, match="must nest at most 64 deep and hold"):
        read(target, {"w": one, "x": deep})
    values[0] = 5
    assert list(read(target, {"w": one, "x": deep})) == ["w"]


@pytest.mark.parametrize(
    ("size", "strides"),
    [([1] * 33, [1] * 33), ([2**40, 2**40], [0, 0]), ([2**31, 0, 2**31], [0, 0, 0])],
)
def test_shapes_beyond_those_of_numpy_are_not_listed(target, size, strides):
    checkpoint = read(target, {"w": one, "x": view(typed(1), 0, size, strides)})
    assert list(checkpoint) == ["w"]
    assert checkpoint.spec("x") == ("oversized float32", tuple(size))
    assert checkpoint.unlisted == {"x": "save it with at most 32 dimensions and 2**58 elements"}


def test_endless_containers_are_refused(target, monkeypatch):
    monkeypatch.setattr("edgeconv.checkpoint.pytorch.VISITS", 2**14)
    monkeypatch.setattr("edgeconv.checkpoint.pytorch.TENSORS", 2**10)
    many, none = one, []
    for _ in range(40):
        many, none = [many, many], [none, none]
    for tree in (nested(one, 65), many, none):
        with pytest.raises(CheckpointError, match="must nest at most 64 deep and hold"):
            read(target, tree)
    state = {str(index): None for index in range(1000)}
    objects = [Call(named("a", "B"), (), state) for _ in range(1000)]
    limit = 16 * len(torch_files.pickled(objects)[0])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"hold at most {limit} values"):
        read(target, objects)
    monkeypatch.setattr("edgeconv.checkpoint.pytorch.NAMES_CHARACTERS", 35)
    read(target, {"x" * 33: [one], "y": one})
    with pytest.raises(CheckpointError, match="and 35 characters of names, found more"):
        read(target, {"x" * 33: [[one]], "y": one})


PICKLES = [
    (b"", "pickle must be complete, found its end"),
    (b"\x80\x02", "pickle must be complete, found its end"),
    (b"\x80\x02X\xff\xff\xff\xff", "pickle must be complete, found its end"),
    (b"\x80\x01N.", "protocol 2 to 5"),
    (b"\x80\x02N.N", "must end with its value, found more"),
    (b"\x80\x02(N.", "must end with its value"),
    (b"\x80\x02.", "pickle must be complete, found a broken one"),
    (b"\x80\x02h\x00.", "pickle must be complete, found a broken one"),
    (b"\x80\x02t.", "pickle must be complete, found a broken one"),
    (b"\x80\x02N\x86.", "pickle must be complete, found a broken one"),
    (b"\x80\x02R.", "pickle must be complete, found a broken one"),
    (b"\x80\x02i", "opcodes of protocols 2 to 5 that describe values, found opcode 69"),
    (b"\x80\x02X\x01\x00\x00\x00\xff.", "text in the pickle must be UTF-8"),
    (b"\x80\x02cos", "must have short lines, found a long one, or its end"),
    (b"\x80\x02c" + b"x" * 1025, "must have short lines, found a long one, or its end"),
    (b"\x80\x02NN.", "must end with its value, found more"),
    (b"\x80\x02NN\x93.", "name classes by short texts, found NoneType"),
    (b"\x80\x02c" + b"x" * 300 + b"\nsystem\n.", "name classes by short texts"),
    (b"\x80\x02N)R.", "must call a class or function, found NoneType"),
    (b"\x80\x02cos\nsystem\nNR.", "must call a class or function"),
    (b"\x80\x02NNa.", "must append to a list, found NoneType"),
    (b"\x80\x02}(Nu.", "put pairs into a dict, found Object"),
    (b"\x80\x02](NNu.", "put pairs into a dict, found list"),
    (b"\x80\x02NQ.", "describe storages by type, key and size"),
]


@pytest.mark.parametrize(("data", "match"), PICKLES)
def test_a_damaged_pickle_is_refused(target, data, match):
    target.write_bytes(torch_files.zipped({"a/data.pkl": data}))
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(target)


def test_the_other_opcodes_of_pickles(target):
    # POP, POP_MARK; NEWOBJ_EX; an instance called; NEWFALSE; FRAME.
    data = b"\x80\x04\x95" + bytes(8) + b"N0(NN1N0cos\nfoo\n)}\x920cos\nfoo\n)R)R0\x89."
    target.write_bytes(torch_files.zipped({"a/data.pkl": data}))
    with pytest.raises(CheckpointError, match="integer or float tensor, found none"):
        read_checkpoint(target)


def test_a_pickle_of_too_many_opcodes_or_bytes_is_refused(target, monkeypatch):
    monkeypatch.setattr("edgeconv.checkpoint.pickled.OPCODES", 5)
    with pytest.raises(CheckpointError, match="must have at most 5 opcodes"):
        read(target, {"x": one})
    monkeypatch.setattr("edgeconv.checkpoint.pytorch.PICKLE_BYTES", 5)
    with pytest.raises(CheckpointError, match=r"'archive/data\.pkl' must have at most 5 bytes"):
        read(target, {"x": one})


def test_truncated_files_are_refused(target):
    data = torch_files.saved({"w": tensor(np.arange(90, dtype=np.float32))})
    for length in range(0, len(data), 64):
        target.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(target)
