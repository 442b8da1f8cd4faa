"""Modules and files: what is written is read back, and what is unclear is refused."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from torch_files import tensor

from edgeconv import CheckpointError, DepthwiseConvolution, digest
from edgeconv.checkpoint import converted, read_checkpoint
from edgeconv.weights import convert, find_convolutions, load, load_all, save

W = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
B = np.float32([1, 2, 3, 4])
GEOMETRY = {"causal": True, "channels": 4, "kernel_size": 3}
prefixes = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12).filter(
    lambda prefix: not prefix.endswith(".")
)
modules = st.builds(
    DepthwiseConvolution,
    st.integers(1, 3),
    st.sampled_from([1, 3, 5]),
    st.booleans(),
    rng=st.integers(0, 9),
)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "target"


@pytest.fixture
def source(tmp_path):
    """A training checkpoint of PyTorch with two convolutions."""
    path = tmp_path / "source.pth"
    model = {}
    for name, weight in (("blocks.0.dw.conv", W), ("blocks.1.dw.conv", -W)):
        model |= {f"{name}.weight": tensor(weight), f"{name}.bias": tensor(B)}
    model["norm.weight"] = tensor(B)
    path.write_bytes(torch_files.saved({"model": model, "epoch": 3}))
    return path


FIRST, SECOND = "model.blocks.0.dw", "model.blocks.1.dw"


def same(left, right):
    assert np.array_equal(left.weight, right.weight, equal_nan=True)
    assert np.array_equal(left.bias, right.bias, equal_nan=True)
    assert left.causal == right.causal


@given(st.dictionaries(prefixes, modules, min_size=1, max_size=4))
def test_what_is_saved_is_loaded(target, modules):
    save(target, modules)
    loaded = load_all(target)
    assert list(loaded) == list(modules)
    for prefix, module in modules.items():
        same(loaded[prefix], module)
        same(load(target, prefix, module.causal), module)
    assert find_convolutions(target) == [
        (prefix, module.channels, module.kernel_size) for prefix, module in modules.items()
    ]
    with np.load(target, allow_pickle=False) as arrays:
        header = json.loads(str(arrays["edgeconv"]))
        for prefix, module in modules.items():
            name = f"{prefix}.conv" if prefix else "conv"
            assert np.array_equal(arrays[f"{name}.weight"], module.weight)
    assert header == {
        "format": "edgeconv",
        "version": 1,
        "modules": {
            prefix: {
                "causal": m.causal,
                "channels": m.channels,
                "kernel_size": m.kernel_size,
                "digest": digest.of_module(m),
            }
            for prefix, m in modules.items()
        },
        "source": None,
    }


def test_the_same_modules_give_the_same_bytes(tmp_path):
    module = DepthwiseConvolution(2, 3, True, rng=1)
    for name in ("a", "b"):
        save(tmp_path / name, {"x": module, "": module})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    with zipfile.ZipFile(tmp_path / "a") as archive:  # no date, which would change the bytes
        assert {record.date_time for record in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_names_that_end_in_conv_come_back(target):
    modules = {
        name: DepthwiseConvolution(2, 3, causal=True, rng=i)
        for i, name in enumerate(("a", "a.conv", "", "conv"))
    }
    save(target, modules)
    loaded = load_all(target)
    assert list(loaded) == list(modules)
    for name, module in modules.items():
        same(loaded[name], module)
        same(load(target, name), module)


def test_convert(source, target):
    found = convert(source, target, causal=True)
    assert found == [(FIRST, 4, 3), (SECOND, 4, 3)] == find_convolutions(source)
    loaded = load_all(target)
    assert all(module.causal for module in loaded.values())
    assert np.array_equal(loaded[SECOND].weight, -W)
    with np.load(target) as arrays:
        assert json.loads(str(arrays["edgeconv"]))["source"] == {
            "name": "source.pth",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    assert convert(source, target, prefixes=[SECOND], causal=np.bool_(False)) == [(SECOND, 4, 3)]
    same(load(target), load(source, SECOND, causal=False))
    with pytest.raises(CheckpointError, match=f"'{FIRST}.conv.weight' .* choose from '{SECOND}'"):
        load(target, FIRST, causal=True)
    with pytest.raises(CheckpointError, match=f"'{SECOND}.conv' must have the key"):
        load(target, f"{SECOND}.conv")
    with pytest.raises(
        CheckpointError, match="`causal=False`, as the file states, found `causal=T"
    ):
        DepthwiseConvolution.from_state_dict(read_checkpoint(target), SECOND, causal=True)


def test_what_is_not_stated_must_be_given(source, target):
    with pytest.raises(
        CheckpointError,
        match=f"^{source}: PyTorch zip: `prefix` must say which .* found 2 in the"
        f" file; choose from '{FIRST}', '{SECOND}'$",
    ):
        load(source, causal=True)
    for call in (
        lambda: load(source, FIRST),
        lambda: load_all(source),
        lambda: convert(source, target),
    ):
        with pytest.raises(
            CheckpointError, match=f"'{FIRST}' must be known to be causal or not, fo"
        ):
            call()
    with pytest.raises(CheckpointError, match="prefix 'elsewhere' must have the key"):
        load(source, "elsewhere")
    save(target, {"": DepthwiseConvolution(2, 3, causal=True)})
    assert load(target).causal is True
    with pytest.raises(
        CheckpointError, match="'' must be loaded with `causal=True`, as the file sta"
    ):
        load(target, causal=False)


def test_another_convolution_may_be_incomplete(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **{"a.weight": W, "a.bias": B, "b.weight": W})
    assert load(path, "a", causal=False).channels == 4
    for call in (load, load_all, find_convolutions):
        with pytest.raises(CheckpointError, match=f"^{path}: NumPy npz: 'b.bias' must be there"):
            call(path)


def test_files_without_a_convolution(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, x=W)
    assert find_convolutions(path) == []
    for call in (load, load_all, lambda path: convert(path, tmp_path / "c")):
        with pytest.raises(
            CheckpointError, match=r"must hold a depthwise .* none; is this the right"
        ):
            call(path)
    np.savez(path, **{"a.weight_g": W})
    with pytest.raises(CheckpointError, match="`remove_weight_norm` on the module before saving"):
        load(path)


REPARAMETRIZED = {
    "weight_v": "remove_weight_norm",
    "weight_orig": "remove_spectral_norm",
    "parametrizations.weight.original": "remove_parametrizations",
    "parametrizations.weight.original1": "remove_parametrizations",
}


@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_a_convolution_whose_weight_is_computed_from_others_is_not_left_out(tmp_path, name):
    path = tmp_path / "w.npz"
    whole = {"a.conv.weight": W, "a.conv.bias": B}
    np.savez(path, **whole, **{f"b.conv.{name}": W})
    for call in (load_all, load, find_convolutions):
        options = {} if call is find_convolutions else {"causal": True}
        with pytest.raises(
            CheckpointError, match=f"'b.conv.weight' .*; call .*{REPARAMETRIZED[name]}"
        ):
            call(path, **options)
    assert load(path, "a", causal=True).kernel_size == 3
    # Other modules, and what does not take the place of a weight, are none of these.
    np.savez(
        path, **whole, **{f"b.{name}": W.reshape(1, 4, 3), "c.weight_g": W, f"a.conv.{name}": W}
    )
    assert list(load_all(path, causal=True)) == ["a"]


def test_a_state_dict_or_an_open_checkpoint(source):
    assert find_convolutions({"conv.weight": W, "conv.bias": B}) == [("", 4, 3)]
    assert len(find_convolutions(read_checkpoint(source))) == 2


def test_views_of_the_same_bytes_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "many.pth"
    stored = torch_files.storage(np.zeros(2**16, np.float32))
    tree = {}
    for i in range(300):
        tree[f"m{i}.weight"] = torch_files.view(stored, 0, [16, 1, 4095], [4096, 1, 1])
        tree[f"m{i}.bias"] = torch_files.view(stored, i, [16], [1])
    path.write_bytes(torch_files.saved(tree))
    with pytest.raises(
        CheckpointError, match="at most 64 times the file's size, found 300 that over"
    ):
        load_all(path, causal=True)
    assert load(path, "m7", causal=True).kernel_size == 4095


def test_the_source_is_never_overwritten(source, tmp_path):
    content = source.read_bytes()
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "soft").symlink_to(source)
    for path in (source, tmp_path / "hard", tmp_path / "soft"):
        with pytest.raises(ValueError, match="`target` must be another file than the source, got"):
            convert(source, path, causal=True)
    assert source.read_bytes() == content


def test_a_failed_conversion_leaves_the_target_alone(source, target, tmp_path):
    target.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="found neither"):
        convert(source, target, prefixes=[FIRST, "nowhere"], causal=True)
    assert target.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match="nowhere/x"):
        convert(source, tmp_path / "nowhere/x", causal=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 1 or older, found version 2; upgrade edgeconv, or convert"),
        ({"version": True}, "must state its format and version"),
        ({"format": "other"}, "must state its format and version"),
        ({"modules": []}, r"must name the modules '\[''\]'"),
        ({"modules": {"x": {}}}, "must name the modules"),
        (
            {"modules": {"": 3}},
            "must state causal, channels and kernel_size of '', and may .* found '3'",
        ),
        ({"modules": {"": {"causal": 1, "channels": 4, "kernel_size": 3}}}, "must state causal"),
        ({"modules": {"": {"causal": True, "channels": 6, "kernel_size": 3}}}, "must state causal"),
        ({"modules": {"": GEOMETRY | {"more": 1}}}, "must state causal"),
        ({"modules": {"": GEOMETRY | {"digest": None}}}, "'', and may state its digest, found"),
        ({"modules": {"": GEOMETRY | {"digest": "F" * 64}}}, "may state its digest"),
        ({"modules": {"": GEOMETRY | {"digest": "0" * 64 + "\n"}}}, "may state its digest"),
    ],
)
def test_a_header_that_disagrees_is_refused(tmp_path, change, match):
    path = tmp_path / "w.npz"
    header = {"format": "edgeconv", "version": 1, "source": None}
    header["modules"] = {"": GEOMETRY}
    arrays = {"conv.weight": W, "conv.bias": B}
    np.savez(path, edgeconv=json.dumps(header), **arrays)
    assert load(path).causal
    np.savez(path, edgeconv=json.dumps(header | change), **arrays)
    for call in (load, load_all, find_convolutions):
        with pytest.raises(CheckpointError, match=f"^{path}: .*{match}"):
            call(path)
    np.savez(path, edgeconv="no json", **arrays)
    with pytest.raises(
        CheckpointError, match="'edgeconv' of a converted checkpoint must be a JSON"
    ):
        load(path)
    np.savez(path, edgeconv="[]", **arrays)
    with pytest.raises(CheckpointError, match="must be a JSON object, found list"):
        load(path)
    np.savez(path, edgeconv=np.array(json.dumps(header)).astype(">U400"), **arrays)
    assert load(path).causal


@pytest.mark.parametrize("prefix", ["a\0b", "a\nb", "a.", "\ud800", "x" * 1025])
def test_a_prefix_that_would_not_come_back_is_refused(target, prefix):
    with pytest.raises(ValueError, match="a prefix must be printable, at most 1024 characters"):
        save(target, {prefix: DepthwiseConvolution(1, 1)})


def test_wrong_arguments(source, target):
    module = DepthwiseConvolution(1, 1)
    for call in (load, load_all):
        with pytest.raises(TypeError, match="`causal` must be a bool or None, got"):
            call(source, causal=1)
    with pytest.raises(TypeError, match="`causal` must be a bool or None"):
        convert(source, target, causal="yes")
    with pytest.raises(TypeError, match="`prefix` must be a str or None"):
        load(source, 3)
    with pytest.raises(TypeError, match="`path` must be a str or path-like, got NoneType"):
        load(None)
    for wrong in ("a", 3):
        with pytest.raises(TypeError, match="`prefixes` must be an iterable of str"):
            convert(source, target, prefixes=wrong)
    with pytest.raises(TypeError, match="`prefixes` must hold str"):
        convert(source, target, prefixes=[3])
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="`prefixes` must be one or more different prefixes"):
            convert(source, target, prefixes=wrong)
    with pytest.raises(TypeError, match="`modules` must be a mapping"):
        save(target, [module])
    with pytest.raises(TypeError, match="the keys of `modules` must be str"):
        save(target, {3: module})
    with pytest.raises(TypeError, match=r"`modules\['a'\]` must be a DepthwiseConvolution"):
        save(target, {"a": 3})
    with pytest.raises(ValueError, match="`modules` must hold at least one module"):
        save(target, {})


def test_a_module_saves_itself(target):
    module = DepthwiseConvolution(2, 5, causal=True, rng=3)
    module.save(target)
    same(load(target), module)
    assert os.fspath(target).endswith("target")
    source = converted.Source("x", "0" * 64)
    converted.write(target, {"": module}, {"": "0" * 64}, source)
    assert '"sha256": "000' in read_checkpoint(target).header


def test_reading_does_not_import_numba_or_torch(source):
    code = (
        "import sys, edgeconv.weights as w; w.find_convolutions(sys.argv[1]);"
        "assert not {'numba', 'llvmlite', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(source)], check=True)
