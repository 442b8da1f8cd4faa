"""Products of rows with weights and attention: one chain of fused multiply-adds for each number."""

import numpy as np
import reference_dense as reference
from hypothesis import given
from hypothesis import strategies as st
from reference import same_bits
from strategies import arrays, either, seeds

from edgeconv.kernels import attention, dense
from edgeconv.kernels.vectors import BLOCK

frames = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17])
inputs = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 31])
outputs = st.sampled_from([1, 2, 15, 16, 17, 32, 33, 64, 70])


NOTHING = np.empty((0, 0), np.float32)


def multiply(x, weight, bias, scale=None, taps=1, stride=1):
    y = np.full((*x.shape[:2], len(weight)), np.nan, np.float32)
    steps = np.zeros(1, dense.STEPS)
    steps["taps"], steps["stride"] = taps, stride
    packed = dense.pack(weight, bias, scale)
    dense.kernel(scale is not None)(x, y, packed, NOTHING, NOTHING, steps)
    return y


@given(st.data(), frames, inputs, outputs, seeds)
def test_an_output_is_one_chain_in_ascending_order(data, n_frames, n_inputs, n_outputs, seed):
    rng = np.random.default_rng(seed)
    x = data.draw(arrays((n_frames, n_inputs)))
    weight = rng.standard_normal((n_outputs, n_inputs), np.float32)
    bias = rng.standard_normal(n_outputs, np.float32)
    assert same_bits(multiply(x[None], weight, bias)[0], reference.dense(x, weight, bias))


@given(frames, inputs, outputs, seeds)
def test_eight_bits_are_scaled_after_the_chain(n_frames, n_inputs, n_outputs, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_frames, n_inputs), np.float32)
    weight = rng.integers(-127, 128, (n_outputs, n_inputs), np.int8)
    bias, scale = rng.standard_normal((2, n_outputs), np.float32)
    y = multiply(x[None], weight, bias, scale)[0]
    assert same_bits(y, reference.dense(x, weight, bias, scale))


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 20), either, seeds)
def test_taps_continue_the_chain(taps, stride, n_lines, n_rows, eight_bits, seed):
    """A convolution over lines and rows of two channels, three columns wide, by strides alone."""
    rng = np.random.default_rng(seed)
    channels, columns, n_outputs = 2, 3, 35
    lines = stride * (n_lines - 1) + taps
    image = rng.standard_normal((lines, n_rows + columns - 1, channels), np.float32)
    weight = rng.integers(-9, 9, (n_outputs, taps, columns * channels)).astype(np.int8)
    bias, scale = rng.standard_normal((2, n_outputs), np.float32)
    line, row, _ = image.strides
    shape = n_lines, n_rows, columns * channels
    x = np.lib.stride_tricks.as_strided(image, shape, (stride * line, row, 4), writeable=False)
    if not eight_bits:
        weight, scale = weight.astype(np.float32), None
    y = multiply(x, weight.reshape(n_outputs, -1), bias, scale, taps, stride)
    for i in range(n_lines):
        windows = [
            np.concatenate([image[stride * i + k, j : j + columns].ravel() for k in range(taps)])
            for j in range(n_rows)
        ]
        expected = reference.dense(np.array(windows), weight.reshape(n_outputs, -1), bias, scale)
        assert same_bits(y[i], expected)


@given(st.integers(1, 30), st.sampled_from([1, 2, 3]), st.sampled_from([1, 5, 16, 33]), seeds)
def test_attention_is_the_softmax_over_the_keys_it_is_given(n, n_heads, size, seed):
    rng = np.random.default_rng(seed)
    n_frames, first, distances = int(rng.integers(1, n + 1)), int(rng.integers(0, 5)), 40
    width = n_heads * size
    projected = rng.standard_normal((n_frames, 3 * width), np.float32)
    biases = rng.standard_normal((2, width), np.float32)
    keys, values = rng.standard_normal((2, n, width), np.float32)
    keys[n - n_frames :], values[n - n_frames :] = (
        projected[:, width : 2 * width],
        projected[:, 2 * width :],
    )
    by_distance = rng.standard_normal((2 * distances, width), np.float32)
    run = np.full((n_heads, size, first + n + BLOCK), np.nan, np.float32)
    run[..., first : first + n - n_frames] = keys[: n - n_frames].T.reshape(n_heads, size, -1)
    rows = np.full((first + n, n_heads, -(-size // BLOCK) * BLOCK), np.nan, np.float32)
    rows[first : first + n - n_frames, :, :size] = values[: n - n_frames].reshape(-1, n_heads, size)
    columns = np.full((n_heads, size, 2 * distances + 2 * BLOCK), np.nan, np.float32)
    columns[..., : 2 * distances] = by_distance.T.reshape(n_heads, size, -1)
    queries = projected[:, :width] + biases[:, None]
    span = np.array([first, n, distances])
    attention.kernel()(projected, biases, run, rows, columns, span)
    position = {d: by_distance[distances - d] for d in range(1 - distances, distances)}
    expected = reference.attention(queries, keys, values, position.get, n_heads)
    np.testing.assert_allclose(projected[:, :width], expected, rtol=2e-5, atol=2e-6)
