"""Every compiled function of the library.

There is one convolution, the tile: the sum over taps of one or several outputs of a channel block,
one rounding for each tap, in ascending order. `_convolve` pushes frames into a ring and has tiles
write the outputs that are now final, be it a frame, a chunk or a whole signal. `_convolve_frame`
does so for streams of single frames, most of whose taps it adds ahead, in the same order. So
offline and streaming agree bit for bit by construction.

Layouts, all float32, every row of a block on a boundary of its own size:

* A channel block is `LANES` neighbouring channels: one vector. The last block ends at the last
  channel and so overlaps its neighbour where `channels` is no multiple of `LANES`; both compute
  the same bits, and no path needs a narrow vector. Fewer channels than that leave lanes unused.
* taps (blocks, 1 + K, LANES): the bias, then tap 0 to K - 1.
* state (B, HEADER + blocks * (2 * N + SPARE_ROWS) * LANES) with N = K - 1 + PASS: for each row of
  the batch a header, then the ring (blocks, 2 * N + SPARE_ROWS, LANES). Frame i lies in row i mod
  N and again in row N + i mod N, so that N consecutive frames are one run of rows wherever they
  begin. The spare rows follow. Kernels write the counters in the header last, and leave what is
  no counter zero.

Why packed: the rows of (T, C) arrays are a power of two apart for the usual channel counts, and
then compete for the same few sets of the cache.
"""

from __future__ import annotations

import llvmlite
import numba
import numpy as np
from numba import prange

from edgeconv.compiling import compiled, compiled_for
from edgeconv.vectors import (
    AHEAD,
    CPU,
    LANES,
    VECTOR,
    address_of,
    copy_bytes,
    copy_float,
    copy_lanes,
    exchange,
    store_lanes_twice,
    store_twice,
    tile_1_frame,
    tile_4_frames,
    tile_8_frames,
    tile_ahead,
)

# Frames that enter the ring together. A pass reads all taps once; the ring grows with it.
PASS = 24
# After a block's ring: a row that stays zero, and the sums that were begun.
SPARE_ROWS = 1 + AHEAD
# Before a row's ring lies a cache line of 64-bit numbers: whether the stream is in use (the first
# row's), how many frames the row took, and the first of them whose sums may be begun ahead.
HEADER = 16
FRAMES_IN, AHEAD_SINCE = 1, 2

# Fewer frames than the tiles for several take are convolved one by one.
FEW = 4

# What a kernel answers instead of the number of output frames. A `raise` in compiled code leaks
# memory (numba#10783), and Python knows better how to say what is wrong.
REFUSED = -1
IN_USE = -2
GATE_CLOSED = -3


# --- The convolution ---


@compiled
def _channel(block, channels):
    """Return how many bytes into a frame a block begins."""
    return 4 * max(0, min(block * LANES, channels - LANES))


@compiled
def _pack(x, row, mirror, stride, channels, first_block, last_block):
    """Copy blocks of the frame at `x` into both their rows."""
    whole = min(last_block, channels // LANES)
    for block in range(first_block, whole):
        store_twice(x + block * VECTOR, row + block * stride, mirror)
    for block in range(max(first_block, whole), last_block):
        if channels >= LANES:
            store_twice(x + 4 * (channels - LANES), row + block * stride, mirror)
        else:
            store_lanes_twice(x, row + block * stride, mirror, channels)


@compiled
def _outputs(y, frame, n, taps, rows, K):
    """Write `n` frames of output of a block, `frame` bytes apart, whose windows begin at `rows`."""
    # The last tile ends with the last frame, and may compute some frames once more.
    done = 0
    while n - done > 4 and n >= 8:
        done = min(done, n - 8)
        tile_8_frames(y + done * frame, frame, taps, taps + VECTOR, rows + done * VECTOR, K)
        done += 8
    while done < n and n >= 4:
        done = min(done, n - 4)
        tile_4_frames(y + done * frame, frame, taps, taps + VECTOR, rows + done * VECTOR, K)
        done += 4
    while done < n:
        tile_1_frame(y + done * frame, 0, taps, taps + VECTOR, rows + done * VECTOR, K)
        done += 1


@compiled
def _narrow_outputs(y, n, later, taps, rows, channels, begun, K):
    """Do as `_outputs` does for fewer channels than a vector has; `later` frames will follow."""
    # Whole vectors, as long as they end within the output: each frame replaces what the one before
    # wrote beyond its own channels. The rest, at most 7 frames of 2 channels, makes a detour.
    whole = min(n, max(0, n + later - (LANES - 1) // channels))
    _outputs(y, 4 * channels, whole, taps, rows, K)
    _outputs(begun, VECTOR, n - whole, taps, rows + whole * VECTOR, K)
    for i in range(n - whole):
        copy_lanes(begun + i * VECTOR, y + 4 * (whole + i) * channels, channels)


@compiled
def _convolve(
    x, n_frames, padding, y, taps, ring, frames_in, K, channels, latency, first_block, last_block
):
    """Push `n_frames` into one ring, then `padding` zeros; write the outputs that are now final.

    Output t needs the frames up to t + latency: the first `latency` frames of a signal only fill
    the ring, and from then on the window of output t is the run of K rows that ends there.
    """
    N = K - 1 + PASS
    stride = (2 * N + SPARE_ROWS) * VECTOR
    zeros = ring + 2 * N * VECTOR
    total = n_frames + padding
    silent = min(total, max(0, latency - frames_in))
    done = 0
    while done < total:
        first, last = max(done, silent), min(done + PASS, total)
        position = (frames_in + done) % N
        for i in range(done, last):
            row = ring + position * VECTOR
            position = 0 if position == N - 1 else position + 1
            if i < n_frames:
                frame = x + 4 * i * channels
                _pack(frame, row, N * VECTOR, stride, channels, first_block, last_block)
            else:
                for block in range(first_block, last_block):
                    store_twice(zeros + block * stride, row + block * stride, N * VECTOR)
        window = ring + (frames_in + first - (K - 1)) % N * VECTOR
        for block in range(first_block, last_block):
            out = y + 4 * (first - silent) * channels + _channel(block, channels)
            tap, rows = taps + block * (1 + K) * VECTOR, window + block * stride
            if channels >= LANES:
                _outputs(out, 4 * channels, last - first, tap, rows, K)
            else:
                _narrow_outputs(
                    out, last - first, total - last, tap, rows, channels, zeros + VECTOR, K
                )
        done = last


@compiled
def _convolve_frame(x, y, taps, ring, frames_in, since, K, channels, n_blocks):
    """Do as `_convolve` does for one frame of a signal that comes frame by frame.

    Every AHEAD frames, a block begins the sums of as many outputs together, as far as their frames
    are known; the taps of later frames are added as these come. So most taps are read once for all
    of them. Blocks take turns, so that frames cost nearly the same. `since` is the first of the
    frames that came one by one; a block whose turn was before takes all taps.
    """
    N = K - 1 + PASS
    slot = frames_in % N * VECTOR
    window = (frames_in - (K - 1)) % N * VECTOR
    for block in range(n_blocks):
        at = _channel(block, channels)
        tap = taps + block * (1 + K) * VECTOR
        row = ring + block * (2 * N + SPARE_ROWS) * VECTOR
        begun = row + (2 * N + 1) * VECTOR
        store_twice(x + at, row + slot, N * VECTOR)
        age = (frames_in + block) % AHEAD
        if age == 0:
            tile_ahead(begun, VECTOR, tap, tap + VECTOR, row + window, K)
        if frames_in - age >= since:
            start, added = begun + age * VECTOR, K - age
        else:
            start, added = tap, 0
        rest = added * VECTOR
        tile_1_frame(y + at, 0, start, tap + VECTOR + rest, row + window + rest, K - added)


@compiled
def _claim(state):
    """Mark a stream as in use; tell whether it was free. Its first 64 bits say so."""
    return exchange(state, 0, 1) == 0


@compiled
def _release(state):
    """Mark a stream as free, after all that was written to it."""
    exchange(state, 1, 0)


@compiled
def _n_outputs(frames_in, n_frames, latency):
    """Return how many outputs `n_frames` more frames make final."""
    return max(0, frames_in + n_frames - latency) - max(0, frames_in - latency)


@compiled
def _is_plain(array):
    """Tell whether an array is aligned and C-contiguous, as NumPy understands it."""
    stride = 4
    for axis in range(array.ndim - 1, -1, -1):
        if array.shape[axis] != 1 and array.strides[axis] != stride:
            return array.size == 0
        stride *= array.shape[axis]
    return array.size == 0 or address_of(array) % 4 == 0


@compiled
def _has_shape(array, n_frames, batch_size, channels):
    """Tell whether a plain array holds `n_frames` frames for each row."""
    return (
        array.shape[-1] == channels
        and array.size == batch_size * n_frames * channels
        and (array.ndim < 3 or array.shape[0] == batch_size)
        and _is_plain(array)
    )


@compiled
def _fit(x, n_frames, y, n_outputs, batch_size, channels):
    """Tell whether both arrays are as they must be and share no memory."""
    if not _has_shape(x, n_frames, batch_size, channels):
        return False
    if not _has_shape(y, n_outputs, batch_size, channels):
        return False
    x_at, y_at = address_of(x), address_of(y)
    return x.size == 0 or y.size == 0 or x_at + 4 * x.size <= y_at or y_at + 4 * y.size <= x_at


@compiled
def _plan(x, out, state, channels, latency, padding, lengths):
    """Return the numbers of input and output frames of the arrays, the latter REFUSED if wrong.

    If it is not, the stream is in use from here on.
    """
    batch_size = state.shape[0]
    n_frames = x.size // (batch_size * channels)
    n_outputs = out.size // (batch_size * channels)
    if not _fit(x, n_frames, out, n_outputs, batch_size, channels):
        return n_frames, REFUSED
    if not _claim(state):
        return n_frames, IN_USE
    header = state.view(np.int64)
    fits = True
    for row in range(batch_size):
        frames_in = header[row, FRAMES_IN]
        if lengths.size == 0:
            fits &= frames_in == header[0, FRAMES_IN]
            fits &= _n_outputs(frames_in, n_frames + padding, latency) == n_outputs
        else:
            fits &= 0 <= lengths[row] <= n_frames
            fits &= _n_outputs(frames_in, lengths[row] + padding, latency) <= n_outputs
    if not fits:
        _release(state)
        return n_frames, REFUSED
    return n_frames, n_outputs


@compiled
def _convolve_row(
    x, n_frames, padding, y, taps, state, row, channels, latency, first_block, last_block
):
    """Push frames into the ring of a row, and write the outputs that are now final."""
    header = state.view(np.int64)
    ring = address_of(state) + 4 * (row * state.shape[1] + HEADER)
    frames_in = header[row, FRAMES_IN]
    K = taps.shape[1] - 1
    if (
        n_frames < FEW
        and frames_in >= latency
        and padding == 0
        and K > AHEAD
        and channels >= LANES
        and last_block - first_block == len(taps)
    ):
        since = header[row, AHEAD_SINCE]
        for i in range(n_frames):
            offset = 4 * i * channels
            _convolve_frame(
                x + offset, y + offset, address_of(taps), ring, frames_in + i, since, K, channels,
                len(taps),
            )  # fmt: skip
    else:
        header[row, AHEAD_SINCE] = frames_in + n_frames
        _convolve(
            x, n_frames, padding, y, address_of(taps), ring, frames_in, K, channels, latency,
            first_block, last_block,
        )  # fmt: skip


@compiled
def _process_row(
    x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding, lengths,
    first_block, last_block,
):  # fmt: skip
    """Push a row's part of a chunk; fill the rest of its output with zeros."""
    length = lengths[row] if lengths.size else n_frames
    y = address_of(out) + 4 * row * n_outputs * channels
    _convolve_row(
        address_of(x) + 4 * row * n_frames * channels, length, padding, y, taps, state, row,
        channels, latency, first_block, last_block,
    )  # fmt: skip
    written = _n_outputs(state.view(np.int64)[row, FRAMES_IN], length + padding, latency)
    zero = address_of(state) + 4 * (row * state.shape[1] + HEADER - 1)
    for i in range(written, n_outputs):
        for channel in range(first_block * LANES, min(last_block * LANES, channels)):
            copy_float(zero, y + 4 * (i * channels + channel))


@compiled
def _finish(state, n_frames, lengths):
    """Count the frames that were pushed into every row; the stream is not in use any more."""
    for row in range(len(state)):
        state.view(np.int64)[row, FRAMES_IN] += lengths[row] if lengths.size else n_frames
    _release(state)


# --- What Python calls ---
#
# `x` is (C,) or (B, C) for `step`, (T, C) or (B, T, C) for `process`; `out` likewise. Both return
# the number of output frames for each row, REFUSED or IN_USE, either with nothing changed.


@compiled_for()
def step(x, out, taps, state, channels, latency):
    """Push one frame into every row and write the output that is now final, if any."""
    n_rows = len(state)
    if not _fit(x, 1, out, 1, n_rows, channels):
        return REFUSED
    if not _claim(state):
        return IN_USE
    frames_in = state.view(np.int64)[:, FRAMES_IN]
    n_outputs = _n_outputs(frames_in[0], 1, latency)
    for row in range(1, n_rows):
        if _n_outputs(frames_in[row], 1, latency) != n_outputs:
            _release(state)
            return REFUSED
    for row in range(n_rows):
        offset = 4 * row * channels
        _convolve_row(
            address_of(x) + offset, 1, 0, address_of(out) + offset, taps, state, row, channels,
            latency, 0, len(taps),
        )  # fmt: skip
    for row in range(n_rows):
        frames_in[row] += 1
    _release(state)
    return n_outputs


@compiled_for()
def process(x, out, taps, state, channels, latency, padding, lengths):
    """Push a chunk, then `padding` frames of zeros, into every row.

    `lengths` says how many frames of the chunk each row gets, or is empty: then all of them, and
    every row must be at the same frame. Padding ends a signal: it is not counted, and the state is
    of no use afterwards.
    """
    n_frames, n_outputs = _plan(x, out, state, channels, latency, padding, lengths)
    if n_outputs >= 0:
        for row in range(state.shape[0]):
            _process_row(
                x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding,
                lengths, 0, taps.shape[0],
            )  # fmt: skip
        _finish(state, n_frames, lengths)
    return n_outputs


@compiled_for(parallel=True)
def process_in_parallel(x, out, taps, state, channels, latency, padding, lengths, parts, gate):
    """Do as `process` does, rows and so many parts of their blocks spread over Numba's threads.

    One such loop at a time in a process: while one runs, the gate is closed for others.
    """
    if exchange(gate, 0, 1) != 0:
        return GATE_CLOSED
    n_frames, n_outputs = _plan(x, out, state, channels, latency, padding, lengths)
    if n_outputs >= 0:
        n_blocks = taps.shape[0]
        parts = min(parts, n_blocks)
        for task in prange(state.shape[0] * parts):
            row, part = task // parts, task % parts
            _process_row(
                x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding,
                lengths, part * n_blocks // parts, (part + 1) * n_blocks // parts,
            )  # fmt: skip
        _finish(state, n_frames, lengths)
    exchange(gate, 1, 0)
    return n_outputs


@compiled_for()
def copy_rows(state, rows, copy, expected, inward):
    """Copy rows of a state to or from an array of as many rows, all but whether it is in use.

    Answers REFUSED if a row is not at the `expected` frame; -1 is any. Else as `step` does.
    """
    if not _claim(state):
        return IN_USE
    header = state.view(np.int64)
    fits = True
    for i in range(len(rows)):
        fits &= expected[i] == -1 or header[rows[i], FRAMES_IN] == expected[i]
    n_bytes = 4 * state.shape[1]
    for i in range(len(rows) if fits else 0):
        own = address_of(state) + rows[i] * n_bytes + 8
        other = address_of(copy) + i * n_bytes + 8
        if inward:
            copy_bytes(other, own, n_bytes - 8)
        else:
            copy_bytes(own, other, n_bytes - 8)
    _release(state)
    return 0 if fits else REFUSED


def environment() -> dict[str, str]:
    """Describe what the kernels are compiled for, and where the compiled code is kept."""
    return {
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "CPU": CPU,
        "vector width": f"{LANES} float32",
        "threads": str(numba.get_num_threads()),
        "cache": step(1).stats.cache_path or "",
    }
