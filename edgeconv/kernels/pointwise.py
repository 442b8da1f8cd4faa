"""Functions of every number, norms, softmax, sums and copies, the same to the bit on every CPU.

Sums over features are float32 in the order of `make_sum`. Sums of two arrays, products and copies
are here because NumPy's give up the interpreter's lock, and beside two busy threads wait 10 ms to
have it back.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import float32, float64, int16, int64, types, void

from edgeconv.kernels import compiled, entry
from edgeconv.kernels.functions import exp, gated, gelu, log, swish, tanh
from edgeconv.kernels.vectors import (
    LARGEST,
    SQUARES,
    SUM,
    enter_usual_mode,
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

total, total_of_squares, largest_of = (make_sum(kind) for kind in (SUM, SQUARES, LARGEST))


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
            numbers[i] = gated(float32(1), numbers[i])
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


def follow(latest, x, y):
    """Write y: the latest frames, those of x (T, F, C) between rows of zeros, frames of zeros."""
    n_frames, n_rows, size = y.shape
    padding = (n_rows - x.shape[1]) // 2
    for t in range(n_frames):
        since = t - len(latest)
        for row in range(n_rows):
            inner = row - padding
            for i in range(size):
                if since < 0:
                    y[t, row, i] = latest[t, row, i]
                elif since < len(x) and 0 <= inner < x.shape[1]:
                    y[t, row, i] = x[since, inner, i]
                else:
                    y[t, row, i] = 0


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
    follow: void(*[types.Array(float32, 3, "C", readonly=True)] * 2, types.Array(float32, 3, "C")),
    copy: void(types.Array(float32, 3, "A", readonly=True), types.Array(float32, 3, "A")),
    largest: void(types.Array(float32, 3, "C", readonly=True), types.Array(float32, 3, "C"), int64),
    normalise: void(_READ, _ROWS, _READ, int64, float32, int64),
}


@functools.cache
def kernel(function):
    """Return one of the functions of this module that take rows, compiled."""
    return entry(function, _SIGNATURES[function])
