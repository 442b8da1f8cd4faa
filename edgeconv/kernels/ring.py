"""The depthwise convolution: frames enter a ring, and their convolution leaves it.

All of it is one sum, the tile: taps of one output in ascending order, each a fused multiply-add.
Whatever the cut of a signal, its outputs are these sums of the same frames, bit for bit.

Memory is float32 in blocks of `LANES` neighbouring channels, one vector; the last block ends at
the last channel and may overlap its neighbour. There are at least `LANES` channels.

* taps (blocks, 1 + K, LANES): the bias, then tap 0 to K - 1.
* state (B, n): for each row of a batch a header of 64-bit numbers, then its ring (blocks, 2 * N,
  LANES) with N = K - 1 + PASS. Frame i lies in rows i mod N and N + i mod N: any N frames in a row
  are one run of memory. Rows of (T, C), powers of two apart, would compete for sets of the cache.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numba import float32, get_num_threads, int64, prange, types
from numpy.typing import NDArray

from edgeconv.kernels import compiled, entry, inlined
from edgeconv.kernels.vectors import (
    LANES,
    VECTOR,
    enter_usual_mode,
    exchange,
    give_up_lock,
    make_tile,
    return_to_mode,
    store_twice,
    take_lock,
)

Array: TypeAlias = NDArray[np.float32]
PASS = 24  # frames that enter the ring together; a pass reads all taps once
HEADER = 16  # float32 before a row's ring, a cache line; as 64-bit numbers:
# whether the stream is in use (the first row's), how many frames came, and what never changes.
IN_USE, FRAMES_IN, CHANNELS, LATENCY, KERNEL_SIZE, DIMENSIONS, TAPS = range(7)
LONG = 1 << 20  # multiply-adds from which a call lets other threads run: some 50 us on a PC
# What `push` answers if nothing has changed; a `raise` in compiled code leaks (numba#10783).
REFUSED, BUSY = -1, -2
# Of parallel loops; compiled code alone closes it: no signal handler leaves it closed.
GATE = np.zeros(1, np.int64)
THREADS = types.Tuple((types.Array(int64, 1, "C"), int64))  # the gate, and how many of them
_ALL = np.empty(0, np.int64)
_ALL.flags.writeable = False

tile_8, tile_4 = make_tile(8, 1, group=4), make_tile(4, 1, group=4)
# Sums of one frame wait for each other's roundings: those of four blocks fill the time.
tile_1_of_4_blocks, tile_1 = make_tile(1, 4, group=1), make_tile(1, 1, group=1)


@compiled
def _outputs(y, frame, n, taps, rows, K):
    """Write `n` outputs of a block, `frame` bytes apart, whose windows begin at `rows`."""
    done = 0  # the last tile ends with the last frame, and may compute some of them once more
    while n - done > 4 and n >= 8:
        done = min(done, n - 8)
        tile_8(y + done * frame, frame, taps, rows + done * VECTOR, 0, K)
        done += 8
    while done < n and n >= 4:
        done = min(done, n - 4)
        tile_4(y + done * frame, frame, taps, rows + done * VECTOR, 0, K)
        done += 4
    while done < n:
        tile_1(y + done * frame, 0, taps, rows + done * VECTOR, 0, K)
        done += 1


@compiled
def _push_blocks(x, n_frames, y, ring, header, first_block, last_block):
    """Push frames into some blocks of a ring; write the outputs that are now final.

    Output t needs the frames up to t + latency: the first `latency` frames only fill the ring, and
    from then on the window of an output is the run of K rows that ends with the newest frame.
    """
    t, channels, K, taps = header[FRAMES_IN], header[CHANNELS], header[KERNEL_SIZE], header[TAPS]
    N = K - 1 + PASS
    frame, block_taps, block_ring = 4 * channels, (1 + K) * VECTOR, 2 * N * VECTOR
    silent = min(n_frames, max(0, header[LATENCY] - t))
    done = 0
    while done < n_frames:
        first, last = max(done, silent), min(done + PASS, n_frames)
        position = (t + done) % N
        for i in range(done, last):
            slot = ring + position * VECTOR
            position = 0 if position == N - 1 else position + 1
            for block in range(first_block, last_block):
                at = x + i * frame + 4 * min(block * LANES, channels - LANES)
                store_twice(at, slot + block * block_ring, N * VECTOR)
        window = ring + (t + first - (K - 1)) % N * VECTOR
        out = y + (first - silent) * frame
        block = first_block
        while last - first == 1 and block + 4 <= min(last_block, channels // LANES):
            own_taps, rows = taps + block * block_taps, window + block * block_ring
            tile_1_of_4_blocks(out + block * VECTOR, 0, own_taps, rows, block_ring, K)
            block += 4
        for rest in range(block, last_block):
            at = out + 4 * min(rest * LANES, channels - LANES)
            rows = window + rest * block_ring
            _outputs(at, frame, last - first, taps + rest * block_taps, rows, K)
        done = last


@inlined
def _plan(headers, n_frames, room, lengths, is_frame):
    """Return the most outputs of a row; REFUSED if rows differ, or `room` is not what they take."""
    most = 0
    for row in range(len(headers)):
        length = lengths[row] if lengths.size else n_frames
        ready = headers[row, FRAMES_IN] - headers[row, LATENCY]
        count = max(0, ready + length) - max(0, ready)
        if lengths.size == 0 and row > 0 and count != most:
            return REFUSED
        most = max(most, count)
    return most if most == room or (is_frame and most == 0) else REFUSED


@inlined
def _push(x, out, state, lengths):
    """Push a chunk (B, T, C), or the first `lengths[b]` frames of row b; all if that is empty.

    Returns how many outputs a row has at most; REFUSED if shapes do not fit or arrays overlap, and
    BUSY if another thread is in here, both with nothing changed. A frame, (C,) or (B, C), always
    brings room for an output. The counters change last.
    """
    headers = state.view(np.int64)
    batch_size, channels = len(state), headers[0, CHANNELS]
    room, n_frames = out.size // (batch_size * channels), x.size // (batch_size * channels)
    x_at, y_at, at = int64(x.ctypes.data), int64(out.ctypes.data), int64(state.ctypes.data)
    is_frame = x.ndim == headers[0, DIMENSIONS]
    if x.shape[-1] != channels or out.shape[-1] != channels or (is_frame and n_frames != 1):
        return REFUSED
    if x.size != n_frames * batch_size * channels or out.size != room * batch_size * channels:
        return REFUSED
    if x.ndim == 3 and (len(x) != batch_size or len(out) != batch_size):
        return REFUSED
    if x.size and out.size and x_at < y_at + 4 * out.size and y_at < x_at + 4 * x.size:
        return REFUSED
    if exchange(at, 0, 1) != 0:
        return BUSY
    most = _plan(headers, n_frames, room, lengths, is_frame)
    if most >= 0:
        is_long = x.size * headers[0, KERNEL_SIZE] >= LONG
        thread = give_up_lock() if is_long else 0
        mode = enter_usual_mode()
        for row in range(batch_size):
            length = lengths[row] if lengths.size else n_frames
            source, target = x_at + 4 * row * n_frames * channels, y_at + 4 * row * room * channels
            ring = at + 4 * (row * state.shape[1] + HEADER)
            _push_blocks(source, length, target, ring, headers[row], 0, -(-channels // LANES))
        for row in range(batch_size):
            headers[row, FRAMES_IN] += lengths[row] if lengths.size else n_frames
        return_to_mode(mode)
        if is_long:
            take_lock(thread)
    exchange(at, 1, 0)
    return most


def push(x, out, state):
    """Push all frames of a chunk; see `_push`. One array less to look at is 60 ns less of Numba."""
    return _push(x, out, state, _ALL)


def push_rows(x, out, state, lengths):
    """Push the first `lengths[b]` frames of each row of a batch."""
    return _push(x, out, state, lengths)


def push_in_parallel(x, y, state, threads):
    """Push the frames (T, C) of a whole signal; `threads` (gate, how many) share its blocks.

    One such loop at a time in a process: a second one aborts it where Numba's threading layer is
    `workqueue`. BUSY if there is one.
    """
    gate, parts = threads
    if exchange(int64(gate.ctypes.data), 0, 1) != 0:
        return BUSY
    header = state.view(np.int64)[0]
    n_blocks, ring = -(-header[CHANNELS] // LANES), int64(state.ctypes.data) + 4 * HEADER
    for part in prange(parts):
        mode = enter_usual_mode()
        first, last = n_blocks * part // parts, n_blocks * (part + 1) // parts
        at = int64(x.ctypes.data), int64(y.ctypes.data)
        _push_blocks(at[0], len(x), at[1], ring, header, first, last)
        return_to_mode(mode)
    header[FRAMES_IN] += len(x)
    exchange(int64(gate.ctypes.data), 1, 0)
    return 0


def _floats(dimensions: int, readonly: bool = False) -> Any:
    return types.Array(float32, dimensions, "C", readonly)


_STATE, _LENGTHS = _floats(2), types.Array(int64, 1, "C", readonly=True)


@functools.cache
def kernel(dimensions: int) -> Any:
    """Return `push` for arrays of so many dimensions, compiled."""
    return entry(push, int64(_floats(dimensions, readonly=True), _floats(dimensions), _STATE))


@functools.cache
def rows_kernel() -> Any:
    """Return `push_rows`, compiled."""
    return entry(push_rows, int64(_floats(3, readonly=True), _floats(3), _STATE, _LENGTHS))


@functools.cache
def parallel_kernel() -> Any:
    """Return `push_in_parallel`, compiled."""
    signature = int64(_floats(2, readonly=True), _floats(2), _STATE, THREADS)
    return entry(push_in_parallel, signature, parallel=True, nogil=True)


def in_parallel(x: Array, y: Array, state: Array) -> bool:
    """Push frames on as many threads as Numba is to use; tell whether that could be done."""
    threads = get_num_threads()
    return threads > 1 and bool(parallel_kernel()(x, y, state, (GATE, threads)) != BUSY)


# --- Memory in this layout ---


def zeros(*shape: int) -> Array:
    """Return float32 zeros that begin on a cache line."""
    size = math.prod(shape)
    memory = np.zeros(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape)


def lanes(channels: int) -> NDArray[np.int64]:
    """Return the channel of each lane of each block, (blocks, LANES)."""
    first = np.minimum(np.arange(0, channels, LANES), channels - LANES)
    return first[:, None] + np.arange(LANES)


def pack_taps(weight: Array, bias: Array) -> Array:
    """Pack a weight (C, 1, K) and a bias (C,) into taps."""
    at = lanes(len(bias))
    taps = zeros(len(at), 1 + weight.shape[2], LANES)
    taps[:, 0], taps[:, 1:] = bias[at], weight[at, 0].swapaxes(1, 2)
    taps.flags.writeable = False
    return taps


def new_state(batch_size: int, channels: int, latency: int, dimensions: int, taps: Array) -> Array:
    """Return the state of new signals, whose frames have so many dimensions; it needs its taps."""
    kernel_size = taps.shape[1] - 1
    state = zeros(batch_size, HEADER + len(taps) * 2 * (kernel_size - 1 + PASS) * LANES)
    numbers = channels, latency, kernel_size, dimensions, taps.ctypes.data
    state.view(np.int64)[:, CHANNELS : TAPS + 1] = numbers
    return state


def read(state: Array) -> Array:
    """Return the last K - 1 frames of every row of a state, (B, C, K - 1)."""
    channels, _, kernel_size = state.view(np.int64)[0, CHANNELS : KERNEL_SIZE + 1].tolist()
    context = kernel_size - 1
    frames = np.empty((len(state), channels, context), np.float32)
    for own, (ring, start) in zip(frames, _rings(state, context), strict=True):
        latest = ring[:, start : start + context].swapaxes(1, 2).reshape(len(ring) * LANES, context)
        own[: len(latest) - LANES], own[-LANES:] = latest[:-LANES], latest[-LANES:]
    return frames


def write(state: Array, frames: Array) -> None:
    """Make frames (B, C, K - 1) the last ones of every row of a state."""
    at, context = lanes(frames.shape[1]), frames.shape[2]
    for own, (ring, start) in zip(frames, _rings(state, context), strict=True):
        slots = np.arange(start, start + context) % (context + PASS)
        ring[:, slots] = ring[:, slots + context + PASS] = own[at].swapaxes(1, 2)


def _rings(state: Array, context: int) -> Iterator[tuple[Array, int]]:
    """Yield the ring of each row, and where its last `context` frames begin."""
    N = context + PASS
    for row, t in zip(state, state.view(np.int64)[:, FRAMES_IN].tolist(), strict=True):
        yield row[HEADER:].reshape(-1, 2 * N, LANES), (t - context) % N
