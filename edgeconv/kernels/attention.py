"""Attention with relative positions: scores and context of a chunk, over a run of keys and values.

Keys and position projections are stored by dimension, so that a vector holds neighbouring keys:

* keys (H, dk, n): column j is key j. positions (H, dk, m): column c is distance zero - c.
* values (n, H, wide): rows of each head, filled up with zeros to whole blocks.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import float32, int64, types, void

from edgeconv.kernels import entry, inlined
from edgeconv.kernels.dense import LONG, MOST, address_of, multiply
from edgeconv.kernels.pointwise import softmax
from edgeconv.kernels.vectors import (
    BLOCK,
    enter_usual_mode,
    give_up_lock,
    return_to_mode,
    take_lock,
)

SCORES, SHIFTED, CONTEXT = range(3)


@inlined
def _products(y, x, w, following, count, start):
    """Write products of rows with a matrix `w`, whole blocks of outputs; operands as in `multiply`.

    Meanwhile as many rows of the following matrix are fetched.
    """
    for i in range(0, count[0], BLOCK):
        out, own = (y[0] + 4 * i, y[1], y[2]), (w[0] + 4 * i, w[1], 0)
        beside = following[0] + 4 * i, count[1] * following[1], 0, 0
        multiply(out, (address_of(start), 0), own, beside, x, (1, count[1]), start)


def attend(projected, biases, keys, values, positions, span):
    """Store a chunk's keys and values, and replace its queries by its context.

    projected (T, 3 * D): queries, keys and values; biases (2, D) are added to the queries for keys
    and for positions. Span: the first key that the chunk sees, how many these are, its own the
    last, and the column of distance 0 in `positions`.
    """
    n_frames, width = len(projected), biases.shape[1]
    n_heads, size, wide = keys.shape[0], keys.shape[1], values.shape[2]
    first, n, zero = span[0], span[1], span[2]
    root = np.sqrt(float32(size))
    queries = np.empty((2, n_frames, width), np.float32)
    scores = np.empty((MOST, n + BLOCK), np.float32)
    shifted = np.empty((MOST, n + MOST + BLOCK), np.float32)
    context = np.empty((MOST, wide), np.float32)
    start = np.zeros(BLOCK, np.float32)
    is_long = 2 * n_frames * width * n >= LONG
    thread = give_up_lock() if is_long else 0
    mode = enter_usual_mode()
    latest = first + n - n_frames  # of the keys, the chunk's own first one
    for t in range(n_frames):
        for i in range(width):
            queries[0, t, i] = projected[t, i] + biases[0, i]
            queries[1, t, i] = projected[t, i] + biases[1, i]
        for head in range(n_heads):
            for i in range(size):
                values[latest + t, head, i] = projected[t, 2 * width + head * size + i]
    for head in range(n_heads):
        for i in range(size):
            for t in range(n_frames):
                keys[head, i, latest + t] = projected[t, width + head * size + i]
    tiles = -(-n_frames // MOST)
    for job in range(n_heads * tiles * 3):
        head, rest = divmod(job, 3 * tiles)
        t, step = rest // 3 * MOST, rest % 3
        rows = min(MOST, n_frames - t)
        # Frame t is the key n - n_frames + t; its columns begin one before those of frame t - 1.
        column = zero - (n - n_frames + t + rows - 1)
        at_keys = address_of(keys) + head * keys.strides[0] + 4 * first
        at_positions = address_of(positions) + head * positions.strides[0] + 4 * column
        at_values = address_of(values) + head * values.strides[1] + first * values.strides[0]
        matrices = (
            (at_keys, keys.strides[1]),
            (at_positions, positions.strides[1]),
            (at_values, values.strides[0]),
            (at_keys + keys.strides[0], keys.strides[1]),  # of the next head
        )
        query = address_of(queries) + t * queries.strides[1] + 4 * head * size
        if step == SCORES:
            y, x = (address_of(scores), scores.strides[0]), (query, 4 * width, 0)
            count = n, size
        elif step == SHIFTED:
            query += queries.strides[0]
            y, x = (address_of(shifted), shifted.strides[0]), (query, 4 * width, 0)
            count = n + rows - 1, size
        else:
            for i in range(rows):
                by_key, by_distance = scores[i], shifted[i, rows - 1 - i :]
                for j in range(n):
                    by_key[j] = (by_key[j] + by_distance[j]) / root
                softmax(scores, i, n)
            y = address_of(context), context.strides[0]
            x = address_of(scores), scores.strides[0], 0
            count = wide, n
        _products((y[0], y[1], rows), x, matrices[step], matrices[step + 1], count, start)
        if step == CONTEXT:
            for i in range(rows):
                for j in range(size):
                    projected[t + i, head * size + j] = context[i, j]
    return_to_mode(mode)
    if is_long:
        take_lock(thread)


def _floats(dimensions, readonly=True):
    return types.Array(float32, dimensions, "C", readonly)


@functools.cache
def kernel():
    """Return `attend`, compiled."""
    projected, run = _floats(2, readonly=False), _floats(3, readonly=False)
    span = types.Array(int64, 1, "C", readonly=True)
    return entry(attend, void(projected, _floats(2), run, run, _floats(3), span))
