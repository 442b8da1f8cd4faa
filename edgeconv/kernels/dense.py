"""Dense layers and direct convolutions: products of rows with packed weights, in one fixed order.

Weights lie in blocks of `BLOCK` outputs, as a tile reads them; the last block is filled up with
zeros. A block is one run of memory:

* float32: (1 + taps * K, BLOCK): the biases, then the weights of each k.
* 8 bits: the biases and the scales as float32, then int8 (taps * K, BLOCK).

A dense layer has one tap. A convolution has one for each row of its kernel, with K = columns *
channels of it, which are one run of its input.

What stands before a layer and behind it, a norm, a function, a sum, is part of its call: kernels
leave little of Python in the caches, so that each further step of that is slow.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
from typing import Any

import numpy as np
from numba import carray, float32, from_dtype, int8, int64, prange, types, void
from numba.extending import overload
from numpy.typing import NDArray

from edgeconv.kernels import OPTIONS, compiled, entry, inlined
from edgeconv.kernels.pointwise import IDENTITY, add_to, apply, norm
from edgeconv.kernels.ring import BUSY, GATE, THREADS, Array
from edgeconv.kernels.vectors import (
    BLOCK,
    LANES,
    enter_usual_mode,
    exchange,
    fused,
    give_up_lock,
    make_product,
    pointer,
    return_to_mode,
    take_lock,
)

# Multiply-adds from which a call lets other Python threads run: 1 or 2 ms on a PC. Beside two busy
# threads, each such call may wait 10 ms to have the lock back.
LONG = 1 << 26

# Multiply-adds from which threads share a call: some 20 us on a PC, four times what a loop costs.
SHARED = 1 << 20

RUN = 1 << 25  # bytes of memory that weights are cut from

# As many accumulators as there are registers for: 16 in AVX2, 32 in NEON (two to a vector) and
# AVX-512. Sums of one frame wait for each other's roundings: those of four blocks fill the time.
MOST = 8 if LANES == 16 else 6
# Frames from which a tile keeps 8-bit weights as float32, for others. Where there are none, it is
# a tenth slower on ARM for it; further tiles would take half a second to compile.
KEEPING = 5
tile_8, tile_7, tile_6, tile_5 = (make_product(n, keeps=True) for n in (8, 7, 6, KEEPING))
tile_4, tile_3, tile_2, tile_1 = (make_product(n) for n in (4, 3, 2, 1))
tile_1_of_4_blocks = make_product(1, n_blocks=4)

STEPS = np.dtype(
    [
        ("taps", np.int64),
        ("stride", np.int64),  # from the line of an output's first tap to that of the next output
        ("norm", np.int64),  # of each row of x before all else, by `norm`
        ("eps", np.float32),
        ("partial", np.int64),
        ("function", np.int64),  # of the products, by `apply`
        ("low", np.float32),
        ("high", np.float32),
        ("factor", np.float32),  # of that, before something is added
    ]
)


@compiled
def address_of(array):
    """Return the address of an array's first element."""
    return int64(array.ctypes.data)


@compiled
def multiply(y, start, w, beside, x, count, like):
    """Write the products of rows with one block; operands as in `make_product`, but two.

    The last of `y` is how many rows there are, the second of `beside` the size of what comes next.
    Each tile has a part of it fetched: asked for at once by the first one, weights of a whole model
    made products of 16 rows half as fast.
    """
    n = y[2]
    tiles = -(-n // MOST)
    step = -(-beside[1] // max(1, tiles * count[0] * count[1]))  # of that, for each k of a tile
    done = 0
    for tile in range(tiles, 0, -1):
        rows = -(-(n - done) // tile)  # as equal as can be: the smaller a tile, the slower
        out, place = (y[0] + done * y[1], y[1]), (x[0] + done * x[1], x[1], x[2])
        own = beside[0] + (tiles - tile) * beside[1] // tiles, step, beside[2], beside[3]
        done += rows
        if MOST == 8 and rows == 8:
            tile_8(out, start, w, own, place, count, like)
        elif MOST == 8 and rows == 7:
            tile_7(out, start, w, own, place, count, like)
        elif rows == 6:
            tile_6(out, start, w, own, place, count, like)
        elif rows == 5:
            tile_5(out, start, w, own, place, count, like)
        elif rows == 4:
            tile_4(out, start, w, own, place, count, like)
        elif rows == 3:
            tile_3(out, start, w, own, place, count, like)
        elif rows == 2:
            tile_2(out, start, w, own, place, count, like)
        else:
            tile_1(out, start, w, own, place, count, like)


def multiply_once(y, start, w, beside, x, count, like):
    """Do what `multiply` does; 8-bit weights become float32 in the tile of the first rows alone.

    `beside` ends with where these go, and with how many lines of x came before.
    """
    raise NotImplementedError  # compiled code calls one of those below


def _multiply_8_bits(y, start, w, beside, x, count, like):
    n, kept, tiles = y[2], beside[2], max(1, -(-y[2] // MOST))
    first, part = n if tiles == 1 else max(KEEPING, -(-n // tiles)), beside[1] // tiles
    if tiles > 1 and beside[3] > 0:
        first, part = 0, 0  # a line before has kept them
    own = beside[0], part, kept, 4 * BLOCK if tiles > 1 else 0
    multiply((y[0], y[1], first), start, w, own, x, count, like)
    out, rows = (y[0] + first * y[1], y[1], n - first), (x[0] + first * x[1], x[1], x[2])
    own = beside[0] + part, beside[1] - part, 0, 0
    multiply(out, start, (kept, 4 * BLOCK, 0), own, rows, count, carray(pointer(kept), 1))


@overload(multiply_once, jit_options=OPTIONS)
def _multiply_once(y, start, w, beside, x, count, like):
    return multiply.py_func if like.dtype == float32 else _multiply_8_bits


@inlined
def _multiply_blocks(x, y, w, count, blocks, memory):
    """Write the sums of some blocks for all rows of all lines, x (address, line, row, tap).

    Those of 8-bit weights are yet to be scaled. `memory` has rows of a block: zeros, what is left
    of y where that is narrower, and weights that became float32.
    """
    n_lines, n_rows, n_outputs = y.shape
    eight_bits = w.itemsize == 1
    w_row, block_size = BLOCK * w.itemsize, w.strides[0]
    block, last = blocks
    while block < last:
        zeros = address_of(memory)
        rest, floats = zeros + 4 * BLOCK, zeros + 4 * BLOCK * (1 + n_rows)
        head = address_of(w) + block * block_size
        start = (zeros, 0) if eight_bits else (head, block_size)
        own = head + 4 * BLOCK * (2 if eight_bits else 1), w_row, block_size
        width = min(BLOCK, n_outputs - block * BLOCK)
        at_once = 4 if n_rows == 1 and block + 4 <= min(last, n_outputs // BLOCK) else 1
        share = at_once * block_size // max(1, n_lines)  # of the next blocks, for each line
        for line in range(n_lines):
            rows = x[0] + line * x[1], x[2], x[3]
            out = address_of(y) + line * y.strides[0] + block * 4 * BLOCK, y.strides[1]
            if width < BLOCK:
                out = rest, 4 * BLOCK
            step = share if at_once == 1 else share // max(1, count[0] * count[1])
            beside = head + at_once * block_size + line * share, step, floats, line
            if at_once == 4:
                tile_1_of_4_blocks(out, start, own, beside, rows, count, w)
            else:
                multiply_once((out[0], out[1], n_rows), start, own, beside, rows, count, w)
            for i in range(n_rows if width < BLOCK else 0):
                for j in range(width):
                    y[line, i, block * BLOCK + j] = memory[1 + i, j]
        block += at_once


@inlined
def _scale(numbers, w, blocks):
    """Multiply sums of 8-bit weights of some blocks by their scales, and add the biases."""
    for block in range(blocks[0], blocks[1]):
        head = carray(pointer(address_of(w) + block * w.strides[0]), 2 * BLOCK)
        place = (block - blocks[0]) * BLOCK
        for i in range(min(BLOCK, len(numbers) - place)):
            numbers[place + i] = fused(numbers[place + i], head[BLOCK + i], head[i])


@compiled
def _row(array, line, row, first, last):
    """Return some columns of a row of (lines, rows, columns), a run of memory."""
    at = address_of(array) + line * array.strides[0] + row * array.strides[1] + 4 * first
    return carray(pointer(at), last - first)


@compiled
def _normed(x, affine, step):
    """Return norms of the rows of the only line of x, none without factors and offsets."""
    y = np.empty((x.shape[1], affine.shape[1]), np.float32)
    if affine.size:
        for i in range(len(y)):
            own = _row(x, 0, i, 0, x.shape[2])
            norm(own, y[i], affine, step.norm, step.eps, step.partial)
    return y


@compiled
def _run_blocks(x, normed, y, w, added, step, share):
    """Write a share (part, parts) of all blocks, and apply to it what stands behind the layer.

    An argument lives until a call is over, and so does what its address leads to: inlined, `normed`
    would be freed after its last mention.
    """
    part, parts = share
    blocks = len(w) * part // parts, len(w) * (part + 1) // parts
    count, eight_bits, n_rows = (step.taps, x.shape[2]), w.itemsize == 1, y.shape[1]
    n_kept = count[0] * count[1] if eight_bits and n_rows > MOST else 1
    memory = np.empty((1 + n_rows + n_kept, BLOCK), np.float32)
    for i in range(BLOCK):
        memory[0, i] = 0
    # Not before all memory is there, as an error must be raised under the lock.
    is_long = parts == 1 and y.size * count[0] * count[1] >= LONG
    thread = give_up_lock() if is_long else 0
    at = address_of(x), x.strides[0], x.strides[1], x.strides[0] // step.stride
    if normed.size:
        at = address_of(normed), 0, normed.strides[0], 0
    _multiply_blocks(at, y, w, count, blocks, memory)
    first, last = blocks[0] * BLOCK, min(blocks[1] * BLOCK, y.shape[2])
    for line in range(y.shape[0]):
        for i in range(n_rows):
            numbers = _row(y, line, i, first, last)
            if eight_bits:
                _scale(numbers, w, blocks)
            if step.function != IDENTITY:
                apply(numbers, step.function, step.low, step.high)
            if added.size:
                add_to(numbers, step.factor, added[i, first:last])
    if is_long:
        take_lock(thread)


def dense(x, y, w, affine, added, steps):
    """Write y (lines, rows, N): products of x (lines, rows, K), and what `steps` says.

    affine (2, K) are a norm's factors and offsets, added (rows, N) is a term; or both are empty.
    """
    mode = enter_usual_mode()
    _run_blocks(x, _normed(x, affine, steps[0]), y, w, added, steps[0], (0, 1))
    return_to_mode(mode)


def dense_in_parallel(x, y, w, affine, added, steps, threads):
    """Do what `dense` does, on `threads` (gate, how many); BUSY if there is another such loop."""
    gate, parts = threads
    mode = enter_usual_mode()
    normed = _normed(x, affine, steps[0])
    return_to_mode(mode)
    if exchange(int64(gate.ctypes.data), 0, 1) != 0:
        return BUSY
    for part in prange(parts):
        mode = enter_usual_mode()
        _run_blocks(x, normed, y, w, added, steps[0], (part, parts))
        return_to_mode(mode)
    exchange(int64(gate.ctypes.data), 1, 0)
    return 0


_ROWS = types.Array(float32, 3, "A", readonly=True), types.Array(float32, 3, "A")
_WEIGHTS = [types.Array(kind, 2, "C", readonly=True) for kind in (float32, int8)]
_READ = types.Array(float32, 2, "C", readonly=True)
_BESIDE = _READ, _READ, types.Array(from_dtype(STEPS), 1, "C", readonly=True)


@functools.cache
def kernel(eight_bits):
    """Return `dense` for weights of 32 or 8 bits."""
    return entry(dense, void(*_ROWS, _WEIGHTS[eight_bits], *_BESIDE))


@functools.cache
def parallel_kernel(eight_bits):
    """Return `dense_in_parallel` for weights of 32 or 8 bits."""
    signature = int64(*_ROWS, _WEIGHTS[eight_bits], *_BESIDE, THREADS)
    return entry(dense_in_parallel, signature, parallel=True, nogil=True)


def in_parallel(eight_bits: bool, work: int, threads: int, operands: tuple[Any, ...]) -> bool:
    """Share a call of so many multiply-adds if that pays; tell whether it is done."""
    kernel = parallel_kernel(eight_bits)  # compiled in any case: a later call may be worth it
    return work >= SHARED and bool(kernel(*operands, (GATE, threads)) != BUSY)


# --- Memory in this layout ---


_rooms: list[NDArray[np.int8]] = []  # what is left of the latest runs, one for each thread at most


def _memory(n_blocks: int, block_size: int) -> NDArray[np.int8]:
    """
    Return zeros, int8 (blocks, bytes), cut from large runs of memory.

    All weights are read for each chunk: from huge pages, 4 frames are 3 % faster. And malloc, which
    a file's reader uses meanwhile, would keep holes between them. A run is freed with the last of
    the weights in it. There is no lock, which a forked process might find taken.
    """
    n_bytes = n_blocks * block_size
    try:
        room = _rooms.pop()
    except IndexError:
        room = np.empty(0, np.int8)
    run = room
    if len(room) < n_bytes:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        pages = mmap.mmap(-1, max(RUN, n_bytes), flags=flags)
        if mmap.PAGESIZE == 4096:  # where the huge ones have 2 MB, and not 32
            with contextlib.suppress(OSError):  # of a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        run = np.frombuffer(pages, np.int8)
    memory, rest = run[:n_bytes], run[-(-n_bytes // 64) * 64 :]
    _rooms.append(rest if run is room else max(room, rest, key=len))
    return memory.reshape(n_blocks, block_size)


def pack(weight: NDArray[Any], bias: Array, scale: Array | None = None) -> NDArray[Any]:
    """Pack weights (N, taps * K), float32, or int8 with scales (N,), and biases (N,)."""
    n_outputs, n_inputs = weight.shape
    n_blocks = -(-n_outputs // BLOCK)
    heads = [bias] if scale is None else [bias, scale]
    size = 4 * BLOCK * len(heads)
    packed = _memory(n_blocks, size + BLOCK * n_inputs * weight.itemsize)
    for block, memory in enumerate(packed):
        chosen = slice(block * BLOCK, min((block + 1) * BLOCK, n_outputs))
        width = chosen.stop - chosen.start
        for row, head in zip(memory[:size].view(np.float32).reshape(-1, BLOCK), heads, strict=True):
            row[:width] = head[chosen]
        rows = memory[size:].view(weight.dtype).reshape(n_inputs, BLOCK)
        rows[:, :width] = weight[chosen].T
    packed = packed.view(weight.dtype)
    packed.flags.writeable = False
    return packed
