"""Whether a frame costs more at its place, or after a long time: prints both ratios.

    python benchmarks/step_cost.py

Times `stream.step` over many laps, a lap being all positions of the ring at which all blocks have
begun sums ahead in turn. It takes the median of each place in the lap, and prints the slowest place
against the median one. Then it compares the frames of the first laps with those of the last. Both
ratios are 1 where neither matters.
"""

import argparse
import math
import time

import numpy as np

from edgeconv import DepthwiseConvolution, kernels


def times_by_place(channels, kernel_size, laps):
    """Return seconds per frame, (laps, places in a lap)."""
    conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
    stream = conv.stream()
    places = math.lcm(kernel_size - 1 + kernels.PASS, kernels.AHEAD)
    frame = np.random.default_rng(0).standard_normal(channels, np.float32)
    out = np.empty_like(frame)
    seconds = np.empty((laps, places))
    clock = time.perf_counter
    for lap in range(laps):
        for place in range(places):
            start = clock()
            stream.step(frame, out=out)
            seconds[lap, place] = clock() - start
    return seconds


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--laps", type=int, default=1000)
laps = parser.parse_args().laps
print(f"{kernels.CPU}, {kernels.LANES} lanes, {laps} laps\n")
print(" channels  taps  median µs  slowest place     last laps / first laps")
for channels, kernel_size in ((32, 31), (288, 31), (512, 7), (512, 31), (1024, 31)):
    seconds = times_by_place(channels, kernel_size, laps)[laps // 20 :]
    medians = np.median(seconds, axis=0)
    tenth = max(1, len(seconds) // 10)
    first, last = np.median(seconds[:tenth]), np.median(seconds[-tenth:])
    print(
        f"{channels:9} {kernel_size:5} {np.median(medians) * 1e6:10.2f}"
        f" {medians.max() / np.median(medians):17.2f} {last / first:23.2f}"
    )
