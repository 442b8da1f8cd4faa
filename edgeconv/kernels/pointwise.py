"""Functions of single numbers, norms and softmax, the same to the bit on every CPU.

Sigmoid, swish and GELU, which every hidden number goes through, work in float32, of which a vector
holds twice as many, and carry along what roundings lose: they are within 1.8 units in the last
place. The others work in float64, round once, and are within 1. All are polynomials in fused
multiply-adds, as LLVM's and NumPy's own `exp` and the like differ between CPUs; coefficients are
minimax fits, beside which is the largest relative error. Sums over features are float32 in the
order of `make_sum`.

Sums, products and copies are here because NumPy's give up the interpreter's lock, and beside two
busy threads wait 10 ms to have it back.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import float32, float64, int16, int64, types, void

from edgeconv.kernels import compiled, entry
from edgeconv.kernels.vectors import (
    LARGEST,
    SQUARES,
    SUM,
    bits_of,
    enter_usual_mode,
    from_bits,
    fused,
    make_sum,
    power_of_two,
    return_to_mode,
)

ACTIVATIONS = (
    *("identity", "relu", "swish", "tanh", "hardtanh", "leaky_relu"),
    *("gelu", "sigmoid", "exp", "log"),
)
IDENTITY, RELU, SWISH, TANH, HARDTANH, LEAKY_RELU, GELU, SIGMOID, EXP, LOG = range(10)
NORMS = ("layer_norm", "basic_norm", "rms_norm", "scale_norm")
LAYER, BASIC, RMS, SCALE = range(4)

_ROUND = 1.5 * 2.0**52  # added to a number, it leaves the nearest integer in the low bits
_ROOT_HALF = int(np.sqrt(0.5).view(np.int64))
_MANTISSA = 52

_ZERO, _HALF, _ONE, _TINY = (np.float32(x) for x in (0, 0.5, 1, 2.0**-64))
# Integers are added to these, which then are 64 and 191 in `power_of_two`.
_SMALLER, _LARGER = np.float32(1.5 * 2.0**23 + 63), np.float32(1.5 * 2.0**23 + 191)
_LOG2_E = np.float32(1.4426950408889634)
_LN_2, _LN_2_REST = np.float32(2839 / 4096), np.float32(3.194618494528623e-05)  # 12 bits, the rest
# e ** r = 1 + r + r * r * (1 / 2 + ...), 2**-28
_EXP = tuple(np.float32(x) for x in (0.166665182, 0.0416662060, 0.00836891867, 0.00139505393))
_SURE, _LEAST = np.float32(43), np.float32(131)  # beyond, a sigmoid is 1, or its product 0
# In `gelu`: q by powers of w less a centre, 2**-27, with the rest of the first, and how steeply
# w * q, as a power of w, rises with it.
_SLOPE, _CENTRE, _FAR = np.float32(0.3), np.float32(0.59375), np.float32(15)
_Q = tuple(
    np.float32(x)
    for x in (
        *(0.256056697, 0.399991363, 0.409516394, 0.225665793, -0.0109795416, -0.0907263383),
        *(-0.00948594324, 0.0441151746, 0.00222934294, -0.0206249394),
    )
)
_Q_REST = np.float32(-7.80297249e-09)
_STEEP, _STEEPER = np.float32(0.829812), np.float32(1.85836)

total, total_of_squares, largest_of = (make_sum(kind) for kind in (SUM, SQUARES, LARGEST))


@compiled
def exp(x):
    """Return e ** x of a float64; beyond what float32 holds, a number that it rounds rightly."""
    x = -110.0 if x < -110.0 else x  # NaN remains
    x = 100.0 if x > 100.0 else x
    shifted = fused(x, 1.4426950408889634, _ROUND)
    r = fused(shifted - _ROUND, -0.6931471805599453, x)
    p = fused(0.00019891080463998843, r, 0.0013933730715792083)  # 2**-32
    p = fused(p, r, 0.008333310844647862)
    p = fused(p, r, 0.04166646419740569)
    p = fused(p, r, 0.16666666681704215)
    p = fused(p, r, 0.500000001353873)
    p = fused(fused(p, r, 1.0), r, 1.0)
    return from_bits(bits_of(p) + (bits_of(shifted) << _MANTISSA))


@compiled
def log(x):
    """Return the natural logarithm of a float64 that holds a float32."""
    exponent = (bits_of(x) - _ROOT_HALF) >> _MANTISSA
    m = from_bits(bits_of(x) - (exponent << _MANTISSA))
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    q = fused(0.19369462304677365, z, 0.22191049440932323)  # 2**-38
    q = fused(q, z, 0.2857176008578298)
    q = fused(q, z, 0.39999998770080447)
    q = fused(q, z, 0.6666666666739516)
    y = fused(exponent * 1.0, 0.6931471805599453, fused(s * z, q, 2.0 * s))
    y = x if x == np.inf else y
    y = -np.inf if x == 0.0 else y
    return np.nan if not x >= 0.0 else y


@compiled
def _exp_parts(x, rest, shift):
    """Return e and p, e * (1 + p) = e ** (x + rest), scaled by the power of two in `shift`."""
    shifted = fused(x, _LOG2_E, shift)
    n = shifted - shift
    r = fused(n, -_LN_2, x) + fused(n, -_LN_2_REST, rest)  # the first product is exact
    square = r * r
    q = fused(fused(_EXP[3], square, fused(_EXP[2], r, _EXP[1])), square, fused(_EXP[0], r, _HALF))
    return power_of_two(shifted), fused(square, q, r)


@compiled
def gated(a, x):
    """Return a * sigmoid(x) = a / (1 + e ** -x), of float32; of an a up to 5e11, if x < -131."""
    z = -x
    z = -_SURE if z < -_SURE else z  # NaN remains
    z = _LEAST if z > _LEAST else z
    e, p = _exp_parts(z, _ZERO, _SMALLER)
    base = _TINY + e
    rest = _TINY - (base - e) if e > _TINY else e - (base - _TINY)
    divisor = fused(e, p, base)
    r = _ONE / divisor
    rest += fused(e, p, base - divisor)
    lost = fused(-r, rest, fused(-r, divisor, _ONE))
    is_large = abs(a) > _ONE
    a = a * _TINY if is_large else a
    rough = a * r
    y = fused(a, r, rough * lost)
    y = rough if (y != y) | (rough == _ZERO) else y  # of an infinite a, or of a zero with its sign
    return y if is_large else y * _TINY


@compiled
def swish(x):
    """Return x * sigmoid(x), of a float32."""
    return gated(-_LEAST if x < -_LEAST else x, x)


@compiled
def tanh(x):
    """Return the hyperbolic tangent."""
    t = abs(x)
    z = t * t
    p = fused(-0.000896543880615448, z, 0.0033417792785767337)  # 2**-34
    p = fused(p, z, -0.008804699129387337)
    p = fused(p, z, 0.021862307655426308)
    p = fused(p, z, -0.053967829594430944)
    p = fused(p, z, 0.13333332385724683)
    p = fused(p, z, -0.33333333329857495)
    e = exp(-2.0 * t)
    y = fused(p * z, t, t) if t < 0.6 else (1.0 - e) / (1.0 + e)
    return -y if x < 0.0 else y


@compiled
def gelu(x):
    """Return x times the normal distribution's share below x, of a float32.

    The share below -t is ``w * q * e ** (-t * t / 2)``, with w = 1 / (1 + 0.3 * t) and a polynomial
    q of it. `rest` is what rounding w, q, t * t and the products has lost.
    """
    t = abs(x)
    t = _FAR if t > _FAR else t
    divisor = fused(_SLOPE, t, _ONE)
    v = _ONE / divisor - _CENTRE
    w = v + _CENTRE  # of which v is exact
    lost = fused(-w, fused(_SLOPE, t, _ONE - divisor), fused(-w, divisor, _ONE))
    square = v * v
    q = fused(fused(_Q[9], v, _Q[8]), square, fused(_Q[7], v, _Q[6]))
    q = fused(fused(q, square, fused(_Q[5], v, _Q[4])), square, fused(_Q[3], v, _Q[2]))
    q = fused(q, v, _Q[1])
    last = fused(q, v, _Q[0])
    last_rest = fused(q, v, _Q[0] - last) + _Q_REST
    square = t * t
    e, p = _exp_parts(-_HALF * square, -_HALF * fused(t, t, -square), _LARGER)
    tw = t * w
    y = tw * last
    by_w = y * (lost * fused(_STEEPER, w, _STEEP))
    rest = fused(tw, last, -y) + fused(fused(t, w, -tw), last, fused(tw, last_rest, by_w))
    y = (y + fused(y, p, fused(rest, p, rest))) * e * _TINY
    return x - y if x >= _ZERO else -y


@compiled
def softmax(x, row, n):
    """Replace the first n numbers of a row by e to their power, divided by the sum of these."""
    at, nothing = int64(x.ctypes.data) + row * x.strides[0], float32(0)
    most = largest_of(at, n, nothing)
    for i in range(n):
        x[row, i] = exp(float64(x[row, i] - most))
    whole = total(at, n, nothing)
    for i in range(n):
        x[row, i] /= whole


def log_softmax_rows(x, y):
    """Write y (T, N), the logarithms of the softmax of each row of x."""
    mode = enter_usual_mode()
    for row in range(len(x)):
        at, n, nothing = int64(x.ctypes.data) + row * x.strides[0], x.shape[1], float32(0)
        most = largest_of(at, n, nothing)
        for i in range(n):
            y[row, i] = exp(float64(x[row, i] - most))
        rest = log(float64(total(int64(y.ctypes.data) + row * y.strides[0], n, nothing)))
        for i in range(n):
            y[row, i] = float64(x[row, i] - most) - rest
    return_to_mode(mode)


@compiled
def apply(numbers, kind, low, high):
    """Replace numbers (n,) by a function of them; `low` and `high` are its parameters, if any."""
    n, zero = len(numbers), float32(0)
    if kind == RELU:
        for i in range(n):
            # The sum changes nothing, but is stored: a store under a condition is no vector's.
            numbers[i] = zero if numbers[i] <= zero else numbers[i] + zero
    elif kind == SWISH:
        for i in range(n):
            numbers[i] = low * swish(numbers[i])
    elif kind == TANH:
        for i in range(n):
            numbers[i] = tanh(float64(numbers[i]))
    elif kind == HARDTANH:
        for i in range(n):
            at_least = low if numbers[i] < low else numbers[i]
            numbers[i] = high if at_least > high else at_least
    elif kind == LEAKY_RELU:
        for i in range(n):
            numbers[i] = low * numbers[i] if numbers[i] <= zero else numbers[i]
    elif kind == GELU:
        for i in range(n):
            numbers[i] = gelu(numbers[i])
    elif kind == SIGMOID:
        for i in range(n):
            numbers[i] = gated(_ONE, numbers[i])
    elif kind == EXP:
        for i in range(n):
            numbers[i] = exp(float64(numbers[i]))
    elif kind == LOG:
        for i in range(n):
            numbers[i] = log(float64(numbers[i]))


def activate(x, kind, low, high):
    """Replace x (T, D) by a function of it."""
    mode = enter_usual_mode()
    apply(x.reshape(x.size), kind, low, high)
    return_to_mode(mode)


def gate(x, y):
    """Write y (T, D): the first half of each row of x (T, 2 * D), times the second's sigmoid."""
    mode = enter_usual_mode()
    n_frames, size = y.shape
    numbers, out = x.reshape(x.size), y.reshape(y.size)
    for t in range(n_frames):
        first = 2 * t * size
        for i in range(size):
            out[t * size + i] = gated(numbers[first + i], numbers[first + size + i])
    return_to_mode(mode)


@compiled
def add_to(numbers, factor, terms):
    """Replace numbers (n,) by factor * numbers + terms."""
    for i in range(len(numbers)):
        numbers[i] = fused(factor, numbers[i], terms[i])


def add(x, y, factor):
    """Replace y (T, D) by factor * y + x."""
    mode = enter_usual_mode()
    add_to(y.reshape(y.size), factor, x.reshape(x.size))
    return_to_mode(mode)


def multiply(x, y):
    """Replace y (T, D) by its products with the first half of each row of x (T, 2 * D)."""
    mode = enter_usual_mode()
    n_frames, size = y.shape
    factors, numbers = x.reshape(x.size), y.reshape(y.size)
    for t in range(n_frames):
        for i in range(size):
            numbers[t * size + i] *= factors[2 * t * size + i]
    return_to_mode(mode)


def power(x, y):
    """Write y (T, n), squares of the first n columns of x; y[:, 1:] take those of the rest, too."""
    mode = enter_usual_mode()
    n_frames, n = y.shape
    for t in range(n_frames):
        for i in range(n):
            y[t, i] = x[t, i] * x[t, i]
        for i in range(x.shape[1] - n):
            y[t, 1 + i] += x[t, n + i] * x[t, n + i]
    return_to_mode(mode)


def standardised_log(x, floor, mean, deviation):
    """Replace x (T, D) by logarithms of what is at least `floor`, less a mean, by a deviation."""
    mode = enter_usual_mode()
    for t in range(len(x)):
        for i in range(x.shape[1]):
            number = floor if x[t, i] < floor else x[t, i]
            x[t, i] = (float32(log(float64(number))) - mean[i]) / deviation[i]
    return_to_mode(mode)


def scaled(x, y):
    """Write y (n,), 16-bit samples as numbers from -1 to 1."""
    for i in range(len(y)):
        y[i] = float32(x[i]) / float32(32768)


def loudest(x):
    """Return the largest size of x (n,), NaN if there is one."""
    most = float32(0)
    for i in range(len(x)):
        size = abs(x[i])
        most = size if (size > most) | (size != size) else most
    return most


def copy(x, y):
    """Write y, a copy of x (T, F, C)."""
    n_frames, n_rows, size = y.shape
    for t in range(n_frames):
        for row in range(n_rows):
            for i in range(size):
                y[t, row, i] = x[t, row, i]


@compiled
def norm(x, y, affine, kind, eps, partial):
    """Write y (D,), the norm of x; `affine` (2, D) are factors and offsets.

    Statistics are of the first `partial` numbers.
    """
    row, mean = int64(x.ctypes.data), float32(0)
    if kind == LAYER:
        mean = total(row, partial, mean) / float32(partial)
    squares = total_of_squares(row, partial, mean)
    if kind == SCALE:
        size_of_row = np.sqrt(squares)
        scale = float32(1) / (eps if size_of_row < eps else size_of_row)
    elif kind == RMS:
        scale = float32(1) / (np.sqrt(squares / float32(partial)) + eps)
    else:
        scale = float32(1) / np.sqrt(squares / float32(partial) + eps)
    for i in range(len(y)):
        y[i] = fused((x[i] - mean) * scale, affine[0, i], affine[1, i])


def largest(x, y, size):
    """Write y (T, F, C), the largest of `size` frames and rows of x, or what is left; stride 2.

    NaN is larger than anything.
    """
    mode = enter_usual_mode()
    for t in range(len(y)):
        for row in range(y.shape[1]):
            out = y[t, row]
            for c in range(len(out)):  # an assignment of slices would take two seconds to compile
                out[c] = x[2 * t, 2 * row, c]
            for i in range(2 * t, min(2 * t + size, len(x))):
                for j in range(2 * row, min(2 * row + size, x.shape[1])):
                    for c in range(len(out)):
                        number = x[i, j, c]
                        is_larger = (number > out[c]) | (number != number)
                        out[c] = number if is_larger else out[c]
    return_to_mode(mode)


def normalise(x, y, affine, kind, eps, partial):
    """Write y (T, D), the norms of the last D columns of x."""
    mode = enter_usual_mode()
    first = x.shape[1] - y.shape[1]
    for t in range(len(y)):
        norm(x[t, first:], y[t], affine, kind, eps, partial)
    return_to_mode(mode)


_ROWS, _READ = types.Array(float32, 2, "C"), types.Array(float32, 2, "C", readonly=True)
_NUMBERS = types.Array(float32, 1, "C", readonly=True)
_SIGNATURES = {
    log_softmax_rows: void(_READ, _ROWS),
    activate: void(_ROWS, int64, float32, float32),
    gate: void(_READ, _ROWS),
    add: void(_READ, _ROWS, float32),
    multiply: void(_READ, _ROWS),
    power: void(_READ, _ROWS),
    standardised_log: void(_ROWS, float32, _NUMBERS, _NUMBERS),
    scaled: void(types.Array(int16, 1, "A", readonly=True), types.Array(float32, 1, "C")),
    loudest: float32(_NUMBERS),
    copy: void(types.Array(float32, 3, "A", readonly=True), types.Array(float32, 3, "A")),
    largest: void(types.Array(float32, 3, "C", readonly=True), types.Array(float32, 3, "C"), int64),
    normalise: void(_READ, _ROWS, _READ, int64, float32, int64),
}


@functools.cache
def kernel(function):
    """Return one of the functions of this module that take rows, compiled."""
    return entry(function, _SIGNATURES[function])
