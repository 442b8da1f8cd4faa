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
SPARE_ROWS = 2
HEADER = 16

# Channel blocks of one task of the parallel loop: a cache line of a frame each, or more.
BLOCKS_PER_TASK = 8

# What a kernel answers instead of the number of output frames. A `raise` in compiled code leaks
# memory (numba#10783), and Python knows better how to say what is wrong.
REFUSED = -1


# --- Vectors ---
#
# LLVM guards short inner loops with overlap checks and keeps their accumulators in memory, so the
# vectors are spelled out here. An address is an array and an offset, in floats, into its data.

_VECTOR = ir.VectorType(ir.FloatType(), LANES)


def _vector_at(context, builder, array_type, array, offset):
    """Emit the address of the vector that begins `offset` floats into `array`."""
    floats = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(floats, [offset]), _VECTOR.as_pointer())


def _make_tile(n_blocks, n_frames, group):
    """Make the sum over all taps of `n_frames` outputs of `n_blocks` neighbouring blocks.

    Its accumulators stay in registers. It takes the taps in groups; for every group it loads each
    input row once and feeds it to every (tap, frame) pair that it belongs to. The taps of one
    output still come in ascending order, and each is a fused multiply-add, rounded once: the
    result is the same for every tile and on every CPU.
    """

    @intrinsic
    def tile(typing, y, y_at, y_stride, taps, taps_at, taps_stride, ring, ring_at, ring_stride, K):
        signature = types.void(y, *[int64] * 2, taps, *[int64] * 2, ring, *[int64] * 3)

        def emit(context, builder, signature, args):
            y, y_at, y_stride, taps, taps_at, taps_stride, ring, ring_at, ring_stride, K = args
            y_type, taps_type, ring_type = (signature.args[i] for i in (0, 3, 6))
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32"
            )
            number = functools.partial(ir.Constant, ir.IntType(64))

            def row(array_type, array, at, index):
                offset = builder.add(at, builder.mul(index, number(LANES)))
                address = _vector_at(context, builder, array_type, array, offset)
                return builder.load(address, align=4 * LANES, typ=_VECTOR)

            def add_taps(first, n_taps):
                for block in range(n_blocks):
                    tap = [
                        row(taps_type, taps, taps_of[block], builder.add(first, number(1 + k)))
                        for k in range(n_taps)
                    ]
                    for i in range(n_frames + n_taps - 1):
                        x = row(ring_type, ring, ring_of[block], builder.add(first, number(i)))
                        for k in range(n_taps):
                            if 0 <= i - k < n_frames:
                                slot = totals[block][i - k]
                                total = builder.load(slot, typ=_VECTOR)
                                builder.store(builder.call(fma, [tap[k], x, total]), slot)

            blocks = [number(block) for block in range(n_blocks)]
            taps_of = [builder.add(taps_at, builder.mul(b, taps_stride)) for b in blocks]
            ring_of = [builder.add(ring_at, builder.mul(b, ring_stride)) for b in blocks]
            totals = []
            for block in range(n_blocks):
                bias = row(taps_type, taps, taps_of[block], number(0))
                slots = [cgutils.alloca_once(builder, _VECTOR) for _ in range(n_frames)]
                for slot in slots:
                    builder.store(bias, slot)
                totals.append(slots)

            grouped = builder.sub(K, builder.urem(K, number(group)))
            for start, stop, n_taps in ((number(0), grouped, group), (grouped, K, 1)):
                with cgutils.for_range_slice(builder, start, stop, number(n_taps), inc=True) as (
                    first,
                    _,
                ):
                    add_taps(first, n_taps)

            for block in range(n_blocks):
                for frame in range(n_frames):
                    at = builder.add(y_at, builder.mul(number(frame), y_stride))
                    at = builder.add(at, number(block * LANES))
                    address = _vector_at(context, builder, y_type, y, at)
                    builder.store(builder.load(totals[block][frame], typ=_VECTOR), address, align=4)
            return context.get_dummy_value()

        return signature, emit

    return tile


_tile_8_frames = _make_tile(n_blocks=1, n_frames=8, group=4)
_tile_4_frames = _make_tile(n_blocks=1, n_frames=4, group=4)
# One accumulator would wait for itself at every tap: a single frame takes four blocks at a time.
_tile_4_blocks = _make_tile(n_blocks=4, n_frames=1, group=1)
_tile = _make_tile(n_blocks=1, n_frames=1, group=1)


@intrinsic
def _store_twice(typing, source, source_at, ring, ring_at, distance):
    """Copy a vector into the ring, to `ring_at` and to `distance` floats after it."""

    def emit(context, builder, signature, args):
        source, source_at, ring, ring_at, distance = args
        address = _vector_at(context, builder, signature.args[0], source, source_at)
        vector = builder.load(address, align=4, typ=_VECTOR)
        for at in (ring_at, builder.add(ring_at, distance)):
            address = _vector_at(context, builder, signature.args[2], ring, at)
            builder.store(vector, address, align=4 * LANES)
        return context.get_dummy_value()

    return types.void(source, int64, ring, int64, int64), emit


@intrinsic
def _address(typing, array):
    """Return the address of an array's data."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return int64(array), emit


@intrinsic
def _copy_float(typing, source, source_at, target, target_at):
    """Copy one number."""

    def emit(context, builder, signature, args):
        source, source_at, target, target_at = args
        source = context.make_array(signature.args[0])(context, builder, source).data
        target = context.make_array(signature.args[2])(context, builder, target).data
        value = builder.load(builder.gep(source, [source_at]))
        builder.store(value, builder.gep(target, [target_at]))
        return context.get_dummy_value()

    return types.void(source, int64, target, int64), emit


# --- The convolution ---


@compiled
def _pack(x, x_at, ring, ring_at, stride, mirror, first_block, last_block, channels):
    """Copy the frame at `x_at` into both its rows of every block."""
    if channels >= LANES:
        for block in range(first_block, last_block):
            channel = min(block * LANES, channels - LANES)
            _store_twice(x, x_at + channel, ring, ring_at + block * stride, mirror)
    else:
        for lane in range(LANES):
            channel = x_at + min(lane, channels - 1)
            _copy_float(x, channel, ring, ring_at + lane)
            _copy_float(x, channel, ring, ring_at + mirror + lane)


@compiled
def _outputs(y, y_at, n, taps, ring, ring_at, window, stride, first_block, last_block, channels):
    """Write `n` frames of output, whose windows begin at the `window`-th float of each block."""
    K = taps.shape[1] - 1
    taps_stride = (K + 1) * LANES
    if channels < LANES:
        scratch = ring_at + stride - LANES
        for i in range(n):
            _tile(ring, scratch, 0, taps, 0, 0, ring, ring_at + window + i * LANES, 0, K)
            for channel in range(channels):
                _copy_float(ring, scratch + channel, y, y_at + i * channels + channel)
        return

    tiled = n - n % 4
    for block in range(first_block, last_block):
        at = y_at + min(block * LANES, channels - LANES)
        tap = block * taps_stride
        row = ring_at + block * stride + window
        for i in range(0, n - 7, 8):
            frame, first = at + i * channels, row + i * LANES
            _tile_8_frames(y, frame, channels, taps, tap, 0, ring, first, 0, K)
        if n % 8 >= 4:
            frame, first = at + (tiled - 4) * channels, row + (tiled - 4) * LANES
            _tile_4_frames(y, frame, channels, taps, tap, 0, ring, first, 0, K)
    for i in range(tiled, n):
        at = y_at + i * channels
        row = ring_at + window + i * LANES
        block = first_block
        while block + 4 <= min(last_block, channels // LANES):
            frame, tap, first = at + block * LANES, block * taps_stride, row + block * stride
            _tile_4_blocks(y, frame, 0, taps, tap, taps_stride, ring, first, stride, K)
            block += 4
        while block < last_block:
            frame = at + min(block * LANES, channels - LANES)
            tap, first = block * taps_stride, row + block * stride
            _tile(y, frame, 0, taps, tap, 0, ring, first, 0, K)
            block += 1


@compiled
def _convolve(
    x, x_at, n_frames, padding, y, y_at, taps, ring, ring_at, frames_in, channels, latency,
    first_block, last_block,
):  # fmt: skip
    """Push `n_frames` into one ring, then `padding` zeros; write the outputs that are now final.

    Output t needs the frames up to t + latency: the first `latency` frames of a signal only fill
    the ring, and from then on the window of output t is the run of K rows that ends there.
    """
    K = taps.shape[1] - 1
    N = K - 1 + PASS
    stride = (2 * N + SPARE_ROWS) * LANES
    zeros = ring_at + 2 * N * LANES
    total = n_frames + padding
    silent = min(total, max(0, latency - frames_in))
    done = 0
    while done < total:
        count = min(PASS, total - done)
        for i in range(done, done + count):
            slot = ring_at + (frames_in + i) % N * LANES
            if i < n_frames:
                _pack(
                    x, x_at + i * channels, ring, slot, stride, N * LANES,
                    first_block, last_block, channels,
                )  # fmt: skip
            else:
                for block in range(first_block, last_block):
                    _store_twice(ring, zeros, ring, slot + block * stride, N * LANES)
        first = max(done, silent)
        if first < done + count:
            window = (frames_in + first - (K - 1)) % N * LANES
            _outputs(
                y, y_at + (first - silent) * channels, done + count - first, taps,
                ring, ring_at, window, stride, first_block, last_block, channels,
            )  # fmt: skip
        done += count


@compiled
def _n_outputs(frames_in, n_frames, latency):
    """Return how many outputs `n_frames` more frames make final."""
    return max(0, frames_in + n_frames - latency) - max(0, frames_in - latency)


@compiled
def _has_shape(array, n_frames, batch_size, channels):
    """Tell whether an aligned array holds `n_frames` frames for each row."""
    return (
        array.shape[-1] == channels
        and array.size == batch_size * n_frames * channels
        and (array.ndim < 3 or array.shape[0] == batch_size)
        and (array.size == 0 or _address(array) % 4 == 0)
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
    """Return the numbers of input and output frames of the arrays, the latter REFUSED if wrong."""
    batch_size = state.shape[0]
    n_frames = x.size // (batch_size * channels)
    n_outputs = out.size // (batch_size * channels)
    if not _fit(x, n_frames, out, n_outputs, batch_size, channels):
        return n_frames, REFUSED
    for row in range(batch_size):
        frames_in = state.view(np.int64)[row, 0]
        if lengths.size == 0:
            if (
                frames_in != state.view(np.int64)[0, 0]
                or _n_outputs(frames_in, n_frames + padding, latency) != n_outputs
            ):
                return n_frames, REFUSED
        elif (
            not 0 <= lengths[row] <= n_frames
            or _n_outputs(frames_in, lengths[row] + padding, latency) > n_outputs
        ):
            return n_frames, REFUSED
    return n_frames, n_outputs


@compiled
def _process_row(
    x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding, lengths,
    first_block, last_block,
):  # fmt: skip
    """Push a row's part of a chunk; fill the rest of its output with zeros."""
    length = lengths[row] if lengths.size else n_frames
    ring_at = row * state.shape[1]
    y_at = row * n_outputs * channels
    frames_in = state.view(np.int64)[row, 0]
    _convolve(
        x, row * n_frames * channels, length, padding, out, y_at, taps, state, ring_at + HEADER,
        frames_in, channels, latency, first_block, last_block,
    )  # fmt: skip
    zero = ring_at + HEADER - 1
    for i in range(max(0, _n_outputs(frames_in, length + padding, latency)), n_outputs):
        for channel in range(first_block * LANES, min(last_block * LANES, channels)):
            _copy_float(state, zero, out, y_at + i * channels + channel)


@compiled
def _count(state, n_frames, lengths):
    """Add the frames that were pushed to every row's counter."""
    for row in range(len(state)):
        state.view(np.int64)[row, 0] += lengths[row] if lengths.size else n_frames


# --- What Python calls ---
#
# `x` is (C,) or (B, C) for `step`, (T, C) or (B, T, C) for `process`; `out` likewise. All return
# the number of output frames for each row, or REFUSED with nothing changed.


@compiled_for()
def step(x, out, taps, state, channels, latency):
    """Push one frame into every row and write the output that is now final, if any."""
    n_rows, n_floats = state.shape
    if not _fit(x, 1, out, 1, n_rows, channels):
        return REFUSED
    frames_in = state.view(np.int64)
    n_outputs = _n_outputs(frames_in[0, 0], 1, latency)
    for row in range(1, n_rows):
        if _n_outputs(frames_in[row, 0], 1, latency) != n_outputs:
            return REFUSED
    for row in range(n_rows):
        _convolve(
            x, row * channels, 1, 0, out, row * channels, taps, state, row * n_floats + HEADER,
            frames_in[row, 0], channels, latency, 0, len(taps),
        )  # fmt: skip
    for row in range(n_rows):
        frames_in[row, 0] += 1
    return n_outputs


@compiled_for()
def process(x, out, taps, state, channels, latency, padding, lengths):
    """Push a chunk, then `padding` frames of zeros, into every row.

    `lengths` says how many frames of the chunk each row gets, or is empty: then all of them, and
    every row must be at the same frame. Padding ends a signal: it is not counted, and the state is
    of no use afterwards.
    """
    n_frames, n_outputs = _plan(x, out, state, channels, latency, padding, lengths)
    if n_outputs != REFUSED:
        for row in range(state.shape[0]):
            _process_row(
                x, n_frames, out, n_outputs, taps, state, row, channels, latency, padding,
                lengths, 0, taps.shape[0],
            )  # fmt: skip
        _count(state, n_frames, lengths)
    return n_outputs


@compiled_for(parallel=True)
def process_in_parallel(x, out, taps, state, channels, latency, padding, lengths):
    """Do as `process` does, rows and groups of channel blocks spread over Numba's threads."""
    n_frames, n_outputs = _plan(x, out, state, channels, latency, padding, lengths)
    if n_outputs != REFUSED:
        groups = -(-taps.shape[0] // BLOCKS_PER_TASK)
        for task in prange(state.shape[0] * groups):
            block = task % groups * BLOCKS_PER_TASK
            _process_row(
                x, n_frames, out, n_outputs, taps, state, task // groups, channels, latency,
                padding, lengths, block, min(block + BLOCKS_PER_TASK, taps.shape[0]),
            )  # fmt: skip
        _count(state, n_frames, lengths)
    return n_outputs


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
