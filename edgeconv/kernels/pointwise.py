"""Functions of single numbers, norms and softmax, the same to the bit on every CPU.

The functions work in float64 with polynomials in fused multiply-adds, so that nothing of float32's
range overflows, and round to float32 once: they are within 1 unit in the last place. LLVM's and
NumPy's own `exp` and the like differ between CPUs. Sums, products and copies are here because
NumPy's give up the interpreter's lock, and beside two busy threads wait 10 ms to have it back.
Coefficients are minimax fits; beside each is
the largest relative error. Sums over features are float32 in the order of `make_sum`.
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
_MANTISSA, _ONE = 52, 1023 << 52

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
def sigmoid(x):
    """Return 1 / (1 + e ** -x)."""
    e = exp(-abs(x))
    return (e if x < 0.0 else 1.0) / (1.0 + e)


@compiled
def swish(x):
    """Return x * sigmoid(x)."""
    return (-110.0 if x < -110.0 else x) * sigmoid(x)


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
    """Return x times the normal distribution's share below x."""
    x = -15.0 if x < -15.0 else x
    t = abs(x)
    t = 15.0 if t > 15.0 else t
    w = 1.0 / fused(0.25, t, 1.0)
    q = fused(-0.007557258606238342, w, 0.03743552492778777)  # 2**-30
    q = fused(q, w, -0.05529358966113906)
    q = fused(q, w, -0.00709547749093114)
    q = fused(q, w, 0.068254133008957)
    q = fused(q, w, -0.04661390811776627)
    q = fused(q, w, 0.08668280303866079)
    q = fused(q, w, 0.04648135386778368)
    q = fused(q, w, 0.08536783966002448)
    q = fused(q, w, 0.09280578787116764)
    q = fused(q, w, 0.0997998141583349)
    q = fused(q, w, 0.09973297728310256)
    tail = exp(-0.5 * t * t) * (q * w)
    return x * (tail if x < 0.0 else 1.0 - tail)


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
            numbers[i] = low * swish(float64(numbers[i]))
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
            numbers[i] = gelu(float64(numbers[i]))
    elif kind == SIGMOID:
        for i in range(n):
            numbers[i] = sigmoid(float64(numbers[i]))
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
            factor = sigmoid(float64(numbers[first + size + i]))
            out[t * size + i] = float64(numbers[first + i]) * factor
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
