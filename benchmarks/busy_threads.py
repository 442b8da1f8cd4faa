"""Do other Python threads hold a stream up? Prints how long a frame takes beside two busy ones.

    python benchmarks/busy_threads.py [--smoke]

A frame goes through 24 convolutions, one after the other, while two threads run Python code; then
the thread waits for the next frame. Whoever gives the interpreter's lock up for a microsecond waits
up to 5 ms for each of them to have it back, so short calls of this library keep the lock. A second
process shows the same with kernels that give it up.
"""

import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import report

from edgeconv import DepthwiseConvolution, kernels

BLOCKS, CHANNELS, K, FRAMES = 24, 512, 31, 300
PAUSE = 0.01  # seconds between frames
CHECKED = 10  # frames; an offline call with more of them would give the lock up by itself


def milliseconds(convs, frames, expected):
    """Return how long each frame takes."""
    streams = [conv.stream() for conv in convs]
    taken = []
    for i, frame in enumerate(frames):
        time.sleep(PAUSE)
        x, start = frame, time.perf_counter()
        for stream in streams:
            x = stream.step(x)
        taken.append(1e3 * (time.perf_counter() - start))
        if i < CHECKED and (x != expected[i]).any():
            raise SystemExit("the streams differ from offline")
    return np.array(taken)


def main():
    """Measure in this process, then in another one with other kernels."""
    parser = report.arguments(__doc__)
    parser.add_argument("--give-up", action="store_true", help="measure the other kernels")
    options = parser.parse_args()
    lock = "given up" if options.give_up else "kept"
    kernels.OPTIONS["nogil"] = options.give_up
    convs = [DepthwiseConvolution(CHANNELS // 2, K, causal=True, rng=i) for i in range(BLOCKS)]
    shape = CHECKED if options.smoke else FRAMES, CHANNELS
    frames = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected = frames[:CHECKED]
    for conv in convs:
        expected = conv(expected[np.newaxis])[0][0]
    rows = []
    for n_threads in (2,) if options.give_up else (0, 2):
        done = threading.Event()

        def work(done=done):
            while not done.is_set():
                sum(range(100))

        with ThreadPoolExecutor(2) as pool:
            for _ in range(n_threads):
                pool.submit(work)
            taken = milliseconds(convs, frames, expected)
            done.set()
        late = sum(taken > 1)
        times = [f"{number:.2f}" for number in np.percentile(taken, (50, 99, 100))]
        rows.append([lock, n_threads, *times, late, report.verdict(late == 0, options)])
    if options.give_up:
        print("| " + " | ".join(map(str, rows[0][:-1])) + " | |")
        return
    report.print_facts()
    print(f"{len(frames)} frames through {BLOCKS} convolutions of C = {CHANNELS}, K = {K}:\n")
    header = ["the lock is", "busy threads", "median, ms", "99 %", "worst", "over 1 ms", ""]
    report.print_table(header, rows)
    with tempfile.TemporaryDirectory() as cache:  # Numba's does not notice such options
        environment = report.environment(report.ROOT, NUMBA_CACHE_DIR=cache)
        subprocess.run([sys.executable, *sys.argv, "--give-up"], env=environment, check=True)


if __name__ == "__main__":
    main()
