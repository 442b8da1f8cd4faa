"""What Numba lacks, in LLVM: vectors of float32, atomic exchange, the processor's float modes.

Addresses, strides and distances are integers and count bytes.
"""

import inspect

from llvmlite import binding, ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

# One 512-bit vector where there are such, else 8 lanes: 8 accumulators, 4 taps and a row then take
# 26 of NEON's 32 registers (two to a vector) and 13 of AVX2's 16.
LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
VECTOR = 4 * LANES

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORD = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_IS_X86 = binding.get_process_triple().startswith(("x86_64", "amd64"))
# MXCSR and FPCR as programs begin: rounding to nearest, nothing flushed, nothing trapped.
_USUAL_MODE = 0x1F80 if _IS_X86 else 0


def _pointer(builder, address, kind=_VECTOR):
    return builder.inttoptr(address, kind.as_pointer())


def instruction(result=types.void):
    """Make a function that emits code an intrinsic of integers, which returns `result`."""

    def decorate(emit):
        def typed(typing, *args):
            def generate(context, builder, signature, args):
                value = emit(builder, *args)
                return context.get_dummy_value() if value is None else value

            return result(*[int64] * len(args)), generate

        typed.__name__, typed.__doc__ = emit.__name__, emit.__doc__
        typed.__signature__ = inspect.signature(emit)  # which Numba looks up
        return intrinsic(typed)

    return decorate


def _call(builder, name, result, *arguments):
    """Emit a call of an external function or one of LLVM's own."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def make_tile(n_frames, n_blocks, group):
    """Make the sum over all taps of `n_frames` outputs of `n_blocks` neighbouring blocks.

    Accumulators stay in registers: plain loops keep them in memory, behind overlap checks. Taps
    come in groups; for each, a row is loaded once and fed to the (tap, frame) pairs it belongs to.
    The taps of an output ascend whatever the tile, and each is rounded once.
    """

    @instruction()
    def tile(builder, y, y_stride, taps, taps_stride, rows, rows_stride, n_taps):
        def at(address, stride, n):
            return builder.add(address, builder.mul(stride, _WORD(n)))

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
                    terms = factors[k], frame, builder.load(total, typ=_VECTOR)
                    fma = _call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, *terms)
                    builder.store(fma, total)

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
    if _IS_X86:
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
    if _IS_X86:  # which has 32 bits, the first ones in memory
        place = cgutils.alloca_once_value(builder, mode)
        _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(place, _BYTES))
    else:
        _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), mode)
