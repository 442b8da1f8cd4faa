"""How close are the kernels to what the processor can do? Prints shares of peak and bandwidth.

    python benchmarks/roofline.py [--smoke]

1. Peak: fused multiply-adds in a loop that touches registers only, written as LLVM vectors like
   the kernels; then the kernels' own tiles with operands in the first-level cache, as shares of it.
2. A frame by itself must read K * C taps and as many values of the ring: a loop that only adds up
   the vectors of both, laid out and sized alike, bounds the time. Beside it is the kernel of
   `step`, which reads most of them for eight frames at once and so may stay below.
3. What Python adds: `stream.step` around an empty compiled function in place of the kernel, beside
   a bare call of that function.
"""

import functools

import numba
import numpy as np
import report
from llvmlite import ir
from numba import float32, int64
from numba.core import cgutils
from numba.extending import intrinsic
from peers import SIZES

from edgeconv import DepthwiseConvolution, kernels, layout, vectors

K = 31
# A fused multiply-add takes 4 cycles and two start in each: 8 in flight suffice, 12 are safe, and
# 12 accumulators with both factors fit in 16 registers.
CHAINS = 12
REPETITIONS = 2000  # of a tile in a timed call
CALLS = 100  # of `step` or its kernel
PEAK_TARGET = 0.75
OVERHEAD_TARGET = 1.5

compiled = functools.partial(numba.njit, error_model="numpy")


def _sum_of_chains(builder, count, step):
    """Emit a loop that keeps CHAINS vectors in registers, `step` by `step`; return one float."""
    zero = ir.Constant(vectors._VECTOR, None)
    slots = [cgutils.alloca_once_value(builder, zero) for _ in range(CHAINS)]
    with cgutils.for_range(builder, count) as loop:
        for chain, slot in enumerate(slots):
            builder.store(step(builder.load(slot), chain, loop.index), slot)
    total = functools.reduce(builder.fadd, [builder.load(slot) for slot in slots])
    lanes = [
        builder.extract_element(total, ir.Constant(ir.IntType(32), lane))
        for lane in range(vectors.LANES)
    ]
    return functools.reduce(builder.fadd, lanes)


@intrinsic
def _multiply_in_registers(typing, a, b, count):
    """Run `count` fused multiply-adds in each of CHAINS registers."""

    def emit(context, builder, signature, args):
        vector = vectors._VECTOR
        fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector] * 3),
            f"llvm.fma.v{vectors.LANES}f32",
        )
        undefined = ir.Constant(vector, ir.Undefined)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), vectors.LANES), None)
        factors = [
            builder.shuffle_vector(
                builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0)),
                undefined,
                mask,
            )
            for scalar in args[:2]
        ]
        return _sum_of_chains(
            builder, args[2], lambda total, chain, i: builder.call(fma, [*factors, total])
        )

    return float32(float32, float32, int64), emit


@intrinsic
def _read(typing, address, count):
    """Add up `count` times CHAINS vectors."""

    def emit(context, builder, signature, args):
        address, count = args
        first = builder.inttoptr(address, vectors._VECTOR.as_pointer())

        def step(total, chain, index):
            number = builder.mul(index, ir.Constant(ir.IntType(64), CHAINS))
            number = builder.add(number, ir.Constant(ir.IntType(64), chain))
            vector = builder.load(builder.gep(first, [number]), align=vectors.VECTOR)
            return builder.fadd(total, vector)

        return _sum_of_chains(builder, count, step)

    return float32(int64, int64), emit


@compiled
def peak(count):
    """Run `count` times CHAINS fused multiply-adds."""
    return _multiply_in_registers(float32(count), float32(0.5), count)


def tile_loop(tile, n_frames):
    """Return a compiled function that calls one of the kernels' tiles over and over."""

    @compiled
    def run(repetitions, y, taps, ring):
        y, taps, ring = vectors.address_of(y), vectors.address_of(taps), vectors.address_of(ring)
        for _ in range(repetitions):
            tile(y, vectors.VECTOR, taps, taps + vectors.VECTOR, ring, K)

    taps = layout._zeros(1 + K, vectors.LANES)
    ring = layout._zeros(K + n_frames, vectors.LANES)
    y = layout._zeros(n_frames, vectors.LANES)
    taps[:], ring[:] = 0.5, 0.25
    return lambda: run(REPETITIONS, y, taps, ring)


@compiled
def read_repeatedly(repetitions, first, second, blocks, count):
    """Add up a run of vectors of every block of two arrays, over and over."""
    total = float32(0)
    for _ in range(repetitions):
        for block in range(blocks):
            offset = block * count * CHAINS * vectors.VECTOR
            total += _read(vectors.address_of(first) + offset, count)
            total += _read(vectors.address_of(second) + offset, count)
    return total


@compiled
def _empty(x, out, taps, state, channels, latency):
    return 1


def step_loop():
    """Return a compiled function that calls the kernel of `step` over and over."""
    step = kernels.step(1)

    @compiled
    def run(repetitions, x, out, taps, state, channels, latency):
        for _ in range(repetitions):
            step(x, out, taps, state, channels, latency)

    return run


def step_repeatedly(stream, frame, out):
    """Call `step` again and again."""
    for _ in range(CALLS):
        stream.step(frame, out=out)


def call_repeatedly(function, frame, out, state):
    """Call a compiled function again and again, as `step` does."""
    for _ in range(CALLS):
        function(frame, out, *state)


def report_tiles(rounds, seconds):
    """Print the share of the peak that each tile reaches; return whether the target is met."""
    tiles = {
        "8 frames": (vectors.tile_8_frames, 8),
        "4 frames": (vectors.tile_4_frames, 4),
        "8 frames ahead": (vectors.tile_ahead, 8),
        "1 frame": (vectors.tile_1_frame, 1),
    }
    missing = {"8 frames ahead": sum(range(8))}  # taps of frames to come
    calls = {"peak": lambda: peak(K * REPETITIONS)}
    calls |= {name: tile_loop(*tile) for name, tile in tiles.items()}
    counts = {"peak": CHAINS * K}
    counts |= {name: K * n - missing.get(name, 0) for name, (_, n) in tiles.items()}
    times = report.median_times(calls, rounds, seconds)
    rates = {
        name: 2e-9 * vectors.LANES * counts[name] * REPETITIONS / time
        for name, time in times.items()
    }
    print(f"Fused multiply-adds, {vectors.LANES} lanes, K = {K}, operands in L1:\n")
    report.print_table(
        ["tile", "GFLOP/s", "of the peak"],
        [[name, f"{rate:.0f}", f"{rate / rates['peak']:.0%}"] for name, rate in rates.items()],
    )
    return rates["8 frames"] >= PEAK_TARGET * rates["peak"]


def report_step(sizes, rounds, seconds):
    """Print what a frame costs; return whether the target of the overhead is met."""
    run = step_loop()
    empty = kernels.compiled_for()(_empty.py_func)(1)
    rows, overheads = [], []
    for channels, kernel_size in sizes:
        conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
        stream, idle = conv.stream(), conv.stream()
        idle._step = empty.entry_point
        frame = np.random.default_rng(0).standard_normal(channels, np.float32)
        out = np.empty_like(frame)
        taps = stream._state[0]
        lanes = vectors.LANES
        # One array after the other, as many whole chains as the window needs.
        count = -(-kernel_size // CHAINS)
        first, second = (layout._zeros(len(taps), count * CHAINS * lanes) for _ in range(2))
        calls = {
            "read": functools.partial(read_repeatedly, CALLS, first, second, len(taps), count),
            "kernel": functools.partial(run, CALLS, frame, out, *stream._state),
            "step": functools.partial(step_repeatedly, stream, frame, out),
            "idle step": functools.partial(step_repeatedly, idle, frame, out),
            "empty": functools.partial(call_repeatedly, empty, frame, out, stream._state),
        }
        times = report.median_times(calls, rounds, seconds)
        times = {name: time / CALLS for name, time in times.items()}
        read = times["read"] * kernel_size / (count * CHAINS)
        kernel = times["kernel"]
        overheads.append(times["idle step"] / times["empty"])
        rows.append(
            [channels, kernel_size, f"{2e-9 * 4 * taps.shape[0] * lanes * kernel_size / read:.0f}"]
            + [f"{1e6 * time:.2f}" for time in (read, kernel)]
            + [f"{kernel / read:.2f}"]
            + [f"{1e6 * times[name]:.2f}" for name in ("step", "idle step", "empty")]
            + [f"{overheads[-1]:.2f}"]
        )
    print("\nOne frame, times in µs:\n")
    header = ["C", "K", "GB/s", "read once", "kernel", "ratio", "step", "step, empty kernel"]
    report.print_table([*header, "empty call", "ratio"], rows)
    return max(overheads) <= OVERHEAD_TARGET


def main():
    """Run and print everything."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts(report.facts())
    rounds, seconds = (1, 0.0) if options.smoke else (25, 0.01)
    sizes = SIZES[:1] if options.smoke else SIZES
    tile_is_met = report_tiles(rounds, seconds)
    overhead_is_met = report_step(sizes, rounds, seconds)
    if not options.smoke:
        print(f"\nThe tile reaches {PEAK_TARGET:.0%} of the peak: {report.verdict(tile_is_met)}")
        print(
            f"`step` without its kernel takes at most {OVERHEAD_TARGET} times an empty call: "
            + report.verdict(overhead_is_met)
        )


if __name__ == "__main__":
    main()
