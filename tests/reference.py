"""The definition, written to be checked by eye; it shares no code with the library."""

import ctypes

import numpy as np

_fmaf = ctypes.CDLL("libm.so.6").fmaf
_fmaf.restype = ctypes.c_float
_fmaf.argtypes = [ctypes.c_float] * 3

ROUNDING = 2.0**-24  # of one float32 operation, relative


def fused(a, b, c):
    """Return a * b + c in float32, rounded once, as the C library computes it."""
    return np.float32(_fmaf(a, b, c))


def exact(a, b, c):
    """Return a * b + c in float64, where the product of two float32 is exact."""
    return np.float64(a) * np.float64(b) + np.float64(c)


def convolve(x, weight, bias, causal, multiply_add=fused):
    """Convolve a signal (T, C) with weight (C, 1, K) and bias (C,)."""
    n_frames, channels = x.shape
    kernel_size = weight.shape[2]
    left = kernel_size - 1 if causal else (kernel_size - 1) // 2
    y = np.empty(x.shape, np.float32 if multiply_add is fused else np.float64)
    for t in range(n_frames):
        for c in range(channels):
            total = bias[c]
            for k in range(kernel_size):
                i = t - left + k
                value = x[i, c] if 0 <= i < n_frames else np.float32(0)
                total = multiply_add(weight[c, 0, k], value, total)
            y[t, c] = total
    return y


def error_bound(x, weight, bias, causal):
    """Return how far (T, C) any float32 sum of these terms may lie from the exact one."""
    kernel_size = weight.shape[2]
    gamma = (kernel_size + 1) * ROUNDING / (1 - (kernel_size + 1) * ROUNDING)
    magnitudes = (abs(np.asarray(a, np.float64)) for a in (x, weight, bias))
    return gamma * convolve(*magnitudes, causal, exact) + kernel_size * 2.0**-150


def same_bits(a, b):
    """Tell whether two arrays are equal bit for bit, any NaN being equal to any NaN."""
    assert a.dtype == b.dtype == np.float32
    if a.shape != b.shape:
        return False
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all() and (a.view(np.int32) == b.view(np.int32))[~nan].all())
