"""Modules and files: what is written is read back, and what is unclear is refused."""

import hashlib
import json
import re
import zipfile

import numpy as np
import pytest
import torch_files
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeconv import (
    CheckpointError,
    DepthwiseConvolution,
    convert,
    find_convolutions,
    load,
    load_all,
    save,
    verify,
)

W = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
B = np.float32([1, 2, 3, 4])
GEOMETRY = {"causal": True, "channels": 4, "kernel_size": 3}
FIRST, SECOND = "model.blocks.0.dw", "model.blocks.1.dw"
MODULE = DepthwiseConvolution(2, 3, causal=True, rng=0)
prefixes = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12)
modules = st.builds(
    DepthwiseConvolution,
    *(st.integers(1, 3), st.sampled_from([1, 3, 5]), st.booleans()),
    rng=st.integers(0, 9),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "target"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


@pytest.fixture
def source(tmp_path):
    """A training checkpoint of PyTorch with two convolutions."""
    model = {}
    for name, weight in (("blocks.0.dw.conv", W), ("blocks.1.dw.conv", -W)):
        tensors = {"weight": torch_files.tensor(weight), "bias": torch_files.tensor(B)}
        model |= {f"{name}.{key}": value for key, value in tensors.items()}
    path = tmp_path / "source.pth"
    path.write_bytes(torch_files.saved({"model": model, "epoch": 3}))
    return path


@pytest.fixture
def archive(tmp_path):
    """Return a function that writes arrays as an .npz and returns its path."""
    path = tmp_path / "w.npz"
    return lambda arrays: np.savez(path, **arrays) or path


def same(left, right):
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, array in left.state_dict().items():
        assert array.tobytes() == right.state_dict()[name].tobytes()
    assert left.causal == right.causal


@settings(max_examples=20)
@given(st.dictionaries(prefixes, modules, min_size=1, max_size=3))
def test_what_is_saved_is_loaded(shared, modules):
    save(shared, modules)
    loaded = load_all(shared)
    assert list(loaded) == list(modules)
    for prefix, module in modules.items():
        same(loaded[prefix], module)
        same(load(shared, prefix, module.causal), module)
    assert find_convolutions(shared) == [
        (prefix, module.channels, module.kernel_size) for prefix, module in modules.items()
    ]


def test_the_format(target):
    save(target, {"a.b": MODULE, "": MODULE})
    parameters = "a.b.conv.weight", "a.b.conv.bias", "conv.weight", "conv.bias"
    with np.load(target, allow_pickle=False) as arrays:
        assert list(arrays) == ["edgeconv", *parameters]
        assert np.array_equal(arrays["a.b.conv.weight"], MODULE.weight)
        header = json.loads(str(arrays["edgeconv"]))
    fields = GEOMETRY | {"digest": verify(MODULE)[""]}
    modules = {"a.b": fields, "": fields}
    assert header == {"format": "edgeconv", "version": 1, "modules": modules, "source": None}
    with zipfile.ZipFile(target) as opened:  # no date, which would change the bytes
        assert {record.date_time for record in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_names_that_end_in_conv_come_back(target):
    convs = {
        name: DepthwiseConvolution(2, 3, causal=True, rng=i)
        for i, name in enumerate(("a", "a.conv", "", "conv"))
    }
    save(target, convs)
    assert list(load_all(target)) == list(convs)
    for name, conv in convs.items():
        same(load(target, name), conv)


def test_convert(source, target):
    assert convert(source, target, causal=True) == [(FIRST, 4, 3), (SECOND, 4, 3)]
    assert all(module.causal for module in load_all(target).values())
    same(load(target, SECOND), load(source, SECOND, causal=True))
    with np.load(target) as arrays:
        assert json.loads(str(arrays["edgeconv"]))["source"] == {
            "name": "source.pth",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    assert convert(source, target, prefixes=[SECOND], causal=np.bool_(False)) == [(SECOND, 4, 3)]
    same(load(target), load(source, SECOND, causal=False))


@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("kernel_size", [1, 4, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_any_geometry(channels, kernel_size, bias, archive, target):
    weight = np.random.default_rng(0).standard_normal((channels, 1, kernel_size), np.float32)
    biases = {"a.bias": np.ones(channels, np.float32)} if bias else {}
    path = archive({"a.weight": weight, **biases})
    assert find_convolutions(path) == [("a", channels, kernel_size)]
    conv = load(path, causal=True)
    assert np.array_equal(conv.weight, weight)
    assert np.array_equal(conv.bias, np.full(channels, float(bias)))
    convert(path, target, causal=True)
    same(load(target), conv)
    verify(target)
    verify(conv)
    if kernel_size % 2:
        assert not load(path, causal=False).causal
    else:
        with pytest.raises(CheckpointError, match=f"^{path}: .*odd number of taps"):
            load(path, causal=False)


def test_an_even_kernel_stops_nobody_else(archive, target):
    path = archive({"even.weight": np.ones((4, 1, 8)), "odd.weight": W})
    assert list(load_all(path, causal=True)) == ["even", "odd"]
    assert list(load_all(path, causal=False)) == ["odd"]
    assert convert(path, target, causal=False) == [("odd", 4, 3)]
    with pytest.raises(CheckpointError, match="odd number of taps"):
        convert(path, target, causal=False, prefixes=["even"])


PLAIN = "make it plain before saving: `torch.nn.utils.prune.remove`"
UNUSABLE = [
    (["weight_orig", "weight_mask"], PLAIN),
    (["weight", "bias_orig", "bias_mask"], PLAIN),
    (["weight_v", "weight_g"], PLAIN),
    (["parametrizations.weight.original1", "parametrizations.weight.original0"], PLAIN),
    (["parametrizations.weight.original"], PLAIN),
    (["weight", "conv.weight"], "rename one"),
]


@pytest.mark.parametrize(("names", "remedy"), UNUSABLE, ids=str)
def test_what_looks_like_a_convolution_and_is_none_has_a_reason_that_fits(
    names, remedy, archive, target
):
    state = {f"b.{name}": B if "bias" in name else W for name in names}
    path = archive({"a.weight": W, "a.bias": B} | state)
    assert find_convolutions(path) == [("a", 4, 3)]
    assert list(load_all(path, causal=True)) == ["a"]
    assert convert(path, target, causal=True) == [("a", 4, 3)]
    with pytest.raises(CheckpointError, match=f"^{path}: ") as caught:
        load(path, "b", causal=True)
    assert remedy in str(caught.value)
    with pytest.raises(CheckpointError, match=f"'b': .*{re.escape(remedy)}"):
        load_all(archive(state), causal=True)  # where there is nothing else


def test_what_lies_beside_a_plain_weight_is_no_obstacle(archive):
    state = {f"a.{name}": W for name in ("weight", "weight_orig", "weight_mask", "weight_v")}
    assert find_convolutions(archive(state | {"a.weight_g": B})) == [("a", 4, 3)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        *(({"weight": W.astype(dtype)}, "save the model in float32") for dtype in "bl"),
        *(({"bias": np.ones(shape)}, "choose one with a bias") for shape in (3, (4, 1))),
        ({"bias": np.ones(4, np.int64)}, "save the model in float32"),
    ],
)
def test_parameters_that_do_not_fit(wrong, words, archive):
    state = {"weight": W} | wrong
    path = archive({f"a.{name}": array for name, array in state.items()} | {"b.weight": W})
    assert list(load_all(path, causal=True)) == ["b"]
    with pytest.raises(CheckpointError, match=words):
        load(path, "a", causal=True)


def test_what_is_no_convolution_is_not_listed(archive):
    shapes = {"linear": (4, 4), "conv2d": (4, 1, 3, 3), "dense": (4, 2, 3), "empty": (0, 1, 3)}
    arrays = {f"{name}.weight": np.ones(shape) for name, shape in shapes.items()}
    arrays |= {"weight_g": W, "a.weight.x": W, "b.bias": B}
    assert find_convolutions(archive(arrays)) == []
    for call in (load, load_all, lambda path: convert(path, "c", causal=True)):
        with pytest.raises(CheckpointError, match="found none; is this the right file"):
            call(archive(arrays))


def test_every_float_type(archive):
    for dtype in ("<f2", "<f4", ">f4", "<f8", ">f8"):
        conv = load(archive({"weight": W.astype(dtype)}), causal=True)
        assert np.array_equal(conv.weight, W)
        assert conv.weight.dtype == np.float32
    with pytest.raises(CheckpointError, match=r"'weight' must fit float32"):
        load(archive({"weight": np.full((2, 1, 3), 1e39)}), causal=True)
    assert np.isinf(load(archive({"weight": np.full((2, 1, 3), np.inf)}), causal=True).weight).all()


def test_what_is_not_stated_must_be_given(source, target):
    with pytest.raises(CheckpointError, match=f"^{source}: `prefix` must .*, '{SECOND}'"):
        load(source, causal=True)
    for call in (lambda: load(source, FIRST), lambda: load_all(source),
                 lambda: convert(source, target)):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"'{FIRST}' must be known to be causal.*neither"):
            call()
    save(target, {"": MODULE})
    assert load(target).causal is True
    for call in (load, load_all):
        with pytest.raises(CheckpointError, match="False by `causal`, True by the file"):
            call(target, causal=False)


def test_a_prefix_that_does_not_exist_names_the_closest_ones(source):
    for wrong in ("model.block.0.dw", f"{FIRST}.conv", ""):
        with pytest.raises(CheckpointError, match=f"'{wrong}' .*none; choose from '") as caught:
            load(source, wrong)  # more urgent than whether it is causal
        assert all(f"'{name}'" in str(caught.value) for name in (FIRST, SECOND))
    with pytest.raises(CheckpointError, match="choose from"):
        convert(source, "t", prefixes=[FIRST, "nowhere"], causal=True)


def test_wrong_arguments(source, target):
    class Model:
        def state_dict(self):
            raise AssertionError("not to be called")

    for wrong in ({"conv.weight": W}, Model()):
        for call in (load, load_all):
            with pytest.raises(TypeError, match=r"`path` .*from_state_dict` takes .*state_dict"):
                call(wrong, causal=True)
    with pytest.raises(TypeError, match=r"`state` must be a mapping, got .*\.state_dict\(\)"):
        DepthwiseConvolution.from_state_dict(Model(), causal=True)
    with pytest.raises(TypeError, match="`prefix` must be a str"):
        DepthwiseConvolution.from_state_dict({"conv.weight": W}, 3, causal=True)
    with pytest.raises(TypeError, match="`causal` must be a bool or None, got"):
        load_all(source, causal=1)
    for wrong in ("a", ["a", "a"], []):
        with pytest.raises(ValueError, match="`prefixes` must be one or more different prefixes"):
            convert(source, target, prefixes=wrong, causal=True)
    for wrong in ([MODULE], {}, MODULE):
        with pytest.raises(TypeError, match="`modules` must be a mapping"):
            save(target, wrong)
    with pytest.raises(TypeError, match="must hold convolutions, got a dict; make one by"):
        save(target, {"a": MODULE.state_dict()})
    with pytest.raises(ValueError, match="`modules` must have printable names"):
        save(target, {"a\nb": MODULE})
    for wrong in (-1, 1.5, "x", None, True):
        with pytest.raises(ValueError, match="`seed` must be a non-negative integer, got "):
            verify(MODULE, seed=wrong)
    with pytest.raises(ValueError, match="`prefix` must be None"):
        verify(MODULE, "a")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 3}, "version 1 to 2, found 3; upgrade edgeconv, or convert"),
        ({"version": 2}, "must be JSON"),
        ({"version": 2, "configuration": {}, "digests": {}}, "must be JSON"),
        ({"version": 2, "configuration": {}, "digests": {"encoder": 3}}, "must be JSON"),
        ({"version": 2, "configuration": 3, "digests": {"encoder": ""}}, "must be JSON"),
        ({"version": "1"}, "must be JSON that describes ''"),
        ({"format": "other"}, "must be JSON"),
        ({"modules": []}, "must be JSON"),
        ({"modules": {"x": {}}}, "must be JSON"),
        ({"modules": {"": 3}}, "must be JSON"),
        ({"modules": {"": GEOMETRY | {"causal": 1}}}, "must be JSON"),
        ({"modules": {"": GEOMETRY | {"channels": 6}}}, "must be JSON"),
        ({"modules": {"": GEOMETRY | {"digest": None}}}, "must be JSON"),
        ({"modules": {"": GEOMETRY, "x": GEOMETRY}}, "must be JSON"),
    ],
)
def test_a_description_that_disagrees_is_refused(archive, change, match):
    arrays = {"conv.weight": W, "conv.bias": B}
    header = {"format": "edgeconv", "version": 1, "modules": {"": GEOMETRY}}
    assert load(archive({"edgeconv": json.dumps(header), **arrays})).causal
    path = archive({"edgeconv": json.dumps(header | change), **arrays})
    for call in (load, load_all, find_convolutions, verify):
        with pytest.raises(CheckpointError, match=f"^{path}: .*{match}"):
            call(path)


@pytest.mark.parametrize("text", ["no json", "[]", "3", "null", "[" * 100_000, "1" * 10_000])
def test_a_description_that_is_no_json_object(archive, text):
    with pytest.raises(CheckpointError, match="must be JSON"):
        load(archive({"edgeconv": text, "conv.weight": W}))
