"""How long does a chunk of a streaming encoder take? Prints milliseconds, beside peers and alone.

    python benchmarks/encoder.py [--model conformer] [--chunk 4 16 64] [--chunks 40] [--smoke]
    python benchmarks/encoder.py --profile | --threads | --endless

All work on the same features with the same weights, in one thread, and must agree. Their chunks
alternate, so that a busy machine is busy for all of them; medians. PyTorch runs ESPnet's own code.
ONNX Runtime has a model of its own for each size, exported with static shapes, and as 8 bits its
dynamic quantisation. Needs PyTorch, ESPnet, onnx and onnxruntime.

The others are about this library alone: `--profile` prints what of a chunk each kernel takes, and
what is none of theirs; `--threads` compares one thread with two, and with what two processes get
from the machine at once; `--endless` runs 200,000 feature frames and prints time and memory at
both ends.
"""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import time

import numpy as np
import report

from edgeconv.encoder import Encoder
from edgeconv.kernels import attention, dense, pointwise, ring
from edgeconv.layers.parameters import with_8_bits
from edgeconv.machine import resident

LEFT, SKIPPED = 32, 3  # frames; chunks at the start that are not counted
MODELS = {"ebranchformer": (12, False), "conformer": (18, True)}
TOLERANCE = 1e-4  # of the largest output
NO_KERNEL, FASTER, USUAL = 0.12, 1.5, 16  # of a chunk; times with two threads; for chunks of 16


def features(chunk_size, n):
    """Return features for `n` chunks and a few more."""
    shape = 4 * chunk_size * (n + SKIPPED), 80
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def streamed(encoder, x, chunk_size, threads=1):
    """Yield a chunk of this library's output each time."""
    stream, first = encoder.stream(chunk_size, LEFT, threads=threads), 4 * chunk_size - 1
    yield stream.process(x[:first])
    for start in range(first, len(x), 4 * chunk_size):
        yield stream.process(x[start : start + 4 * chunk_size])


def timed(ways, n):
    """Return the milliseconds of `n` chunks of each way, which must agree but for 8 bits."""
    times = {name: [] for name in ways}
    for i in range(n + SKIPPED):
        outputs = {}
        for name, way in ways.items():
            start = time.perf_counter()
            outputs[name] = next(way)
            if i >= SKIPPED:
                times[name].append(1e3 * (time.perf_counter() - start))
        exact = [y for name, y in outputs.items() if "8 bits" not in name]
        for y in exact:
            if np.abs(y - exact[0]).max() > TOLERANCE * np.abs(exact[0]).max():
                raise SystemExit("the outputs differ")
    return times


def compare(model, options):
    """Print the times of all, for each size."""
    import encoder_peers as peers

    original, shared = peers.original(*model)
    encoder, small = Encoder(*model), Encoder(with_8_bits(model[0]), model[1])
    rows = []
    for size in options.chunk:
        x = features(size, options.chunks)
        exported = peers.export(original, LEFT, 4 * size + shared, 80)
        ways = {"PyTorch": peers.espnet(original, x, size, shared, LEFT)}
        for name, eight_bits in (("ONNX Runtime", False), ("ONNX Runtime, 8 bits", True)):
            run = peers.session(exported, eight_bits)
            ways[name] = peers.onnx(original, run, x, size, shared, LEFT)
        ways |= {"edgeconv": streamed(encoder, x, size), "8 bits": streamed(small, x, size)}
        medians = {name: np.median(taken) for name, taken in timed(ways, options.chunks).items()}
        rows.append([size, *(f"{taken:.2f}" for taken in medians.values())])
    report.print_table(["frames, ms", *medians], rows)


def timing(entry, spent):
    """Return `entry` with kernels that add to `spent` how often they ran and how long."""

    def timed_entry(function, *signatures, **options):
        kernel = entry(function, *signatures, **options)

        def run(*arguments):
            start = time.perf_counter()
            result = kernel(*arguments)
            spent[function.__name__] += np.array([1, 1e3 * (time.perf_counter() - start)])
            return result

        return run

    return timed_entry


def profile(model, options):
    """Print what of a chunk each kernel takes, its call by Numba included, and what is left."""
    spent = collections.defaultdict(lambda: np.zeros(2))
    for module in (attention, dense, pointwise, ring):
        module.entry = timing(module.entry, spent)
    encoder = Encoder(*model)
    for size in options.chunk:
        chunks = []
        way = streamed(encoder, features(size, options.chunks), size)
        for _ in range(options.chunks + SKIPPED):
            spent.clear()
            start = time.perf_counter()
            next(way)
            whole = np.array([0, 1e3 * (time.perf_counter() - start)])
            rest = whole - sum(spent.values()) * (0, 1)
            chunks.append(dict(spent) | {"no kernel": rest, "all": whole})
        chunks = chunks[SKIPPED:]
        medians = {name: np.median([each[name] for each in chunks], axis=0) for name in chunks[0]}
        shares = {name: taken / medians["all"][1] for name, (_, taken) in medians.items()}
        rows = [
            [name, int(calls) or "", f"{taken:.3f}", f"{shares[name]:.1%}"]
            for name, (calls, taken) in sorted(medians.items(), key=lambda item: -item[1][1])
        ]
        report.print_table([f"a chunk of {size}", "calls", "ms", "share"], rows)
        is_met = shares["no kernel"] <= NO_KERNEL if size == USUAL else None
        print(f"at most {NO_KERNEL:.0%} no kernel: {report.verdict(is_met, options)}\n")


def multiply_adds(seconds):
    """Return how often a loop of multiply-adds in registers runs in a second."""
    import roofline

    operands = roofline.ring.zeros(2, roofline.vectors.LANES)
    roofline._peak(*operands, 1)
    start, n = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        roofline._peak(*operands, 10_000)
        n += 1
    return n / (time.perf_counter() - start)


def processors(rounds, seconds):
    """Return how much more two processes compute at once than one."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        list(pool.map(multiply_adds, [3 * seconds] * 2))  # both have started and compiled
        ratios = []
        for _ in range(rounds):
            alone = pool.submit(multiply_adds, seconds).result()
            ratios.append(sum(pool.map(multiply_adds, [seconds] * 2)) / alone)
    return np.median(ratios)


def threads(model, options):
    """Print how much faster two threads are, and two processes of their own."""
    encoder, rows = Encoder(*model), []
    for size in options.chunk:
        x = features(size, options.chunks)
        ways = {f"{n}": streamed(encoder, x, size, n) for n in (1, 2)}
        one, two = (np.median(taken) for taken in timed(ways, options.chunks).values())
        is_met = one / two >= FASTER if size == USUAL else None
        verdict = report.verdict(is_met, options)
        rows.append([size, f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}", verdict])
    header = ["frames", "one thread, ms", "two, ms", "times faster", f"{FASTER} times"]
    report.print_table(header, rows)
    ratio = processors(*((1, 0.01) if options.smoke else (21, 0.2)))
    print(f"\nTwo processes of their own compute {ratio:.2f} times as much as one.")


def endless(encoder, chunk_size=20, n_frames=200_000):
    """Print time of a chunk and memory of the process, at both ends of a long stream."""
    stream = encoder.stream(chunk_size, LEFT)
    x = np.random.default_rng(0).standard_normal((4 * chunk_size, 80), np.float32)
    times, n = [], n_frames // len(x)
    for i in range(n):
        start = time.perf_counter()
        stream.process(x)
        times.append(time.perf_counter() - start)
        if i in (n // 10, n - 1):
            median = np.median(times[-n // 10 :]) * 1e3
            print(f"{stream.frames_in:7,} frames: {median:.2f} ms a chunk, ", end="")
            print(f"{resident() / 1e6:.1f} MB resident, {stream.memory / 1e6:.2f} MB the stream's")


def main():
    """Print what is asked for."""
    parser = report.arguments(__doc__)
    parser.add_argument("--model", choices=MODELS, default="ebranchformer")
    parser.add_argument("--chunk", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--chunks", type=int, default=40)
    modes = parser.add_mutually_exclusive_group()
    for name in ("--profile", "--threads", "--endless"):
        modes.add_argument(name, action="store_true")
    options = parser.parse_args()
    report.print_facts("torch", "onnxruntime")
    n_blocks, is_vgg = MODELS[options.model]
    if options.smoke:
        options.chunk, options.chunks, n_blocks = [8], 4, 1
    if is_vgg:  # ESPnet's first window makes four frames less than a chunk, and fails if it is none
        options.chunk = [size for size in options.chunk if size > 4]
    model = report.drawn(options.model, n_blocks, is_vgg)
    if options.endless:
        endless(Encoder(*model))
    else:
        (profile if options.profile else threads if options.threads else compare)(model, options)


if __name__ == "__main__":
    main()
