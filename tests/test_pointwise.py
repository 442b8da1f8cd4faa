"""Functions of single numbers within their stated error, norms in their stated order."""

import math

import numpy as np
import pytest
import reference_dense as reference
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from reference import same_bits
from strategies import SPECIAL, seeds

from edgeconv.kernels import pointwise
from edgeconv.kernels.pointwise import ACTIVATIONS, NORMS

AT_MOST = {"sigmoid": 1.8, "swish": 1.8, "gelu": 1.8}  # units in the last place, else 1
ONE = np.float32(1)


def apply(kind, x, low=ONE, high=ONE):
    y = x.reshape(1, -1).copy()
    pointwise.kernel(pointwise.activate)(y, ACTIVATIONS.index(kind), low, high)
    return y.reshape(x.shape)


def normalise(kind, x, affine, eps=1e-12, partial=None):
    y = np.empty((len(x), affine.shape[1]), np.float32)
    arguments = NORMS.index(kind), np.float32(eps), partial or affine.shape[1]
    pointwise.kernel(pointwise.normalise)(x, y, affine, *arguments)
    return y


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def gelu(x):
    return x * np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])


# In float64, whose own error is too small to be seen.
EXACT = {
    "exp": np.exp,
    "log": np.log,
    "sigmoid": sigmoid,
    "swish": lambda x: np.where(x == -np.inf, -0.0, x) * sigmoid(x),
    "tanh": np.tanh,
    "gelu": lambda x: gelu(np.where(x == -np.inf, -1e9, x)),
}


def distance(y, exact):
    """Return the difference in units in the last place of the exact result."""
    scale = 2.0 ** (np.floor(np.log2(np.clip(np.abs(exact), 2.0**-126, 3.4e38))) - 23)
    difference = np.abs(y.astype(np.float64) - exact) / scale
    difference[(y == exact.astype(np.float32)) | (np.isnan(y) & np.isnan(exact))] = 0
    return np.where(np.isnan(difference), np.inf, difference)


def numbers():
    """Return float32 of every size and sign, and many where the functions bend."""
    rng = np.random.default_rng(0)
    every = rng.integers(0, 2**32, 4_000_000, np.uint32).view(np.float32)
    near = [rng.standard_normal(2_000_000, np.float32) * np.float32(s) for s in (0.1, 1, 10)]
    edges = np.float32([88.72, 88.73, -87.4, -103.9, -104, 0.6, -0.6, 15, -13.5, -14.2, -15, 1])
    return np.concatenate([every, *near, SPECIAL, edges, np.nextafter(edges, np.float32(0))])


@pytest.mark.parametrize("kind", EXACT)
def test_functions_are_within_two_units_in_the_last_place(kind):
    x = numbers()
    assert x.size >= 10_000_000
    for part in np.array_split(x, 20):
        with np.errstate(all="ignore"):
            exact = EXACT[kind](part.astype(np.float64))
            worst = distance(apply(kind, part), exact).max()
        assert worst <= AT_MOST.get(kind, 1)


@pytest.mark.parametrize("kind", ["swish", "gelu", "sigmoid", "tanh", "exp"])
def test_limits(kind):
    limits = {"sigmoid": (0, 1), "tanh": (-1, 1)}
    for x, limit in zip((-np.inf, np.inf), limits.get(kind, (0, np.inf)), strict=True):
        assert apply(kind, np.float32([x]))[0] == limit
    assert np.isnan(apply(kind, np.float32([np.nan]))).all()


def test_the_others_are_plain():
    x = np.float32([-3, -0.5, -0.0, 0, 0.5, 3, np.inf, -np.inf, np.nan])
    assert same_bits(apply("relu", x), np.float32([0, 0, 0, 0, 0.5, 3, np.inf, 0, np.nan]))
    assert same_bits(apply("identity", x), x)
    expected = np.float32([-1, -0.5, -0.0, 0, 0.5, 2, 2, -1, np.nan])
    assert same_bits(apply("hardtanh", x, -ONE, 2 * ONE), expected)
    half = ONE / 2
    expected = np.float32([-1.5, -0.25, -0.0, 0, 0.5, 3, np.inf, -np.inf, np.nan])
    assert same_bits(apply("leaky_relu", x, half), expected)
    assert same_bits(apply("swish", x[:6], 2 * ONE), 2 * apply("swish", x[:6]))


def test_a_gate_is_the_sigmoid_times_the_other_half():
    rng = np.random.default_rng(0)
    n = 1_000_000
    # Everywhere, and where the sigmoid's two summands are of most different sizes.
    strips = [rng.uniform(low, high, n) for low, high in ((-20, 20), (-18, -15), (15, 18))]
    sizes = 2.0 ** np.stack([rng.uniform(0, 1, n), rng.uniform(-120, 40, n), rng.uniform(-9, 9, n)])
    x = np.stack([sizes * rng.choice([-1, 1], n), strips], axis=2).reshape(-1, 2)
    x = np.concatenate([x.astype(np.float32), np.float32([[-0.0, -3], [np.inf, 50], [2, -np.inf]])])
    y = np.empty((len(x), 1), np.float32)
    pointwise.kernel(pointwise.gate)(x, y)
    assert np.signbit(y[-3])
    exact = x[:, :1].astype(np.float64) * sigmoid(x[:, 1:].astype(np.float64))
    with np.errstate(invalid="ignore"):
        assert distance(y, exact).max() <= AT_MOST["sigmoid"]


def test_powers_are_squares_of_cosines_and_sines():
    x = np.float32([[3, 4, 5, 6, 7], [1, 0, -1, -2, np.nan]])  # 3 cosines, 2 sines
    y = np.empty((2, 3), np.float32)
    pointwise.kernel(pointwise.power)(x, y)
    assert same_bits(y, np.float32([[9, 16 + 36, 25 + 49], [1, 4, np.nan]]))


def test_a_standardised_logarithm_is_that_of_something():
    x = np.float32([[0, 1, 5], [np.nan, 0.25, np.inf]])
    mean, deviation = np.float32([1, 2, 3]), np.float32([3, 2, 1])
    expected = apply("log", np.maximum(x, np.float32(0.5)))
    pointwise.kernel(pointwise.standardised_log)(x, np.float32(0.5), mean, deviation)
    assert same_bits(x, (expected - mean) / deviation)


def test_the_largest_of_what_is_there():
    x = np.random.default_rng(0).standard_normal((6, 7, 5), np.float32)
    x[3, 4, 1] = np.nan
    for size, shape in ((2, (3, 4, 5)), (3, (3, 4, 5))):
        y = np.empty(shape, np.float32)
        pointwise.kernel(pointwise.largest)(x, y, size)
        for t, row in np.ndindex(shape[:2]):
            window = x[2 * t : 2 * t + size, 2 * row : 2 * row + size]
            assert same_bits(y[t, row], window.max(axis=(0, 1)))


def test_the_loudest_sample():
    loudest = pointwise.kernel(pointwise.loudest)
    assert loudest(np.float32([])) == 0
    assert loudest(np.float32([0.5, -0.75, 0.25])) == 0.75
    assert np.isnan(loudest(np.float32([0.5, np.nan, 2])))


def test_16_bit_samples_are_scaled_exactly():
    samples = np.arange(-(2**15), 2**15).astype(np.int16)[::-1]
    y = np.empty(len(samples), np.float32)
    pointwise.kernel(pointwise.scaled)(samples, y)
    assert (y * 32768 == samples).all()


@given(st.integers(1, 70), st.integers(0, 9), seeds)
def test_a_layer_norm_adds_in_its_order(size, before, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, before + size), np.float32) + rng.standard_normal(dtype=np.float32)
    affine = rng.standard_normal((2, size), np.float32)
    expected = np.array([reference.layer_norm(row[before:], *affine, 1e-12) for row in x])
    assert same_bits(normalise("layer_norm", x, affine), expected)


def test_a_frame_of_constants_is_all_offset():
    affine = np.float32([[3] * 48, range(48)])
    y = normalise("layer_norm", np.full((1, 48), 7, np.float32), affine)
    assert same_bits(y, affine[1:])


@pytest.mark.parametrize("partial", [16, 48])
def test_other_norms(partial):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 48), np.float32)
    affine = np.stack([rng.standard_normal(48, np.float32), np.zeros(48, np.float32)])
    wide = x.astype(np.float64)
    mean_square = (wide[:, :partial] ** 2).mean(1, keepdims=True)
    expected = wide / (np.sqrt(mean_square) + 0.01) * affine[0]
    np.testing.assert_allclose(normalise("rms_norm", x, affine, 0.01, partial), expected, rtol=1e-6)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 0.25) * affine[0]
    np.testing.assert_allclose(normalise("basic_norm", x, affine, 0.25), expected, rtol=1e-6)
    expected = wide / np.sqrt((wide**2).sum(1, keepdims=True)) * affine[0]
    np.testing.assert_allclose(normalise("scale_norm", x, affine, 1e-5), expected, rtol=1e-6)
    assert not normalise("scale_norm", np.zeros_like(x), affine, 1e-5).any()


@njit
def softmax_of_rows(x):
    for row in range(len(x)):
        pointwise.softmax(x, row, x.shape[1])


def test_a_softmax_does_not_overflow():
    x = np.float32([[1e38, 1e38, -1e38, 0], [0, 1, 2, 3]])
    expected = np.exp(x[1].astype(np.float64))
    softmax_of_rows(x)
    assert x[0].tolist() == [0.5, 0.5, 0, 0]
    np.testing.assert_allclose(x[1], expected / expected.sum(), rtol=2e-7)


def test_logarithms_of_a_softmax_reach_where_it_is_zero():
    x = np.float32([[1e38, 1e38, -1e38, 0], [0, 1, -200, 3]])
    y = np.empty_like(x)
    pointwise.kernel(pointwise.log_softmax_rows)(x, y)
    wide = x.astype(np.float64) - x.max(1, keepdims=True)
    expected = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    np.testing.assert_allclose(y, expected, rtol=2e-7)
