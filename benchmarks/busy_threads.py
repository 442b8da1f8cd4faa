"""Do other Python threads hold a stream up? Prints how long frames and chunks take beside two.

    python benchmarks/busy_threads.py [--chunk 4 16] [--smoke]

Whoever gives the interpreter's lock up for a microsecond waits for threads that run Python code, 5
ms at a time, to have it back, so short calls of this library keep the lock. A frame goes through 24
convolutions, a chunk through an encoder of 12 E-Branchformer blocks; then the thread waits for the
next one. A chunk takes longer than 5 ms, after which Python takes the lock away, from a single call
as long as a chunk as well; by `sys.setswitchinterval` a program has the lock passed on more often.
A second process shows the convolutions with kernels that give the lock up.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import report
from numba import njit

from edgeconv import DepthwiseConvolution, kernels
from edgeconv.encoder import Encoder

BLOCKS, CHANNELS, K, PIECES = 24, 512, 31, 300
PAUSE = 0.01  # seconds between pieces
CHECKED = 10  # pieces; an offline call with more frames would give the lock up by itself
LATE = 1.0  # ms, of a frame
INTERVAL = 0.0002  # s, instead of Python's 0.005
TIMES = 2.0  # as long as the median chunk, which the slowest may take


@contextlib.contextmanager
def busy(n_threads):
    """Let so many threads run Python code."""
    done = threading.Event()

    def work():
        while not done.is_set():
            sum(range(100))

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def milliseconds(call, pieces, expected=None):
    """Return how long each piece takes; what is expected, the first ones must become."""
    taken, outputs = [], []
    for piece in pieces:
        time.sleep(PAUSE)
        start = time.perf_counter()
        y = call(piece)
        taken.append(1e3 * (time.perf_counter() - start))
        outputs.append(y)
    if expected is not None and (np.vstack(outputs[:CHECKED]) != expected).any():
        raise SystemExit("the output is another one than by itself")
    return np.array(taken)


def row(what, n_threads, taken, is_met, options):
    """Return a row of the table."""
    times = [f"{number:.2f}" for number in np.percentile(taken, (50, 99, 100))]
    slowest = f"{max(taken) / np.median(taken):.1f}"
    return [what, n_threads, *times, slowest, report.verdict(is_met, options)]


def convolutions(n_threads, options):
    """Measure a frame that goes through one convolution after the other."""
    convs = [DepthwiseConvolution(CHANNELS // 2, K, causal=True, rng=i) for i in range(BLOCKS)]
    shape = CHECKED if options.smoke else PIECES, CHANNELS
    frames = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected = frames[:CHECKED]
    for conv in convs:
        expected = conv(expected[np.newaxis])[0][0]
    streams = [conv.stream() for conv in convs]

    def step(x):
        for stream in streams:
            x = stream.step(x)
        return x

    with busy(n_threads):
        taken = milliseconds(step, frames, expected)
    lock = "given up" if options.give_up else "kept"
    is_met = None if options.give_up else (taken <= LATE).all()
    return row(f"a frame, the lock is {lock}", n_threads, taken, is_met, options)


@njit(**kernels.OPTIONS)
def harmonic(n):
    """Return a sum that takes a while."""
    total = 0.0
    for i in range(n):
        total += 1.0 / (i + 1.0)
    return total


def chunks(encoder, chunk_size, options):
    """Measure the chunks of an encoder, and calls that take as long as one."""
    shape = CHECKED if options.smoke else PIECES, 4 * chunk_size, encoder.input_size
    features = np.random.default_rng(0).standard_normal(shape, np.float32)
    stream = encoder.stream(chunk_size)
    expected = stream.process(np.concatenate(features[:CHECKED]))

    def measured():
        stream.reset()
        return milliseconds(stream.process, features, expected)

    alone = measured()
    one = np.median(milliseconds(harmonic, [10**6] * CHECKED))
    terms = [round(1e6 * np.median(alone) / one)] * len(features)
    name, usual = f"a chunk of {chunk_size}", sys.getswitchinterval()
    rows = [row(name, 0, alone, None, options)]
    with busy(2):
        rows.append(row(name, 2, measured(), None, options))
        rows.append(row("one call as long", 2, milliseconds(harmonic, terms), None, options))
        sys.setswitchinterval(INTERVAL)
        taken = measured()
        is_met = max(taken) <= TIMES * np.median(taken)
        rows.append(row(f"{name}, {1e3 * INTERVAL} ms", 2, taken, is_met, options))
        sys.setswitchinterval(usual)
    return rows


def main():
    """Measure in this process, then in another one with other kernels."""
    parser = report.arguments(__doc__)
    parser.add_argument("--chunk", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--give-up", action="store_true", help="measure the other kernels")
    options = parser.parse_args()
    kernels.OPTIONS["nogil"] = options.give_up
    if options.give_up:
        print("| " + " | ".join(map(str, convolutions(2, options))) + " |")
        return
    report.print_facts()
    print(
        f"{PIECES} frames through {BLOCKS} convolutions of C = {CHANNELS}, K = {K}, none over "
        f"{LATE} ms;\n{PIECES} chunks of an encoder, none over {TIMES} times the median where the "
        f"lock is\npassed on every {1e3 * INTERVAL} ms:\n"
    )
    rows = [convolutions(n_threads, options) for n_threads in (0, 2)]
    encoder = Encoder(*report.drawn("ebranchformer", 1 if options.smoke else 12))
    for chunk_size in options.chunk[: 1 if options.smoke else None]:
        rows += chunks(encoder, chunk_size, options)
    header = ["", "busy threads", "median, ms", "99 %", "slowest", "of the median", "target"]
    report.print_table(header, rows)
    with tempfile.TemporaryDirectory() as cache:  # Numba's does not notice such options
        environment = report.environment(NUMBA_CACHE_DIR=cache)
        subprocess.run([sys.executable, *sys.argv, "--give-up"], env=environment, check=True)


if __name__ == "__main__":
    main()
