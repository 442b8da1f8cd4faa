"""How the kernels are compiled, cached and run in parallel."""

import functools
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import same_bits
from strategies import modules, seeds, signals

from edgeconv import DepthwiseConvolution, kernels, layout, parallel
from edgeconv.vectors import VECTOR


@pytest.fixture
def always_parallel(monkeypatch):
    monkeypatch.setattr(parallel, "PARALLEL_WORK", 0)


@given(st.data())
def test_the_parallel_loop_changes_no_bit(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    expected, expected_cache = conv(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "PARALLEL_WORK", 0)
        y, cache = conv(x)
    assert same_bits(y, expected)
    assert expected_cache is None or same_bits(cache, expected_cache)


def test_a_long_signal_runs_in_parallel(monkeypatch):
    calls = []
    kernel = parallel._in_parallel()
    monkeypatch.setattr(parallel, "_in_parallel", lambda: calls.append(3) or kernel)
    conv = DepthwiseConvolution(100, 31, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 1500, 200), np.float32)
    y, _ = conv(x)
    assert calls == [3]
    monkeypatch.setattr(parallel, "PARALLEL_WORK", 1 << 62)
    assert same_bits(conv(x)[0], y)
    assert calls == [3]


@given(st.data())
def test_a_signal_in_pieces_changes_no_bit(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    lengths = np.random.default_rng(data.draw(seeds)).integers(0, x.shape[1] + 1, len(x))
    mask = np.arange(x.shape[1]) >= lengths[:, None]
    whole = conv(x), conv(x, lengths=lengths), conv(x, mask=mask), conv(x.astype(np.float64))
    n_frames = data.draw(st.integers(1, 2 * x.shape[1] + 1))
    with pytest.MonkeyPatch.context() as patch:
        work = conv.channels * conv.kernel_size + parallel.FRAME_WORK
        patch.setattr(parallel, "PIECE_WORK", n_frames * work)
        pieces = conv(x), conv(x, lengths=lengths), conv(x, mask=mask), conv(x.astype(np.float64))
    for (y, cache), (expected, expected_cache) in zip(pieces, whole, strict=True):
        assert same_bits(y, expected)
        assert expected_cache is None or same_bits(cache, expected_cache)


@pytest.mark.parametrize("obstacle", ["busy", "forked", "one thread"])
def test_otherwise_the_serial_kernel_runs(monkeypatch, always_parallel, obstacle):
    if obstacle != "busy":
        monkeypatch.setattr(parallel, "_in_parallel", None)
    threads = kernels.numba.get_num_threads()
    if obstacle == "busy":
        parallel._gate[:] = 1
    elif obstacle == "forked":
        monkeypatch.setattr(parallel, "_is_forked_child", False)  # and back again afterwards
        parallel._mark_forked_child()
    else:
        kernels.numba.set_num_threads(1)
    try:
        y, _ = DepthwiseConvolution(1, 1, rng=0)(np.zeros((1, 1, 2), np.float32))
    finally:
        kernels.numba.set_num_threads(threads)
        if obstacle == "busy":
            assert parallel._gate.tolist() == [1]
            parallel._gate[:] = 0
    assert y.shape == (1, 1, 2)


def test_two_threads_in_parallel_loops_at_once(always_parallel):
    conv = DepthwiseConvolution(64, 9, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 50, 128), np.float32)
    expected, _ = conv(x)
    results = []

    def run():
        results.extend(same_bits(conv(x)[0], expected) for _ in range(50))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 200


@pytest.mark.parametrize("channels", [2, 8, 14, 16, 18, 24, 32, 34, 48, 50])
def test_memory_is_packed_in_aligned_blocks(channels):
    lanes = layout.channels_of_lanes(channels)
    assert lanes.shape == (-(-channels // kernels.LANES), kernels.LANES)
    assert set(lanes.ravel()) == set(range(channels))
    weight = np.arange(channels * 3, dtype=np.float32).reshape(channels, 1, 3)
    taps = layout.pack_taps(weight, -np.arange(channels, dtype=np.float32))
    assert taps.ctypes.data % 64 == 0
    for block, lane in np.ndindex(lanes.shape):
        c = lanes[block, lane]
        assert taps[block, :, lane].tolist() == [-c, *weight[c, 0]]
    ring = layout.Ring(3, channels, 3)
    assert ring.memory.ctypes.data % 64 == 0
    assert ring.memory.strides[0] % VECTOR == 0
    assert ring.frames_in.shape == (3,)


@pytest.mark.parametrize("kernel_size", [1, 7, 15, 31])
def test_a_stream_holds_little_memory(kernel_size):
    channels = 4 * kernels.LANES
    ring = layout.Ring(1, channels, kernel_size)
    assert ring.memory.nbytes <= (2.5 * kernel_size + 64) * channels * 4


@pytest.mark.parametrize("lengths", [[5, 4], [6, 0], [0, -1]])
def test_a_kernel_checks_lengths_against_its_arrays(lengths):
    stream = DepthwiseConvolution(8, 9, causal=True, rng=0).stream(batch_size=2)
    x, out = np.zeros((2, 5, 16), np.float32), np.zeros((2, 4, 16), np.float32)
    call = functools.partial(stream._process, x, out, *stream._state, 0)
    assert call(np.array(lengths)) == kernels.REFUSED
    assert call(np.array([4, 3])) == 4
    assert stream.frames_in.tolist() == [4, 3]


def test_the_environment_is_described():
    description = kernels.environment()
    assert description["vector width"] == f"{kernels.LANES} float32"
    assert all(description.values())


def test_a_processor_without_fused_multiply_adds_gives_the_same_bits():
    golden = pathlib.Path(__file__).with_name("test_golden.py")
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(golden)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def test_kernels_release_the_interpreters_lock():
    for kernel in (kernels.step(1), kernels.process(2), kernels.process_in_parallel(3)):
        assert kernel.targetoptions["nogil"]
