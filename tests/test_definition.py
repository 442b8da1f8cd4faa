"""What the module computes: the definition, its exact bits, its accuracy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import convolve, error_bound, exact, same_bits
from strategies import arrays, modules, signals

from edgeconv import DepthwiseConvolution

small = {"sizes": st.sampled_from([1, 3, 4, 9]), "kernel_sizes": st.sampled_from([1, 3, 5, 9])}


def module(weight, bias, causal=True):
    return DepthwiseConvolution.from_state_dict(
        {"conv.weight": weight, "conv.bias": bias}, causal=causal
    )


@settings(max_examples=50)
@given(st.data())
def test_every_bit_is_that_of_the_definition(data):
    conv = data.draw(modules(**small))
    x = data.draw(signals(conv, at_most=30))
    y, _ = conv(x)
    for row in range(len(x)):
        assert same_bits(y[row], convolve(x[row], conv.weight, conv.bias, conv.causal))


@settings(max_examples=50)
@given(st.data())
def test_every_bit_is_that_of_the_definition_for_any_weights(data):
    geometry = data.draw(modules(**small))
    weight = data.draw(arrays(geometry.weight.shape, special=st.just(True)))
    bias = data.draw(arrays(geometry.bias.shape))
    conv = module(weight, bias, geometry.causal)
    x = data.draw(signals(conv, at_most=20, special=st.just(True)))
    y, _ = conv(x)
    for row in range(len(x)):
        assert same_bits(y[row], convolve(x[row], weight, bias, conv.causal))


@pytest.mark.parametrize(
    ("weights", "frames", "bias"),
    [
        # 1 + 2**-12 squared is 1 + 2**-11 + 2**-24: rounding the product would lose the last term
        ([1 + 2**-12] * 3, [0, 0, 1 + 2**-12], -(1 + 2**-11)),
        ([3e38, -3e38, 1], [2, 2, 1], 0),  # the sum is finite, its first product is not
        ([2**-75, 2**-75, 0], [2**-75, 2**-75, 0], 0),  # two halves of the smallest subnormal
        ([2**-75, 0, 0], [2**-75 * (1 + 2**-20), 0, 0], 0),  # just above one half of it
        ([2**-100, 1, 1], [2**-49, 0, 0], -(2**-126)),  # a subnormal against the smallest normal
        ([1, 1, 1], [2**24, 1, -(2**24)], 0),  # cancellation
        ([np.inf, 0, 0], [0, 0, 0], 0),
        ([1, 1, 1], [np.inf, -np.inf, 0], 0),
        ([np.nan, 1, 1], [1, 1, 1], 1),
        ([-0.0, -0.0, -0.0], [1, 1, 1], -0.0),
    ],
)
def test_adversarial_sums_are_rounded_once_for_each_tap(weights, frames, bias):
    for channels in (2, 20):
        weight = np.broadcast_to(np.float32(weights), (channels, 1, 3)).copy()
        biases = np.full(channels, bias, np.float32)
        with np.errstate(over="ignore"):
            x = np.float32(frames)[:, None].repeat(channels, axis=1)
        y, _ = module(weight, biases)(x[None])
        assert same_bits(y[0], convolve(x, weight, biases, causal=True))


@settings(max_examples=30)
@given(st.data())
def test_the_error_stays_within_its_bound(data):
    conv = data.draw(modules(**small))
    x = data.draw(signals(conv, batch_sizes=st.just(1), special=st.just(False), at_most=40))[0]
    y, _ = conv(x[None])
    arguments = (x, conv.weight, conv.bias, conv.causal)
    assert (abs(y[0] - convolve(*arguments, exact)) <= error_bound(*arguments)).all()


@given(conv=modules())
def test_an_impulse_gives_the_taps_in_reverse(conv):
    K = conv.kernel_size
    x = np.zeros((1, 2 * K, conv.channels), np.float32)
    x[0, K] = 1
    response = conv(x)[0][0] - conv.bias
    start = K if conv.causal else K - (K - 1) // 2
    expected = np.zeros_like(x[0])
    expected[start : start + K] = (conv.weight[:, 0, ::-1].T + conv.bias) - conv.bias
    np.testing.assert_array_equal(response, expected)


@given(conv=modules(causal=st.just(True)))
def test_a_bad_frame_is_gone_after_one_window(conv):
    K = conv.kernel_size
    x = np.zeros((1, 2 * K + 1, conv.channels), np.float32)
    x[0, 1, 0] = np.nan
    y, _ = conv(x)
    assert np.argwhere(np.isnan(y[0])).tolist() == [[t, 0] for t in range(1, 1 + K)]


@given(st.data())
def test_later_frames_change_nothing_earlier(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    n = data.draw(st.integers(0, x.shape[1]))
    ahead = 0 if conv.causal else (conv.kernel_size - 1) // 2
    prefix = conv(x[:, :n])[0][:, : max(0, n - ahead)]
    assert same_bits(prefix, conv(x)[0][:, : prefix.shape[1]])


@given(st.data())
def test_rows_of_a_batch_do_not_meet(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    y, cache = conv(x)
    for row in range(len(x)):
        alone, cache_alone = conv(x[row : row + 1])
        assert same_bits(alone[0], y[row])
        if conv.causal:
            assert same_bits(cache_alone[0], cache[row])


@given(st.data())
def test_the_cache_is_the_tail_of_the_input_and_continues_the_signal(data):
    conv = data.draw(modules(causal=st.just(True)))
    x = data.draw(signals(conv))
    n = data.draw(st.integers(0, x.shape[1]))
    first, cache = conv(x[:, :n])
    second, last = conv(x[:, n:], cache=cache)
    whole, expected = conv(x)
    assert same_bits(np.concatenate([first, second], axis=1), whole)
    assert same_bits(last, expected)
    padded = np.pad(x, ((0, 0), (conv.lorder, 0), (0, 0)))
    assert same_bits(expected, padded[:, x.shape[1] :].swapaxes(1, 2).copy())


@given(st.data())
def test_a_masked_frame_counts_as_zeros_whatever_it_holds(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    rows = data.draw(st.sampled_from([1, len(x)]))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((rows, x.shape[1])) < 0.5
    zeroed = x.copy()
    zeroed[np.broadcast_to(mask, x.shape[:2])] = 0
    expected, expected_cache = conv(zeroed)
    poisoned = zeroed.copy()
    poisoned[np.broadcast_to(mask, x.shape[:2])] = np.nan
    y, cache = conv(poisoned, mask=mask)
    assert same_bits(y, expected)
    if conv.causal:
        assert same_bits(cache, expected_cache)


def test_a_masked_frame_is_cached_as_positive_zero():
    conv = DepthwiseConvolution(1, 3, causal=True)
    _, cache = conv(np.full((1, 2, 2), -0.0, np.float32), mask=np.ones((1, 2), bool))
    assert same_bits(cache, np.zeros((1, 2, 2), np.float32))


@given(st.data())
def test_memory_layout_and_float_type_do_not_matter(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    expected, _ = conv(x)
    offset = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    variants = [
        np.asfortranarray(x),
        np.repeat(x, 2, axis=1)[:, ::2],
        x[:, ::-1].copy()[:, ::-1],
        x.astype(x.dtype.newbyteorder()),
        x.astype(np.float64),
        x.astype(np.longdouble),
        offset,
    ]
    variants[0].setflags(write=False)
    for variant in variants:
        before = variant.tobytes()
        assert same_bits(conv(variant)[0], expected)
        assert variant.tobytes() == before


def test_float16_is_converted_exactly():
    conv = DepthwiseConvolution(2, 3, rng=0)
    x = np.arange(-20, 20).astype(np.float16).reshape(1, 10, 4) / 7
    assert x.dtype == np.float16
    assert same_bits(conv(x)[0], conv(x.astype(np.float32))[0])


def test_values_beyond_float32_become_infinite_without_a_warning():
    conv = DepthwiseConvolution(1, 1, causal=True, rng=0)
    y, cache = conv(np.full((1, 1, 2), 1e300))
    assert np.isinf(y).all()
    assert cache.shape == (1, 2, 0)


@given(conv=modules())
def test_no_frames_and_no_rows_are_signals_too(conv):
    for shape in [(2, 0, conv.channels), (0, 5, conv.channels), (0, 0, conv.channels)]:
        y, cache = conv(np.empty(shape, np.float32))
        assert y.shape == shape
        if conv.causal:
            assert same_bits(cache, np.zeros((shape[0], conv.channels, conv.lorder), np.float32))
        else:
            assert cache is None


def test_the_examples_of_espnets_documentation():
    conv = DepthwiseConvolution(size=64, kernel_size=3)
    y, cache = conv(np.random.default_rng(0).random((32, 10, 128)))
    assert y.shape == (32, 10, 128)
    assert cache is None
    # The mask of the second is `torch.ones(10, 5)`: as Booleans it ignores every frame.
    x = np.random.default_rng(0).random((10, 5, 128))
    y, _ = conv.forward(x, mask=np.ones((10, 5), bool))
    assert same_bits(y, np.broadcast_to(conv.bias, x.shape).copy())
    y, _ = conv.forward(x, mask=np.zeros((10, 5), bool))
    assert same_bits(y, conv(x)[0])


def test_initial_weights_are_uniform_as_pytorch_draws_them():
    conv = DepthwiseConvolution(2000, 9, rng=0)
    assert conv.weight.shape == (4000, 1, 9)
    assert conv.bias.shape == (4000,)
    for values in (conv.weight, conv.bias):
        assert values.dtype == np.float32
        assert -1 / 3 <= values.min() < -0.33
        assert 0.33 < values.max() <= 1 / 3
        assert abs(values.mean()) < 0.01
    again = DepthwiseConvolution(2000, 9, rng=np.random.default_rng(0))
    assert same_bits(again.weight, conv.weight)
    assert not same_bits(DepthwiseConvolution(2000, 9).weight, conv.weight)


def test_geometry():
    conv = DepthwiseConvolution(np.int32(3), np.int64(5), causal=np.True_)
    geometry = (conv.size, conv.channels, conv.kernel_size, conv.causal, conv.lorder)
    assert geometry == (3, 6, 5, True, 4)
    assert all(type(value) in (int, bool) for value in geometry)
    assert DepthwiseConvolution(3, 5).lorder == 0
    assert repr(conv) == "DepthwiseConvolution(size=3, kernel_size=5, causal=True)"
