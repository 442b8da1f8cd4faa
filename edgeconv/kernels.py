"""Every compiled function of the library.

There is one convolution, `_convolve`: it takes a row of the batch and a range of channel blocks,
pushes frames into the ring and writes the outputs that are now final. A single frame, a chunk and
a whole signal run through it, so offline and streaming agree bit for bit by construction.

Layouts, all float32, every row of a block on a boundary of its own size:

* A channel block is `LANES` neighbouring channels: one vector. The last block ends at the last
  channel and so overlaps its neighbour where `channels` is no multiple of `LANES`; both compute
  the same bits, and no path needs a narrow vector. Fewer channels than `LANES` repeat the last.
* taps (blocks, 1 + K, LANES): the bias, then tap 0 to K - 1.
* state (B, HEADER + blocks * (2 * N + SPARE_ROWS) * LANES) with N = K - 1 + PASS: for each row of
  the batch a header, then the ring (blocks, 2 * N + SPARE_ROWS, LANES). Frame i lies in row i mod
  N and again in row N + i mod N, so that N consecutive frames are one run of rows wherever they
  begin. The spare rows follow: one that stays zero, one of scratch. The header begins with the
  number of frames taken, an int64: the only other state. A kernel writes it last. The rest of
  the header stays zero.

Why packed: the rows of (T, C) arrays are a power of two apart for the usual channel counts, and
then compete for the same few sets of the cache.

All of them are in this file because Numba's cache notices a change in no other.
"""

from __future__ import annotations

import functools

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import int64, prange, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from edgeconv.compiling import compiled, compiled_for, n_threads

_, CPU, _FEATURES = cpu_target.target_context.codegen().magic_tuple()

# One 512-bit vector where the CPU has them, else 8 lanes: a tile's 8 accumulators, 4 taps and one
# row then take 26 of NEON's 32 registers (two to a vector) and 13 of AVX2's 16.
LANES = 16 if "+avx512f" in _FEATURES.split(",") else 8

# Frames that enter the ring together. A pass reads all taps once; the ring grows with it.
PASS = 24
# Outputs whose sums a stream of single frames begins together, as far as their frames are known.
AHEAD = 8
# After a block's ring: a row that stays zero, one of scratch, and the sums that were begun.
SPARE_ROWS = 2 + AHEAD
# Numbers before a row's ring, a cache line: whether the stream is in use (for the first row of
# the batch), how many frames the row took, and the first frame whose sums may have been begun.
HEADER = 16
BUSY, FRAMES_IN, AHEAD_SINCE = 0, 1, 2  # as int64

# What a kernel answers instead of the number of output frames. A `raise` in compiled code leaks
# memory (numba#10783), and Python knows better how to say what is wrong.
REFUSED = -1
IN_USE = -2


# --- Vectors ---
#
# LLVM guards short inner loops with overlap checks and keeps their accumulators in memory, so the
# vectors are spelled out here. Addresses and strides are integers and count bytes.

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
VECTOR = 4 * LANES


def _make_tile(n_frames, group, look_ahead=False):
    """Make the sum over `n_taps` taps of `n_frames` outputs of one block.

    Its accumulators stay in registers. It takes the taps in groups; for every group it loads each
    input row once and feeds it to every (tap, frame) pair that it belongs to. The taps of one
    output still come in ascending order, and each is a fused multiply-add, rounded once: the
    result is the same for every tile and on every CPU.

    Sums begin with the vector at `start`. One that looks ahead knows only the rows of its first
    output: the others lack 1, 2, ... taps at the end.
    """

    @intrinsic
    def tile(typing, y, y_stride, start, taps, rows, n_taps):
        def emit(context, builder, signature, args):
            y, y_stride, start, taps, rows, n_taps = args
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32"
            )
            number = functools.partial(ir.Constant, ir.IntType(64))

            def vector(address, index):
                first = builder.inttoptr(address, _VECTOR.as_pointer())
                return builder.load(builder.gep(first, [index]), align=VECTOR, typ=_VECTOR)

            def add_taps(first, n_taps, n_rows):
                tap = [vector(taps, builder.add(first, number(k))) for k in range(n_taps)]
                for i in range(n_rows):
                    row = vector(rows, builder.add(first, number(i)))
                    for k in range(n_taps):
                        if 0 <= i - k < n_frames:
                            total = builder.load(totals[i - k], typ=_VECTOR)
                            builder.store(builder.call(fma, [tap[k], row, total]), totals[i - k])

            beginning = vector(start, number(0))
            totals = [cgutils.alloca_once_value(builder, beginning) for _ in range(n_frames)]
            missing = n_frames - 1 if look_ahead else 0
            shared = builder.sub(n_taps, number(missing))
            grouped = builder.sub(shared, builder.urem(shared, number(group)))
            for begin, end, step in ((number(0), grouped, group), (grouped, shared, 1)):
                with cgutils.for_range_slice(builder, begin, end, number(step), inc=True) as (
                    first,
                    _,
                ):
                    add_taps(first, step, step + n_frames - 1)
            add_taps(shared, missing, missing)

            for i, total in enumerate(totals):
                address = builder.add(y, builder.mul(number(i), y_stride))
                address = builder.inttoptr(address, _VECTOR.as_pointer())
                builder.store(builder.load(total, typ=_VECTOR), address, align=4)
            return context.get_dummy_value()

        return types.void(*[int64] * 6), emit

    return tile


_tile_8_frames = _make_tile(n_frames=8, group=4)
_tile_4_frames = _make_tile(n_frames=4, group=4)
_tile = _make_tile(n_frames=1, group=1)
_tile_ahead = _make_tile(n_frames=AHEAD, group=4, look_ahead=True)


@intrinsic
def _store_twice(typing, source, target, distance):
    """Copy a vector to `target` and to `distance` after it."""

    def emit(context, builder, signature, args):
        source, target, distance = args
        address = builder.inttoptr(source, _VECTOR.as_pointer())
        vector = builder.load(address, align=4, typ=_VECTOR)
        for address in (target, builder.add(target, distance)):
            address = builder.inttoptr(address, _VECTOR.as_pointer())
            builder.store(vector, address, align=VECTOR)
        return context.get_dummy_value()

    return types.void(int64, int64, int64), emit


@intrinsic
def _copy_float(typing, source, target):
    """Copy one number."""

    def emit(context, builder, signature, args):
        source, target = (builder.inttoptr(address, _FLOAT.as_pointer()) for address in args)
        builder.store(builder.load(source, typ=_FLOAT), target)
        return context.get_dummy_value()

    return types.void(int64, int64), emit


@intrinsic
def _copy(typing, source, target, n_bytes):
    """Copy memory."""

    def emit(context, builder, signature, args):
        source, target = (builder.inttoptr(address, _FLOAT.as_pointer()) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(int64, int64, int64), emit


@intrinsic
def _address(typing, array):
    """Return the address of an array's data."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return int64(array), emit


@intrinsic
def _exchange(typing, array, old, new):
    """Replace the first 64 bits of an array if they are `old`, in one step; return what was."""

    def emit(context, builder, signature, args):
        array, old, new = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        flag = builder.bitcast(data, ir.IntType(64).as_pointer())
        result = builder.cmpxchg(flag, old, new, "seq_cst")
        return builder.extract_value(result, 0)

    return int64(array, int64, int64), emit


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
        _store_twice(x + block * VECTOR, row + block * stride, mirror)
    for block in range(max(first_block, whole), last_block):
        if channels >= LANES:
            _store_twice(x + 4 * (channels - LANES), row + block * stride, mirror)
        else:
            for lane in range(LANES):
                for target in (row, row + mirror):
                    _copy_float(x + 4 * min(lane, channels - 1), target + 4 * lane)


@compiled
def _outputs(y, n, taps, rows, channels, scratch, K):
    """Write `n` frames of output of a block, whose windows begin at `rows`."""
    frame = 4 * channels
    if channels < LANES:
        for i in range(n):
            _tile(scratch, 0, taps, taps + VECTOR, rows + i * VECTOR, K)
            for channel in range(channels):
                _copy_float(scratch + 4 * channel, y + i * frame + 4 * channel)
        return
    # The last tile ends with the last frame, and may compute some frames once more.
    done = 0
    while n - done > 4 and n >= 8:
        done = min(done, n - 8)
        _tile_8_frames(y + done * frame, frame, taps, taps + VECTOR, rows + done * VECTOR, K)
        done += 8
    while done < n and n >= 4:
        done = min(done, n - 4)
        _tile_4_frames(y + done * frame, frame, taps, taps + VECTOR, rows + done * VECTOR, K)
        done += 4
    while done < n:
        _tile(y + done * frame, 0, taps, taps + VECTOR, rows + done * VECTOR, K)
        done += 1


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
                    _store_twice(zeros + block * stride, row + block * stride, N * VECTOR)
        window = ring + (frames_in + first - (K - 1)) % N * VECTOR
        for block in range(first_block, last_block):
            out = y + 4 * (first - silent) * channels + _channel(block, channels)
            tap, rows = taps + block * (1 + K) * VECTOR, window + block * stride
            scratch = zeros + block * stride + VECTOR
            _outputs(out, last - first, tap, rows, channels, scratch, K)
        done = last


@compiled
def _convolve_frame(x, y, taps, ring, frames_in, since, K, channels, n_blocks):
    """Do as `_convolve` does for one frame of a signal that comes frame by frame.

    Every eighth frame, a block begins the sums of eight outputs together, as far as their frames
    are known; the taps of later frames are added as these come. So most taps are read once for
    eight frames. Blocks take turns, so that all frames cost the same. `since` is the first of the
    frames that came one by one; a block whose turn was before takes all taps.
    """
    N = K - 1 + PASS
    slot = frames_in % N * VECTOR
    window = (frames_in - (K - 1)) % N * VECTOR
    for block in range(n_blocks):
        at = _channel(block, channels)
        tap = taps + block * (1 + K) * VECTOR
        row = ring + block * (2 * N + SPARE_ROWS) * VECTOR
        begun = row + (2 * N + 2) * VECTOR
        _store_twice(x + at, row + slot, N * VECTOR)
        age = (frames_in + block) % AHEAD
        if age == 0:
            _tile_ahead(begun, VECTOR, tap, tap + VECTOR, row + window, K)
        if frames_in - age >= since:
            start, added = begun + age * VECTOR, K - age
        else:
            start, added = tap, 0
        rest = added * VECTOR
        _tile(y + at, 0, start, tap + VECTOR + rest, row + window + rest, K - added)


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
    return array.size == 0 or _address(array) % 4 == 0


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
    x_at, y_at = _address(x), _address(y)
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
    if _exchange(state, 0, 1):
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
        header[0, BUSY] = 0
        return n_frames, REFUSED
    return n_frames, n_outputs


@compiled
def _process_row(
    x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding, lengths,
    first_block, last_block,
):  # fmt: skip
    """Push a row's part of a chunk; fill the rest of its output with zeros."""
    length = lengths[row] if lengths.size else n_frames
    ring = _address(state) + 4 * (row * state.shape[1] + HEADER)
    y = _address(out) + 4 * row * n_outputs * channels
    frames_in = state.view(np.int64)[row, FRAMES_IN]
    _convolve(
        _address(x) + 4 * row * n_frames * channels, length, padding, y, _address(taps), ring,
        frames_in, taps.shape[1] - 1, channels, latency, first_block, last_block,
    )  # fmt: skip
    zero = ring - 4
    for i in range(max(0, _n_outputs(frames_in, length + padding, latency)), n_outputs):
        for channel in range(first_block * LANES, min(last_block * LANES, channels)):
            _copy_float(zero, y + 4 * (i * channels + channel))


@compiled
def _finish(state, n_frames, lengths):
    """Count the frames that were pushed into every row; the stream is not in use any more."""
    header = state.view(np.int64)
    for row in range(len(state)):
        header[row, FRAMES_IN] += lengths[row] if lengths.size else n_frames
        header[row, AHEAD_SINCE] = header[row, FRAMES_IN]
    header[0, BUSY] = 0


# --- What Python calls ---
#
# `x` is (C,) or (B, C) for `step`, (T, C) or (B, T, C) for `process`; `out` likewise. These return
# the number of output frames for each row, REFUSED or IN_USE, either with nothing changed.


@compiled_for()
def step(x, out, taps, state, channels, latency):
    """Push one frame into every row and write the output that is now final, if any."""
    n_rows, n_floats = state.shape
    if not _fit(x, 1, out, 1, n_rows, channels):
        return REFUSED
    if _exchange(state, 0, 1):
        return IN_USE
    header = state.view(np.int64)
    K = taps.shape[1] - 1
    n_outputs = _n_outputs(header[0, FRAMES_IN], 1, latency)
    for row in range(1, n_rows):
        if _n_outputs(header[row, FRAMES_IN], 1, latency) != n_outputs:
            header[0, BUSY] = 0
            return REFUSED
    looks_ahead = n_outputs == 1 and K > AHEAD and channels >= LANES
    for row in range(n_rows):
        frames_in = header[row, FRAMES_IN]
        frame = 4 * row * channels
        ring = _address(state) + 4 * (row * n_floats + HEADER)
        if looks_ahead:
            _convolve_frame(
                _address(x) + frame, _address(out) + frame, _address(taps), ring, frames_in,
                header[row, AHEAD_SINCE], K, channels, len(taps),
            )  # fmt: skip
        else:
            _convolve(
                _address(x) + frame, 1, 0, _address(out) + frame, _address(taps), ring, frames_in,
                K, channels, latency, 0, len(taps),
            )  # fmt: skip
    for row in range(n_rows):
        header[row, FRAMES_IN] += 1
        if not looks_ahead:
            header[row, AHEAD_SINCE] = header[row, FRAMES_IN]
    header[0, BUSY] = 0
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
def process_in_parallel(x, out, taps, state, channels, latency, padding, lengths, parts):
    """Do as `process` does, rows and so many parts of their blocks spread over Numba's threads."""
    n_frames, n_outputs = _plan(x, out, state, channels, latency, padding, lengths)
    if n_outputs >= 0:
        n_blocks = taps.shape[0]
        for task in prange(state.shape[0] * parts):
            row, part = task // parts, task % parts
            _process_row(
                x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding,
                lengths, part * n_blocks // parts, (part + 1) * n_blocks // parts,
            )  # fmt: skip
        _finish(state, n_frames, lengths)
    return n_outputs


@compiled_for()
def copy_rows(state, rows, copy, expected, inward):
    """Copy rows of a state to or from an array of as many rows, all but their BUSY.

    Answers REFUSED if a row is not at the `expected` frame; -1 is any. Else as `step` does.
    """
    if _exchange(state, 0, 1):
        return IN_USE
    header = state.view(np.int64)
    fits = True
    for i in range(len(rows)):
        fits &= expected[i] == -1 or header[rows[i], FRAMES_IN] == expected[i]
    n_bytes = 4 * state.shape[1]
    for i in range(len(rows) if fits else 0):
        own = _address(state) + rows[i] * n_bytes + 8
        other = _address(copy) + i * n_bytes + 8
        if inward:
            _copy(other, own, n_bytes - 8)
        else:
            _copy(own, other, n_bytes - 8)
    header[0, BUSY] = 0
    return 0 if fits else REFUSED


def environment() -> dict[str, str]:
    """Describe what the kernels are compiled for, and where the compiled code is kept."""
    return {
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "CPU": CPU,
        "vector width": f"{LANES} float32",
        "threads": str(n_threads()),
        "cache": step(1).stats.cache_path or "",
    }
