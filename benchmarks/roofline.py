"""How close are the kernels to what the processor can do? Prints shares of peak and bandwidth.

    python benchmarks/roofline.py [--smoke]

1. Peak: fused multiply-adds in a loop that touches registers only, written as LLVM vectors like
   the kernels; then the convolution's tiles with operands in the first-level cache, and a dense
   layer whose weights are in the second-level one, as shares of it.
2. A frame by itself must read K * C taps and as many values of the ring: a loop that only adds up
   the vectors of both, laid out and sized alike, bounds the time. Beside it are the kernel of
   `step`, called from compiled code, and `step`; what lies between these two is Python's share.
"""

import functools

import numpy as np
import report
from llvmlite import ir
from numba import int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from edgeconv import DepthwiseConvolution
from edgeconv.kernels import OPTIONS, compiled, dense, ring, vectors

K = 31
# A fused multiply-add takes 4 cycles and two start in each: 8 in flight suffice, 12 are safe, and
# 12 accumulators with both factors fit in 16 registers.
CHAINS = 12
REPETITIONS, CALLS = 2000, 100  # of a tile, and of the kernel of `step`, in a timed call
ROWS, WIDTH, PRODUCTS = 16, 256, 4  # of a dense layer of WIDTH x WIDTH; PRODUCTS in a timed call
PEAK_TARGET = 0.75
VECTOR = ir.VectorType(ir.FloatType(), vectors.LANES)
# The frames and blocks of each.
TILES = {"8 frames": (ring.tile_8, 8, 1), "4 frames": (ring.tile_4, 4, 1)}
TILES |= {"1 frame, 4 blocks": (ring.tile_1_of_4_blocks, 1, 4), "1 frame": (ring.tile_1, 1, 1)}


def make_chains(reads):
    """Make a loop over CHAINS sums in registers, of vectors from memory or of products."""

    @intrinsic
    def chains(typing, memory, total, count):
        def emit(context, builder, signature, args):
            memory, total = (builder.inttoptr(address, VECTOR.as_pointer()) for address in args[:2])
            name, kind = f"llvm.fma.v{vectors.LANES}f32", ir.FunctionType(VECTOR, [VECTOR] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, name)
            factor, zero = builder.load(memory), ir.Constant(VECTOR, None)
            slots = [cgutils.alloca_once_value(builder, zero) for _ in range(CHAINS)]
            with cgutils.for_range(builder, args[2]) as loop:
                first = builder.mul(loop.index, ir.Constant(ir.IntType(64), CHAINS))
                for chain, slot in enumerate(slots):
                    number = builder.add(first, ir.Constant(ir.IntType(64), chain))
                    if reads:
                        place = builder.gep(memory, [number])
                        new = builder.fadd(builder.load(slot), builder.load(place))
                    else:
                        new = builder.call(fma, [factor, factor, builder.load(slot)])
                    builder.store(new, slot)
            sum_ = functools.reduce(builder.fadd, [builder.load(slot) for slot in slots])
            builder.store(sum_, total)
            return context.get_dummy_value()

        return types.void(*[int64] * 3), emit

    return chains


_multiply, _read = make_chains(reads=False), make_chains(reads=True)


@njit(**OPTIONS)
def _peak(memory, total, count):
    _multiply(memory.ctypes.data, total.ctypes.data, count)


@njit(**OPTIONS)
def _read_again(repetitions, memory, total):
    for _ in range(repetitions):
        _read(memory.ctypes.data, total.ctypes.data, len(memory))


_push = compiled(ring.push)


@njit(**OPTIONS)
def _push_again(repetitions, x, out, state):
    for _ in range(repetitions):
        _push(x, out, state)


def _tile_loop(tile, n_frames, n_blocks):
    """Return a function that calls a tile over and over, once its sums are found right."""
    rng = np.random.default_rng(0)
    y = ring.zeros(n_frames, n_blocks, vectors.LANES)
    taps = ring.zeros(n_blocks, 1 + K, vectors.LANES)
    rows = ring.zeros(n_blocks, K + n_frames - 1, vectors.LANES)
    taps[:], rows[:] = rng.random(taps.shape), rng.random(rows.shape)
    y_stride, rows_stride = y.strides[0], rows.strides[0]

    @njit(**OPTIONS)
    def run(repetitions, y, taps, rows):
        y, taps, rows = y.ctypes.data, taps.ctypes.data, rows.ctypes.data
        for _ in range(repetitions):
            tile(y, y_stride, taps, rows, rows_stride, K)

    run(1, y, taps, rows)
    for i in range(n_frames):
        sums = taps[:, 0] + (taps[:, 1:] * rows[:, i : i + K]).sum(axis=1)
        np.testing.assert_allclose(y[i], sums, rtol=1e-4)
    return lambda: run(REPETITIONS, y, taps, rows)


_dense = compiled(dense.dense)


@njit(**OPTIONS)
def _dense_again(repetitions, x, y, weights, nothing, steps):
    for _ in range(repetitions):
        _dense(x, y, weights, nothing, nothing, steps)


def _dense_loop(eight_bits):
    """Return a function that runs a dense layer over and over, once its products are right."""
    rng = np.random.default_rng(0)
    x, y = rng.random((1, ROWS, WIDTH), np.float32), ring.zeros(1, ROWS, WIDTH)
    bias, scale = rng.random((2, WIDTH), np.float32)
    weight = rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8 if eight_bits else np.float32)
    packed = dense.pack(weight, bias, scale if eight_bits else None)
    nothing, steps = np.empty((0, 0), np.float32), np.zeros(1, dense.STEPS)
    steps["taps"] = steps["stride"] = 1
    _dense_again(1, x, y, packed, nothing, steps)
    expected = x[0] @ weight.T.astype(float) * (scale if eight_bits else 1) + bias
    np.testing.assert_allclose(y[0], expected, atol=1e-5 * np.abs(expected).max())
    return lambda: _dense_again(PRODUCTS, x, y, packed, nothing, steps)


def report_tiles(effort, options):
    """Print the share of the peak that each tile reaches."""
    factor, total = ring.zeros(2, vectors.LANES)
    calls = {"peak": lambda: _peak(factor, total, K * REPETITIONS)}
    calls |= {name: _tile_loop(*tile) for name, tile in TILES.items()}
    sums = {"peak": CHAINS} | {name: frames * blocks for name, (_, frames, blocks) in TILES.items()}
    work = {name: vectors.LANES * K * REPETITIONS * n for name, n in sums.items()}
    for name, eight_bits in (("dense, 16 frames", False), ("dense, 16 frames, 8 bits", True)):
        calls[name], work[name] = _dense_loop(eight_bits), PRODUCTS * ROWS * WIDTH**2
    timers = {name: report.timer(call) for name, call in calls.items()}
    times = report.median_times(timers, *effort)
    rates = {name: 2e-9 * work[name] / seconds for name, seconds in times.items()}
    print(f"Fused multiply-adds, {vectors.LANES} lanes; K = {K}, operands in L1; dense layers of")
    print(f"{WIDTH} x {WIDTH}, weights in L2:\n")
    table = [[name, f"{rate:.0f}", f"{rate / rates['peak']:.0%}"] for name, rate in rates.items()]
    report.print_table(["tile", "GFLOP/s", "of the peak"], table)
    print()
    for name in ("8 frames", "dense, 16 frames", "dense, 16 frames, 8 bits"):
        is_met = report.verdict(rates[name] >= PEAK_TARGET * rates["peak"], options)
        print(f"{name}, {PEAK_TARGET:.0%} of the peak: {is_met}")


def report_step(sizes, effort):
    """Print what a frame costs, and where."""
    rows = []
    for channels, kernel_size in sizes:
        conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
        step = conv.stream().step
        frame = np.random.default_rng(0).standard_normal(channels, np.float32)
        out, expected = np.empty((2, channels), np.float32)
        taps = ring.pack_taps(conv.weight, conv.bias)
        state = ring.new_state(1, channels, 0, 1, taps)
        arrays = frame, out, state
        _push_again(1, *arrays)
        if (out != step(frame, out=expected)).any():
            raise SystemExit("the kernel and `step` differ")
        n_chains = -(-2 * len(taps) * kernel_size // CHAINS)
        memory, total = ring.zeros(n_chains, CHAINS, vectors.LANES), ring.zeros(vectors.LANES)
        timers = {
            "read": report.timer(functools.partial(_read_again, CALLS, memory, total)),
            "kernel": report.timer(functools.partial(_push_again, CALLS, *arrays)),
            "step": report.timer(functools.partial(step, frame, out)),
        }
        read, kernel, whole = (1e6 * t for t in report.median_times(timers, *effort).values())
        read, kernel = read / CALLS, kernel / CALLS
        numbers = read, kernel, kernel / read, whole, whole - kernel
        cells = channels, kernel_size, f"{1e-3 * memory.nbytes / read:.0f}"
        rows.append([*cells, *(f"{number:.2f}" for number in numbers)])
    print("\nOne frame, times in µs:\n")
    names = "read once", "kernel", "ratio", "`step`", "Python's share"
    report.print_table(["C", "K", "GB/s", *names], rows)


def main():
    """Run and print everything."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts()
    report_tiles(report.effort(options), options)
    report_step(report.SIZES[: 1 if options.smoke else None], report.effort(options))


if __name__ == "__main__":
    main()
