"""Depthwise convolutions in state dicts: which there are, and their weights."""

import types

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.tensors import convolutions, weight_and_bias

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g"]


def pair(parent, channels=4, taps=3, dtype="f4"):
    weight = np.arange(channels * taps, dtype=dtype).reshape(channels, 1, taps)
    return {f"{parent}weight": weight, f"{parent}bias": np.arange(channels, dtype=dtype)}


class Tensor:
    """Answers NumPy as a tensor of PyTorch does that NumPy cannot view."""

    dtype, shape = "torch.bfloat16", (4, 1, 3)

    def __array__(self, *_, **__):
        raise TypeError("Got unsupported ScalarType BFloat16\nmore")


@given(
    st.sampled_from(FLOATS),
    st.tuples(st.integers(1, 4).map(lambda n: 2 * n), st.integers(0, 4).map(lambda n: 2 * n + 1)),
    st.booleans(),
    st.data(),
)
def test_weights_are_fresh_float32_arrays(dtype, geometry, fortran, data):
    channels, taps = geometry
    values = st.floats(width=16) | st.just(np.nan)
    weight = data.draw(hnp.arrays(dtype, (channels, 1, taps), elements=values))
    bias = data.draw(hnp.arrays(dtype, channels, elements=values))
    weight = np.asfortranarray(weight) if fortran else weight
    read = weight_and_bias({"a.conv.weight": weight, "a.conv.bias": bias}, "a")
    for array, source in zip(read, (weight, bias), strict=True):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not np.shares_memory(array, source)
        assert np.array_equal(array, source.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize(
    ("parent", "prefix"),
    [
        ("conv.", ""),
        ("", ""),
        ("a.conv.", "a"),
        ("a.", "a"),
        ("a.b.conv.", "a.b"),
        ("a.conv.conv.", "a.conv"),
        ("deconv.", "deconv"),
        ("module.encoder.encoders.blocks.0.depthwise_conv_mod.conv.",) * 1
        + ("module.encoder.encoders.blocks.0.depthwise_conv_mod",),
    ],
)
def test_prefixes(parent, prefix):
    state = {**pair(parent, 6, 5), "step": 3, 7: np.zeros(3), "norm.weight": np.zeros(6)}
    assert convolutions(state) == {prefix: (prefix, 6, 5)}
    assert weight_and_bias(state, prefix)[0].shape == (6, 1, 5)


def test_a_prefix_never_means_two_names():
    state = {**pair("a.conv."), **pair("a.conv.conv.", 6)}
    assert list(convolutions(state)) == ["a", "a.conv"]
    assert weight_and_bias(state, "a")[1].shape == (4,)
    assert weight_and_bias(state, "a.conv")[1].shape == (6,)
    with pytest.raises(CheckpointError, match=r"prefix 'a.conv' must have the key .* from 'a'"):
        weight_and_bias(pair("a.conv."), "a.conv")


def test_a_weight_of_the_module_itself_is_not_its_convolution():
    state = {**pair("a.conv."), "a.weight": np.zeros(4), "a.bias": np.zeros(4)}
    assert list(convolutions(state)) == ["a"]
    assert weight_and_bias(state, "a")[0].shape == (4, 1, 3)


def test_float32_range():
    state = {**pair("", dtype="f8")}
    state["weight"][0, 0] = np.inf, -np.inf, np.nan
    state["bias"][1] = 1e-300
    weight, bias = weight_and_bias(state)
    assert np.array_equal(weight[0, 0], np.float32([np.inf, -np.inf, np.nan]), equal_nan=True)
    assert bias[1] == 0
    state["bias"][2] = -1e39
    with pytest.raises(
        CheckpointError, match=r"'bias' must fit float32 .* found -1e\+39 as float64"
    ):
        weight_and_bias(state)


W = np.zeros((4, 1, 3), np.float32)


@pytest.mark.parametrize(
    ("state", "prefix", "match"),
    [
        ({**pair("x.")}, "y", "'y.conv.weight' or 'y.weight', found neither; choose from 'x'$"),
        (
            {k: v for i in range(14) for k, v in pair(f"m{i}.").items()},
            "",
            "found neither; choose from 'm0', .*'m11' and 2 more",
        ),
        ({}, "", "key 'conv.weight' or 'weight', found neither; is this the right file?"),
        ({"conv.weight": W}, "", "'conv.bias' must be there, .* found no such key; choose another"),
        ({"conv.weight": W, "weight": W}, "", "prefix '' must mean one convolution"),
        (
            {"weight": W[:3], "bias": W[0, 0]},
            "",
            r"shape \(C, 1, K\) with even C and odd K below 4096, found \(3, 1",
        ),
        (
            {"weight": W[..., :2], "bias": W[:, 0, 0]},
            "",
            r"found \(4, 1, 2\); choose the prefix of",
        ),
        (
            {"weight": W[:, 0], "bias": W[:, 0, 0]},
            "",
            r"'weight' must have the shape .* found \(4, 3\)",
        ),
        ({"weight": W[:0], "bias": W[0, 0]}, "", r"found \(0, 1, 3\)"),
        ({"weight": W[:, 0], "conv.weight": W[0]}, "", r"'conv.weight' must .* found \(1, 3\)"),
        ({"weight": W, "bias": W[0, 0]}, "", r"'bias' must have the shape \(4,\) .* found \(3,\)"),
        ({"weight": W.astype(int), "bias": W[:, 0, 0]}, "", "of a float type, found int64; save"),
        ({"weight": W, "bias": W[:, 0, 0] > 0}, "", "'bias' must be of a float type, found bool"),
        ({"a.conv.weight_g": W, "a.conv.weight_v": W}, "a", "call PyTorch's `remove_weight_norm`"),
        (
            {"a.weight_g": W},
            "a",
            "'a.weight' must be there, found what it is computed from, 'a.weight_g'; call",
        ),
        ({"a.weight_orig": W, "a.weight_v": W[0]}, "a", "call PyTorch's `remove_spectral_norm`"),
        ({"a.parametrizations.weight.original": W}, "a", "PyTorch's `remove_parametrizations`"),
        (
            {"weight": np.zeros((2, 1, 4097), np.float32), "bias": W[:2, 0, 0]},
            "",
            r"odd K below 4096, found \(2, 1, 4097\)",
        ),
        ({"conv.parametrizations.weight.original0": W}, "", "`remove_parametrizations` on the"),
        (
            {"b.weight_v": W},
            "a",
            "found neither; call PyTorch's `remove_weight_norm` on the module",
        ),
        (
            {"weight": Tensor(), "bias": W[:, 0, 0]},
            "",
            r"found a Tensor of torch.bfloat16 \(Got unsupported ScalarType BFloat16\); pass "
            r"`tensor.detach\(\).cpu\(\).float\(\)`$",
        ),
        (
            {"weight": np.broadcast_to(W[:1], (2**24, 1, 3)), "bias": np.zeros(2**24)},
            "",
            "'weight' must store its 50331648 elements, found a view that repeats fewer",
        ),
    ],
)
def test_what_is_no_convolution(state, prefix, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        weight_and_bias(state, prefix)
    assert caught.value.path is None


def test_wrong_kinds_of_arguments():
    with pytest.raises(TypeError, match="`state` must be a mapping of names to arrays, got list"):
        weight_and_bias([W])
    with pytest.raises(TypeError, match="`prefix` must be a str, got int"):
        weight_and_bias({}, 3)
    masked = {**pair(""), "weight": np.ma.masked_array(W)}
    with pytest.raises(
        TypeError, match=r"`state\['weight'\]` must be an array or a CPU tensor, got M"
    ):
        weight_and_bias(masked)
    odd = types.SimpleNamespace(dtype=np.dtype("f4"), shape=(4, 1, 3))
    with pytest.raises(TypeError, match=r"must be an array or a CPU tensor, got SimpleNamespace"):
        weight_and_bias({**pair(""), "weight": odd})
    with pytest.raises(CheckpointError, match="found neither"):
        weight_and_bias({"weight": [1.0]})


def test_two_convolutions_of_one_name_are_refused():
    with pytest.raises(
        CheckpointError, match="prefix 'x' must mean one convolution, found one with"
    ):
        convolutions({**pair("x."), **pair("x.conv.")})
    with pytest.raises(CheckpointError, match=r"'x.bias' must be there"):
        convolutions({"x.weight": W})


def test_errors_about_a_file_name_it(tmp_path):
    path = tmp_path / "a.pth"
    tree = {
        "int.weight": torch_files.tensor(W.astype(np.int8)),
        "half.weight": torch_files.untyped_view(
            bytes(12), "float4_e2m1fn_x2", 0, [4, 1, 3], [3, 3, 1]
        ),
        "half.bias": torch_files.tensor(W[:, 0, 0]),
    }
    path.write_bytes(torch_files.saved(tree))
    checkpoint = read_checkpoint(path)
    for prefix, match in (
        ("int", "'int.weight' must be of a float type, found int8"),
        ("half", "'half.weight' must be a Boolean, integer or float tensor, found float4_e2m1fn"),
        ("none", "prefix 'none' must have the key"),
    ):
        with pytest.raises(CheckpointError, match=f"^{path}: PyTorch zip: {match}"):
            weight_and_bias(checkpoint, prefix)
