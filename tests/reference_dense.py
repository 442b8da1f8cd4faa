"""Dense layers, norms and attention as definitions; this shares no code with the library."""

import math

import numpy as np
from reference import fused


def dense(x, weight, bias, scale=None):
    """Multiply rows (T, K) with a weight (N, K): one chain for each output, k ascending."""
    y = np.empty((len(x), len(weight)), np.float32)
    for t, n in np.ndindex(y.shape):
        total = bias[n] if scale is None else np.float32(0)
        for k in range(x.shape[1]):
            total = fused(np.float32(weight[n, k]), x[t, k], total)
        y[t, n] = total if scale is None else fused(total, scale[n], bias[n])
    return y


def total(numbers, minus=None):
    """Add float32, or squares of their excess, as 16 partial sums that are added in pairs."""
    partial = [np.float32(0)] * 16
    for i, number in enumerate(numbers):
        if minus is None:
            partial[i % 16] = partial[i % 16] + number
        else:
            excess = number - minus
            partial[i % 16] = fused(excess, excess, partial[i % 16])
    while len(partial) > 1:
        half = len(partial) // 2
        partial = [partial[i] + partial[half + i] for i in range(half)]
    return partial[0]


def layer_norm(x, factor, offset, eps):
    """Normalise one row."""
    n = np.float32(len(x))
    mean = total(x) / n
    scale = np.float32(1) / np.sqrt(total(x, mean) / n + np.float32(eps))
    terms = zip((x - mean) * scale, factor, offset, strict=True)
    return np.array([fused(*term) for term in terms])


def attention(queries, keys, values, positions, n_heads):
    """
    Attend in float64: queries (2, T, D) for keys and positions, whose keys are the last T of n.

    `positions` is a function of the distance from a query back to a key.
    """
    _, n_frames, width = queries.shape
    n, size = len(keys), width // n_heads
    out = np.empty((n_frames, width))
    for head in range(n_heads):
        at = slice(head * size, (head + 1) * size)
        for i in range(n_frames):
            by_distance = [positions(n - n_frames + i - j)[at] for j in range(n)]
            scores = keys[:, at] @ queries[0, i, at] + np.array(by_distance) @ queries[1, i, at]
            weights = np.exp((scores - scores.max()) / math.sqrt(size))
            out[i, at] = weights / weights.sum() @ values[:, at]
    return out
