"""Memory: none is touched but that of the arrays, and none is kept from call to call."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, passes

from edgeconv import DepthwiseConvolution

GUARDED = ROOT / "tests" / "guarded.py"


@pytest.mark.parametrize("edge", ["after", "before"])
def test_kernels_touch_nothing_but_their_arrays(edge):
    assert passes(GUARDED, edge) == "nothing was touched that must not be\n"


def resident():
    """Return the bytes of memory that this process holds."""
    return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.parametrize("causal", [True, False])
def test_ten_million_frames_leave_nothing_behind(causal):
    conv = DepthwiseConvolution(4, 3, causal=causal, rng=0)
    stream = conv.stream()
    chunk = np.ones((10_000, 8), np.float32)
    out = np.empty_like(chunk)
    stream.process(chunk)
    for n_chunks in (100, 450):  # the first ones fill what is then used again
        before = resident()
        for _ in range(n_chunks):
            stream.process(chunk, out)
            stream.process(chunk)
    assert stream.frames_in == 1101 * 10_000
    assert resident() - before < 2**20


@pytest.mark.parametrize("batch_size", [None, 1])
def test_frames_one_by_one_leave_nothing_behind(batch_size):
    stream = DepthwiseConvolution(4, 3, rng=0).stream(batch_size=batch_size)
    frame = np.ones((8,) if batch_size is None else (batch_size, 8), np.float32)
    out = np.empty_like(frame)
    for n_pairs in (1000, 50_000):
        gc.collect()
        before = resident()
        for _ in range(n_pairs):
            stream.step(frame, out)
            stream.step(frame)
    assert resident() - before < 2**20
    tracemalloc.start()
    for n_pairs in (100, 10_000):
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        for _ in range(n_pairs):
            stream.step(frame, out)
            stream.step(frame)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    assert grown < 2000
