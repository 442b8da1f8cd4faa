"""Vector operations that Numba lacks, spelled out in LLVM's terms.

LLVM guards short inner loops with overlap checks and keeps their accumulators in memory; the tiles
here do neither. Addresses and strides are integers and count bytes.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_, CPU, _FEATURES = cpu_target.target_context.codegen().magic_tuple()

# One 512-bit vector where the CPU has them, else 8 lanes: a tile's 8 accumulators, 4 taps and one
# row then take 26 of NEON's 32 registers (two to a vector) and 13 of AVX2's 16.
LANES = 16 if "+avx512f" in _FEATURES.split(",") else 8
VECTOR = 4 * LANES  # bytes
# Outputs whose sums a stream of single frames begins together, as far as their frames are known.
AHEAD = 8

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _pointer(builder, address):
    """Emit an address as a pointer to vectors."""
    return builder.inttoptr(address, _VECTOR.as_pointer())


def _first(builder, n):
    """Emit the mask of the first `n` lanes, and the alignment that masked operations ask for."""
    kind = ir.VectorType(n.type, LANES)
    everywhere = builder.insert_element(ir.Constant(kind, ir.Undefined), n, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    everywhere = builder.shuffle_vector(everywhere, everywhere, zeros)
    lanes = ir.Constant(kind, list(range(LANES)))
    return ir.IntType(32)(4), builder.icmp_unsigned("<", lanes, everywhere)


def _call(builder, name, result, *arguments):
    """Emit a call of one of LLVM's intrinsic functions for vectors."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    name = f"llvm.{name}.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


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
            number = functools.partial(ir.Constant, ir.IntType(64))

            def vector(address, index):
                place = builder.gep(_pointer(builder, address), [index])
                return builder.load(place, align=VECTOR, typ=_VECTOR)

            def add_taps(first, n_taps, n_rows):
                tap = [vector(taps, builder.add(first, number(k))) for k in range(n_taps)]
                for i in range(n_rows):
                    row = vector(rows, builder.add(first, number(i)))
                    for k in range(n_taps):
                        if 0 <= i - k < n_frames:
                            total = builder.load(totals[i - k], typ=_VECTOR)
                            total = _call(builder, "fma", _VECTOR, tap[k], row, total)
                            builder.store(total, totals[i - k])

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
                place = _pointer(builder, builder.add(y, builder.mul(number(i), y_stride)))
                builder.store(builder.load(total, typ=_VECTOR), place, align=4)
            return context.get_dummy_value()

        return types.void(*[int64] * 6), emit

    return tile


tile_8_frames = _make_tile(n_frames=8, group=4)
tile_4_frames = _make_tile(n_frames=4, group=4)
tile_1_frame = _make_tile(n_frames=1, group=1)
tile_ahead = _make_tile(n_frames=AHEAD, group=4, look_ahead=True)


@intrinsic
def store_twice(typing, source, target, distance):
    """Copy a vector to `target` and to `distance` after it."""

    def emit(context, builder, signature, args):
        source, target, distance = args
        vector = builder.load(_pointer(builder, source), align=4, typ=_VECTOR)
        for address in (target, builder.add(target, distance)):
            builder.store(vector, _pointer(builder, address), align=VECTOR)
        return context.get_dummy_value()

    return types.void(int64, int64, int64), emit


@intrinsic
def store_lanes_twice(typing, source, target, distance, n):
    """Do as `store_twice` does with the first `n` numbers, and zeros instead of the others."""

    def emit(context, builder, signature, args):
        source, target, distance, n = args
        others = ir.Constant(_VECTOR, [0.0] * LANES)
        place = _pointer(builder, source), *_first(builder, n)
        vector = _call(builder, "masked.load", _VECTOR, *place, others)
        for address in (target, builder.add(target, distance)):
            builder.store(vector, _pointer(builder, address), align=VECTOR)
        return context.get_dummy_value()

    return types.void(*[int64] * 4), emit


@intrinsic
def copy_lanes(typing, source, target, n):
    """Copy the first `n` numbers of a vector; the others are not written to."""

    def emit(context, builder, signature, args):
        source, target, n = args
        vector = builder.load(_pointer(builder, source), align=VECTOR, typ=_VECTOR)
        place = _pointer(builder, target), *_first(builder, n)
        _call(builder, "masked.store", ir.VoidType(), vector, *place)
        return context.get_dummy_value()

    return types.void(*[int64] * 3), emit


@intrinsic
def copy_float(typing, source, target):
    """Copy one number."""

    def emit(context, builder, signature, args):
        source, target = (builder.inttoptr(address, _FLOAT.as_pointer()) for address in args)
        builder.store(builder.load(source, typ=_FLOAT), target)
        return context.get_dummy_value()

    return types.void(int64, int64), emit


@intrinsic
def copy_bytes(typing, source, target, n_bytes):
    """Copy memory."""

    def emit(context, builder, signature, args):
        source, target, n_bytes = args
        pointers = _pointer(builder, target), _pointer(builder, source)
        cgutils.raw_memcpy(builder, *pointers, n_bytes, itemsize=1)
        return context.get_dummy_value()

    return types.void(int64, int64, int64), emit


@intrinsic
def address_of(typing, array):
    """Return the address of an array's data."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return int64(array), emit


@intrinsic
def exchange(typing, array, old, new):
    """Replace the first 64 bits of an array if they are `old`, in one step; return what was."""

    def emit(context, builder, signature, args):
        array, old, new = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        flag = builder.bitcast(data, ir.IntType(64).as_pointer())
        result = builder.cmpxchg(flag, old, new, "seq_cst")
        return builder.extract_value(result, 0)

    return int64(array, int64, int64), emit
