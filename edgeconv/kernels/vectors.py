"""What Numba lacks, in LLVM: vectors of float32, atomic exchange, the processor's float modes.

Addresses, strides and distances are integers and count bytes.
"""

import functools
import inspect

from llvmlite import binding, ir
from numba import config, float32, float64, int8, int64, types
from numba.core import cgutils
from numba.extending import intrinsic

# One 512-bit vector where there are such, else 8 lanes: 8 accumulators, 4 taps and a row then take
# 26 of NEON's 32 registers (two to a vector) and 13 of AVX2's 16.
_FEATURES = config.CPU_FEATURES  # if a user chose
if _FEATURES is None:
    _FEATURES = binding.get_host_cpu_features().flatten()
LANES = 16 if "+avx512f" in _FEATURES.split(",") else 8
VECTOR = 4 * LANES
BLOCK = 2 * LANES  # outputs of a dense layer whose weights lie together

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORD = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
IS_X86 = binding.get_process_triple().startswith(("x86_64", "amd64"))
# MXCSR and FPCR as programs begin: rounding to nearest, nothing flushed, nothing trapped.
_USUAL_MODE = 0x1F80 if IS_X86 else 0


def _pointer(builder, address, kind=_VECTOR):
    return builder.inttoptr(address, kind.as_pointer())


def instruction(result=types.void, *kinds):
    """Make a function that emits code an intrinsic, of `kinds` or else of integers."""

    def decorate(emit):
        def typed(typing, *args):
            def generate(context, builder, signature, args):
                value = emit(builder, *args)
                return context.get_dummy_value() if value is None else value

            return result(*kinds or [int64] * len(args)), generate

        typed.__name__, typed.__doc__ = emit.__name__, emit.__doc__
        typed.__signature__ = inspect.signature(emit)  # which Numba looks up
        return intrinsic(typed)

    return decorate


def _call(builder, name, result, *arguments):
    """Emit a call of an external function or one of LLVM's own."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _at(builder, address, stride, n):
    """Return the address of the nth of what lies `stride` apart."""
    n = n if isinstance(n, ir.Value) else _WORD(n)
    return builder.add(address, builder.mul(stride, n))


def _add_product(builder, total, a, b):
    """Add a product of two vectors to a third one in memory, rounding once."""
    terms = a, b, builder.load(total, typ=_VECTOR)
    builder.store(_call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, *terms), total)


def make_tile(n_frames, n_blocks, group):
    """Make the sum over all taps of `n_frames` outputs of `n_blocks` neighbouring blocks.

    Accumulators stay in registers: plain loops keep them in memory, behind overlap checks. Taps
    come in groups; for each, a row is loaded once and fed to the (tap, frame) pairs it belongs to.
    The taps of an output ascend whatever the tile, and each is rounded once.
    """

    @instruction()
    def tile(builder, y, y_stride, taps, rows, rows_stride, n_taps):
        taps_stride = builder.mul(builder.add(n_taps, _WORD(1)), _WORD(VECTOR))

        at = functools.partial(_at, builder)

        def load(address, index):
            place = builder.gep(_pointer(builder, address), [index])
            return builder.load(place, align=VECTOR, typ=_VECTOR)

        totals = {}
        for block in range(n_blocks):
            bias = load(at(taps, taps_stride, block), _WORD(0))
            for i in range(n_frames):
                totals[block, i] = cgutils.alloca_once_value(builder, bias)

        def add_taps(first, n, block):
            tap, row = at(taps, taps_stride, block), at(rows, rows_stride, block)
            factors = [load(tap, builder.add(first, _WORD(1 + k))) for k in range(n)]
            for i in range(n + n_frames - 1):
                frame = load(row, builder.add(first, _WORD(i)))
                for k in range(max(0, i - n_frames + 1), min(n, i + 1)):
                    total = totals[block, i - k]
                    _add_product(builder, total, factors[k], frame)

        grouped = builder.sub(n_taps, builder.urem(n_taps, _WORD(group)))
        for begin, end, step in ((_WORD(0), grouped, group), (grouped, n_taps, 1)):
            loop = cgutils.for_range_slice(builder, begin, end, _WORD(step), inc=True)
            with loop as (first, _):
                for block in range(n_blocks):
                    add_taps(first, step, block)
        for (block, i), total in totals.items():
            place = builder.add(at(y, y_stride, i), _WORD(block * VECTOR))
            builder.store(builder.load(total, typ=_VECTOR), _pointer(builder, place), align=4)

    return tile


@instruction()
def store_twice(builder, source, target, distance):
    """Copy a vector to `target` and to `distance` after it."""
    vector = builder.load(_pointer(builder, source), align=4, typ=_VECTOR)
    for address in (target, builder.add(target, distance)):
        builder.store(vector, _pointer(builder, address), align=VECTOR)


@instruction(int64)
def exchange(builder, address, old, new):
    """Replace 64 bits if they are `old`, in one step among threads; return what was."""
    swap = builder.cmpxchg(_pointer(builder, address, _WORD), old, new, "seq_cst")
    return builder.extract_value(swap, 0)


@instruction(int64)
def give_up_lock(builder):
    """Let other Python threads run; return what `take_lock` needs."""
    return builder.ptrtoint(_call(builder, "PyEval_SaveThread", _BYTES), _WORD)


@instruction()
def take_lock(builder, thread):
    """Wait until this thread may run Python again."""
    _call(builder, "PyEval_RestoreThread", ir.VoidType(), builder.inttoptr(thread, _BYTES))


@instruction(int64)
def enter_usual_mode(builder):
    """Round to nearest and keep subnormal numbers in this thread; return the mode before."""
    if IS_X86:
        place = cgutils.alloca_once(builder, _WORD, zfill=True)
        _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(place, _BYTES))
        mode = builder.load(place, typ=_WORD)
    else:
        mode = _call(builder, "llvm.aarch64.get.fpcr", _WORD)
    _set_mode(builder, _WORD(_USUAL_MODE))
    return mode


@instruction()
def return_to_mode(builder, mode):
    """Undo `enter_usual_mode`."""
    _set_mode(builder, mode)


def _set_mode(builder, mode):
    if IS_X86:  # which has 32 bits, the first ones in memory
        place = cgutils.alloca_once_value(builder, mode)
        _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(place, _BYTES))
    else:
        _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), mode)


def make_product(n_frames, n_blocks=1, keeps=False):
    """Make the product of `n_frames` rows with `n_blocks` blocks of weights, `BLOCK` outputs each.

    Each output is one chain of fused multiply-adds: it begins with its start and takes k in
    ascending order, tap by tap. Accumulators stay in registers. Operands are tuples of addresses
    and distances:

    * y: the first output; from a row to the next
    * start: the first block's; from a block to the next
    * w: the weights of k = 0; from one k to the next, from a block to the next
    * beside: what is fetched meanwhile at k = 0, as it comes next; from one k to the next; where
      8-bit weights of one block, if it `keeps` them, go as float32; from one k to the next
    * x: the first row; from a row to the next, from a tap to the next
    * count: taps; values of k in a tap

    `like` is any array of the weights' type, float32 or int8.
    """
    kinds = [types.UniTuple(int64, n) for n in (2, 2, 3, 4, 3, 2)]
    n_vectors = BLOCK // LANES

    @intrinsic
    def product(typing, y, start, w, beside, x, count, like):
        eight_bits = like.dtype == int8

        def emit(context, builder, signature, args):
            operands = [cgutils.unpack_tuple(builder, arg) for arg in args[:6]]
            (y, y_row), (start, start_block), (w, w_row, w_block) = operands[:3]
            (ahead, ahead_k, floats, floats_k), (x, x_row, x_tap), count = operands[3:]

            at = functools.partial(_at, builder)

            def load(address, index, kind=_VECTOR):
                place = builder.gep(_pointer(builder, address, kind), [_WORD(index)])
                return builder.load(place, align=1 if kind != _VECTOR else 4, typ=kind)

            def weights(address):
                if not eight_bits:
                    return [load(address, v) for v in range(n_vectors)]
                integers = ir.VectorType(ir.IntType(8), LANES)
                vectors = (load(address, v, integers) for v in range(n_vectors))
                return [builder.sitofp(vector, _VECTOR) for vector in vectors]

            starts = [at(start, start_block, b) for b in range(n_blocks)]
            lanes = [(b, v) for b in range(n_blocks) for v in range(n_vectors)]
            totals = {
                (f, b, v): cgutils.alloca_once_value(builder, load(starts[b], v))
                for f in range(n_frames)
                for b, v in lanes
            }

            def add(k, tap):
                overall = builder.add(k, builder.mul(tap, count[1]))
                row = at(w, w_row, overall)
                factors = [weights(at(row, w_block, b)) for b in range(n_blocks)]
                for v, vector in enumerate(factors[0] if keeps and eight_bits else ()):
                    place = builder.add(at(floats, floats_k, overall), _WORD(v * VECTOR))
                    builder.store(vector, _pointer(builder, place), align=4)
                for line in range(1 if eight_bits else 4 * BLOCK // 64):
                    place = builder.add(at(ahead, ahead_k, overall), _WORD(64 * line))
                    hint = (ir.IntType(32)(n) for n in (0, 2, 1))  # read, into level 2, data
                    place = builder.inttoptr(place, _BYTES)
                    _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, *hint)
                for f in range(n_frames):
                    first = at(at(x, x_row, f), x_tap, tap)
                    place = builder.gep(_pointer(builder, first, ir.FloatType()), [k])
                    value = _splat(
                        builder, _apart(builder, builder.load(place, typ=ir.FloatType()))
                    )
                    for b, v in lanes:
                        _add_product(builder, totals[f, b, v], factors[b][v], value)

            outer, inner = (cgutils.for_range(builder, n) for n in count)
            with outer as taps, inner as inputs:
                add(inputs.index, taps.index)
            for (f, b, v), total in totals.items():
                place = builder.add(at(y, y_row, f), _WORD((b * n_vectors + v) * VECTOR))
                builder.store(builder.load(total, typ=_VECTOR), _pointer(builder, place), align=4)
            return context.get_dummy_value()

        return types.void(*kinds, like), emit

    return product


SUM, SQUARES, LARGEST = range(3)


def make_sum(kind):
    """Make the sum of n float32, or of squares of what they exceed `minus` by; or the largest one.

    The order does not depend on the width of vectors: number i is added to the partial sum
    i mod 16, and those are then added in pairs, j and j + 8, j and j + 4, ... The largest
    one is that of what is no NaN.
    """
    vector = ir.VectorType(ir.FloatType(), 16)
    first = float("-inf") if kind == LARGEST else 0.0

    @instruction(float32, int64, int64, float32)
    def total(builder, address, n, minus):
        partial = cgutils.alloca_once_value(builder, ir.Constant(vector, [first] * 16))

        def joined(total, other):
            if kind == LARGEST:
                is_larger = builder.fcmp_ordered(">", other, total)
                return builder.select(is_larger, other, total)
            return builder.fadd(total, other)

        def plus(total, number, minus, suffix):
            if kind != SQUARES:
                return joined(total, number)
            excess = builder.fsub(number, minus)
            return _call(builder, f"llvm.fma.{suffix}", excess.type, excess, excess, total)

        whole = builder.sub(n, builder.urem(n, _WORD(16)))
        with cgutils.for_range_slice(builder, _WORD(0), whole, _WORD(16), inc=True) as (i, _):
            place = builder.add(address, builder.mul(i, _WORD(4)))
            numbers = builder.load(_pointer(builder, place, vector), align=4, typ=vector)
            terms = builder.load(partial, typ=vector), numbers, _splat(builder, minus, 16)
            builder.store(plus(*terms, "v16f32"), partial)
        with cgutils.for_range_slice(builder, whole, n, _WORD(1), inc=True) as (i, _):
            place = builder.gep(_pointer(builder, address, ir.FloatType()), [i])
            number = builder.load(place, typ=ir.FloatType())
            lane = builder.trunc(builder.sub(i, whole), ir.IntType(32))
            sums = builder.load(partial, typ=vector)
            term = plus(builder.extract_element(sums, lane), number, minus, "f32")
            builder.store(builder.insert_element(sums, term, lane), partial)
        sums = builder.load(partial, typ=vector)
        for width in (8, 4, 2, 1):
            halves = (
                ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(i, i + width)))
                for i in (0, width)
            )
            low, high = (builder.shuffle_vector(sums, sums, half) for half in halves)
            sums = joined(low, high)
        return builder.extract_element(sums, ir.IntType(32)(0))

    return total


def _apart(builder, number):
    """Keep LLVM, on ARM, from loading a number into all lanes, which takes a multiply-add's time.

    A multiply-add there can take a lane of a vector; on x86, it can take the number in memory.
    """
    if IS_X86:
        return number
    return _call(builder, "llvm.arithmetic.fence.f32", number.type, number)


def _splat(builder, number, lanes=LANES):
    """Return a vector with the same number in every lane."""
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    empty = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
    first = builder.insert_element(empty, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, zeros)


@intrinsic
def fused(typing, a, b, c):
    """Return a * b + c, rounded once; of float32 or float64."""

    def emit(context, builder, signature, args):
        width = 32 if signature.return_type == float32 else 64
        return _call(builder, f"llvm.fma.f{width}", args[0].type, *args)

    return a(a, a, a), emit


@instruction(int64, float64)
def bits_of(builder, number):
    """Return the bits of a float64."""
    return builder.bitcast(number, _WORD)


@instruction(float64)
def from_bits(builder, bits):
    """Return the float64 that has these bits."""
    return builder.bitcast(bits, ir.DoubleType())


@instruction(float32, float32)
def power_of_two(builder, exponent):
    """Return 2 ** (n - 127), where n is what was added to 1.5 * 2 ** 23; from 1 to 254."""
    bits = builder.bitcast(exponent, ir.IntType(32))
    return builder.bitcast(builder.shl(bits, ir.IntType(32)(23)), ir.FloatType())


@instruction(types.CPointer(float32))
def pointer(builder, address):
    """Return an address as a pointer to float32."""
    return _pointer(builder, address, ir.FloatType())
