"""Every layer against its definition, and against the contract that all keep."""

import numpy as np
import pytest
import reference_dense as reference
from encoder_states import Numbers
from laws import run, verify_contract
from reference import convolve, fused, same_bits

from edgeconv import CheckpointError, layers
from edgeconv.kernels import dense, pointwise
from edgeconv.layers.activation import Activation
from edgeconv.layers.parameters import Weights, quantised, sharing, with_8_bits


def signal(n_frames, size, seed=0):
    return np.random.default_rng(seed).standard_normal((n_frames, size), np.float32)


def made():
    """Yield every layer, small."""
    state = Numbers()
    state.linear("linear", 37, 12)
    state.linear("pointwise", 20, 12, 1, bias=False)
    state.feed_forward("ff", 12, 30)
    for kind in ("layer_norm", "basic_norm", "rms_norm", "scale_norm"):
        state.norm(kind, 12, kind)
        yield kind, layers.Norm.from_state_dict(state, kind, kind, size=12)
    state.attention("att", 12, 3)
    state.gating("csgu", 24, 5)
    state.conformer_convolution("conv", 12, 5)
    yield "linear", layers.Linear.from_state_dict(state, "linear")
    yield "pointwise", layers.Linear.from_state_dict(state, "pointwise")
    yield "feed_forward", layers.FeedForward.from_state_dict(state, "ff", "relu")
    yield "attention", layers.RelPositionMultiHeadedAttention.from_state_dict(state, "att")
    yield (
        "gating",
        layers.ConvolutionalSpatialGatingUnit.from_state_dict(state, "csgu", causal=True),
    )
    yield "conformer", layers.ConformerConvolution.from_state_dict(state, "conv", causal=True)
    for is_vgg, factor in ((False, 4), (True, 4), (True, 6)):
        name = f"{'vgg' if is_vgg else 'conv2d'} {factor}"
        state.input(name, 14, (3, 4), 4, is_vgg)
        arguments = {"input_size": 20, "subsampling_factor": factor}
        yield name, layers.ConvInput.from_state_dict(state, name, **arguments)


LAYERS = dict(made())


@pytest.mark.parametrize("name", LAYERS)
def test_contract(name):
    layer = LAYERS[name]
    x = signal(53, layer.input_size)
    if layer.chunked:
        for geometry in ((1, 0), (1, 4), (5, 0), (4, 9), (60, 3)):
            arguments = dict(zip(("chunk_size", "left_context"), geometry, strict=True))
            verify_contract(lambda kept=arguments: layer.stream(**kept), x)
        assert same_bits(run(layer.stream(chunk_size=60, left_context=0), [x]), layer(x[None])[0])
    else:
        verify_contract(layer.stream, x, whole=layer(x[None])[0])
    batch = np.stack([x, signal(53, layer.input_size, seed=1)])
    for row, y in zip(batch, layer(batch), strict=True):
        assert same_bits(y, layer(row[None])[0])
    assert layer(batch[:0]).shape[::2] == (0, layer.output_size)
    with pytest.raises(ValueError, match="`x` must have shape"):
        layer(x)


@pytest.mark.parametrize("name", [name for name in LAYERS if not LAYERS[name].chunked])
def test_only_layers_with_attention_have_chunks(name):
    with pytest.raises(TypeError, match="no attention"):
        LAYERS[name].stream(chunk_size=4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("quantise", [dict, with_8_bits])
def test_what_stands_before_and_behind_a_layer_changes_no_bit(quantise, threads, monkeypatch):
    state = Numbers()
    state.linear("linear", 70, 12)
    state.norm("norm", 12, "rms_norm")
    state, shape = quantise(state), (70, 12)
    norm = layers.Norm.from_state_dict(state, "norm", "rms_norm", size=12)
    factor = np.float32(0.7)
    beside = {"norm": norm, "activation": Activation("swish"), "factor": factor}
    weights = Weights(state, "linear", shape=shape, **beside)
    x, term = signal(21, 12), signal(21, 70, 1)
    products = Weights(state, "linear", shape=shape).rows(norm(x[None])[0])
    expected = Activation("swish")(products)
    monkeypatch.setattr(dense, "SHARED", 0)
    out = np.full((21, 140), np.nan, np.float32)[:, 35:105]
    with sharing.among(threads):
        assert same_bits(weights.rows(x), expected)
        assert same_bits(
            weights.rows(x, out, added=term), np.vectorize(fused)(factor, expected, term)
        )


@pytest.mark.parametrize("kind", pointwise.ACTIVATIONS)
def test_every_function_may_stand_behind_a_layer(kind):
    state, x = Numbers(), signal(5, 12)
    state.linear("linear", 40, 12)
    expected = Activation(kind)(Weights(state, "linear", shape=(40, 12)).rows(x))
    layer = Weights(state, "linear", shape=(40, 12), activation=Activation(kind))
    assert same_bits(layer.rows(x), expected)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "feed_forward"])
def test_nan_stays_in_its_frame(name):
    x = signal(20, LAYERS[name].input_size)
    expected = LAYERS[name](x[None])[0]
    x[7, 3] = np.nan
    y = LAYERS[name](x[None])[0]
    assert np.isnan(y[7]).all()
    assert same_bits(np.delete(y, 7, 0), np.delete(expected, 7, 0))


def test_nan_leaves_attention_with_its_frame():
    layer, bad = LAYERS["attention"], 5
    x = signal(40, 12)
    expected = run(layer.stream(chunk_size=4, left_context=3), [x])
    x[bad] = np.nan
    y = run(layer.stream(chunk_size=4, left_context=3), [x])
    touched = np.isnan(y).any(axis=1)
    assert touched[4:8].all()  # its own chunk
    assert not touched[:4].any()
    assert touched[8:12].all()  # a chunk that sees frames 5, 6 and 7
    assert same_bits(y[12:], expected[12:])


def test_a_linear_layer_is_its_definition():
    state = Numbers()
    state.linear("a", 21, 12)
    x = signal(9, 12)
    expected = reference.dense(x, state["a.weight"], state["a.bias"])
    assert same_bits(layers.Linear.from_state_dict(state, "a")(x[None])[0], expected)


def test_eight_bits():
    state = Numbers()
    state.linear("a", 21, 12)
    weight, scale = quantised(state["a.weight"])
    assert np.abs(weight * scale[:, None] - state["a.weight"]).max() <= scale.max() / 2 * 1.0001
    x = signal(9, 12)
    expected = reference.dense(x, weight, state["a.bias"], scale)
    small = state | {"a.weight": weight, "a.weight_scale": scale}
    assert same_bits(layers.Linear.from_state_dict(small, "a")(x[None])[0], expected)
    del small["a.weight_scale"]
    with pytest.raises(CheckpointError, match="weight_scale must be in the checkpoint"):
        layers.Linear.from_state_dict(small, "a")


def test_a_row_of_zeros_is_quantised():
    weight, scale = quantised(np.zeros((2, 3), np.float32))
    assert not weight.any()
    assert (scale == 1).all()


def test_gating_is_its_definition():
    state = Numbers()
    state.gating("a", 8, 5)
    x = signal(12, 8)
    rows = [
        reference.layer_norm(row[4:], state["a.norm.weight"], state["a.norm.bias"], 1e-12)
        for row in x
    ]
    gate = convolve(np.array(rows), state["a.conv.weight"], state["a.conv.bias"], True)
    layer = layers.ConvolutionalSpatialGatingUnit.from_state_dict(state, "a", causal=True)
    assert same_bits(layer(x[None])[0], x[:, :4] * gate)


@pytest.mark.parametrize("causal", [True, False])
def test_a_conformers_convolution_is_its_definition(causal):
    state = Numbers()
    state.conformer_convolution("a", 6, 3)
    x = signal(12, 6)
    s = {name.removeprefix("a."): array.astype(np.float64) for name, array in state.items()}
    h = x @ s["pointwise_conv1.weight"][..., 0].T + s["pointwise_conv1.bias"]
    h = h[:, :6] / (1 + np.exp(-h[:, 6:]))
    padded = np.pad(h, ((2, 0) if causal else (1, 1), (0, 0)))
    h = sum(padded[k : k + 12] * s["depthwise_conv.weight"][:, 0, k] for k in range(3))
    h = (h + s["depthwise_conv.bias"] - s["norm.running_mean"]) / np.sqrt(
        s["norm.running_var"] + 1e-5
    )
    h = h * s["norm.weight"] + s["norm.bias"]
    h = h / (1 + np.exp(-h))
    expected = h @ s["pointwise_conv2.weight"][..., 0].T + s["pointwise_conv2.bias"]
    layer = layers.ConformerConvolution.from_state_dict(state, "a", causal=causal)
    np.testing.assert_allclose(layer(x[None])[0], expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["gating", "conformer"])
def test_what_needs_later_frames_is_not_streamed(kind):
    state = Numbers()
    state.gating("gating", 8, 5)
    state.conformer_convolution("conformer", 8, 5)
    classes = {
        "gating": layers.ConvolutionalSpatialGatingUnit,
        "conformer": layers.ConformerConvolution,
    }
    layer = classes[kind].from_state_dict(state, kind, causal=False)
    with pytest.raises(ValueError, match="must be trained with `dynamic_chunk_training`, got"):
        layer.stream()
    assert layer(signal(4, 8)[None]).shape[:2] == (1, 4)


def test_attention_is_its_definition():
    state, heads, chunk_size, left_context = Numbers(), 3, 4, 6
    state.attention("a", 12, heads)
    x = signal(27, 12)
    wide = {name: array.astype(np.float64) for name, array in state.items()}

    def project(name, rows):
        bias = wide.get(f"a.linear_{name}.bias", 0)
        return rows @ wide[f"a.linear_{name}.weight"].T + bias

    queries, keys, values = (project(name, x.astype(np.float64)) for name in "qkv")
    biased = np.stack([queries + wide[f"a.pos_bias_{name}"].ravel() for name in "uv"])

    def position(distance):
        return project("pos", layers.relative_positions(distance, distance, 12)[0])

    expected = []
    for first in range(0, len(x), chunk_size):
        end, start = min(first + chunk_size, len(x)), max(0, first - left_context)
        seen, own = slice(start, end), slice(first, end)
        expected.append(
            reference.attention(biased[:, own], keys[seen], values[seen], position, heads)
        )
    expected = project("out", np.concatenate(expected))
    layer = layers.RelPositionMultiHeadedAttention.from_state_dict(state, "a")
    y = run(layer.stream(chunk_size=chunk_size, left_context=left_context), [x])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


def test_positions_are_sines_and_cosines():
    rows = layers.relative_positions(3000, -3000, 10)
    exponents = np.arange(0, 10, 2, dtype=np.float32) * np.float32(-np.log(10000) / 10)
    steps = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(3000, -3001, -1, dtype=np.float32)[:, None] * steps).astype(np.float64)
    np.testing.assert_allclose(rows[:, 0::2], np.sin(angles), rtol=0, atol=1e-7)
    np.testing.assert_allclose(rows[:, 1::2], np.cos(angles), rtol=0, atol=1e-7)
    assert layers.relative_positions(2, 2, 7).shape == (1, 7)
    assert same_bits(layers.relative_positions(5, 5, 10), rows[2995:2996])


def maxima(x, size, axis):
    """Pool with stride 2 as PyTorch does with `ceil_mode`."""
    x = np.moveaxis(x, axis, 0)
    n = -(-(len(x) - size) // 2) + 1
    return np.moveaxis(np.array([x[2 * i : 2 * i + size].max(axis=0) for i in range(n)]), 0, axis)


def image_convolution(x, weight, bias, stride, padding):
    """Convolve (T, F, C) with a weight (N, C, 3, 3), in float64."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))[::stride, ::stride]
    return np.maximum(np.einsum("tfcij,ncij->tfn", windows, weight.astype(np.float64)) + bias, 0)


@pytest.mark.parametrize(("is_vgg", "factor"), [(False, 4), (True, 4), (True, 6)])
@pytest.mark.parametrize("n_frames", [*range(11, 20), 40])
def test_the_input_block_is_its_definition(is_vgg, factor, n_frames):
    state = Numbers()
    state.input("a", 14, (3, 4), 4, is_vgg)
    x = signal(n_frames, 20)
    h = x[..., None].astype(np.float64)
    plan = (
        ((0, 1, 0), (2, 0, factor // 2), (5, 1, 0), (7, 0, 2)) if is_vgg else ((0, 0, 0), (2, 0, 0))
    )
    for number, padding, pool in plan:
        weight, bias = (state[f"a.conv.{number}.{name}"] for name in ("weight", "bias"))
        h = image_convolution(h, weight, bias, 1 if is_vgg else 2, padding)
        if pool:
            h = maxima(maxima(h, pool, 0), pool, 1)
    rows = h.swapaxes(1, 2).reshape(len(h), -1)
    expected = rows @ state["a.output.weight"].T + state["a.output.bias"]
    layer = layers.ConvInput.from_state_dict(state, "a", input_size=20, subsampling_factor=factor)
    np.testing.assert_allclose(layer(x[None])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"att.linear_q.weight": None}, "att.linear_q.weight must be in the checkpoint"),
        ({"att.linear_q.weight": np.zeros((12, 11), np.float32)}, r"must have shape \(12, 12\)"),
        ({"att.linear_k.bias": np.zeros(12, np.int64)}, "att.linear_k.bias. must be floats"),
        ({"att.linear_v.weight": np.full((12, 12), 1e300)}, "must fit float32"),
        ({"att.linear_pos.bias": np.zeros(3, np.float32)}, "simplified scores"),
        ({"att.linear_out.weight": np.zeros((5, 12), np.float32)}, r"shape \(12, 12\)"),
    ],
)
def test_a_tensor_that_is_not_right_is_named(change, message):
    state = Numbers()
    state.attention("att", 12, 3)
    state |= change
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        layers.RelPositionMultiHeadedAttention.from_state_dict(state, "att")


def test_the_old_vgg_block_is_refused():
    state = Numbers()
    state.input("a", 14, (3, 4), 5, True)
    with pytest.raises(CheckpointError, match="before December 2022"):
        layers.ConvInput.from_state_dict(state, "a", input_size=20)
    state.input("b", 14, (3, 4), 4, False)
    with pytest.raises(CheckpointError, match=r"factor 2"):
        layers.ConvInput.from_state_dict(state, "b", input_size=20, subsampling_factor=2)


def test_kinds_are_named():
    with pytest.raises(ValueError, match=r"swish.*'mish'"):
        Activation("mish")
    with pytest.raises(ValueError, match=r"layer_norm.*'batch_norm'"):
        layers.Norm.from_state_dict({}, "a", "batch_norm", size=3)
