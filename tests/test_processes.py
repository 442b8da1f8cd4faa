"""Threads and processes: who waits for whom, and streams that go on elsewhere."""

import importlib
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import passes
from reference import same_bits

import edgeconv
from edgeconv import DepthwiseConvolution

WEIGHTS = Path(__file__).parents[1] / "weights"
MOVES = """
import copy, multiprocessing
import numpy as np
from edgeconv import DepthwiseConvolution


def go_on(conv, streams, x):
    "Use up streams; return their outputs, and what the module computes."
    ends = [np.concatenate([stream.process(x), stream.flush()]) for stream in streams]
    return [conv(x[None])[0][0], *ends]


def same(results, expected):
    return all((a == b).all() and a.shape == b.shape for a, b in zip(results, expected))


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((60, 18), np.float32)
    convs = [DepthwiseConvolution(9, 5, causal=causal, rng=0) for causal in (True, False)]
    for conv in convs:
        original = conv.stream()
        original.process(x[:20])
        expected = go_on(conv, [copy.deepcopy(original)], x[20:])
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            with context.Pool(1) as pool:
                arguments = conv, [original], x[20:]
                for results in pool.starmap(go_on, [arguments] * 2):
                    assert same(results, expected), method
            assert original.frames_in == 20
        assert same(go_on(conv, [original], x[20:]), expected)
"""


def test_pools_of_every_kind_of_process_go_on_with_the_same_bits(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MOVES)
    passes(program)


PARALLEL = """
import os, threading
import numpy as np
from edgeconv import DepthwiseConvolution

conv = DepthwiseConvolution(256, 31, causal=True, rng=0)
x = np.random.default_rng(0).standard_normal((1, 30_000, 512), np.float32)
y, _ = conv(x)
results = []

def run():
    results.extend((conv(x)[0] == y).all() for _ in range(3))

threads = [threading.Thread(target=run) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(results) == 9 and all(results)
child = os.fork()
if child == 0:
    run()
    os._exit(7 if all(results) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
run()
assert all(results)
"""


def works(layer):
    """Tell whether a threading layer of Numba can be loaded here."""
    try:
        importlib.import_module(f"numba.np.ufunc.{layer}")
    except ImportError:
        return False
    return True


LAYERS = {"omp": "omppool", "workqueue": "workqueue", "tbb": "tbbpool"}


@pytest.mark.parametrize("layer", [name for name, module in LAYERS.items() if works(module)])
def test_whole_signals_in_threads_and_then_in_a_forked_child(layer):
    passes("-c", PARALLEL, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")


@pytest.fixture
def patient_threads():
    """Have threads wait for whoever holds the interpreter's lock, as long as it takes."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


def turns_of_another_thread(call):
    """Return how often another thread could run meanwhile."""
    turns, begun, stop = [0], threading.Event(), threading.Event()

    def run():
        begun.set()
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)  # gives up the lock

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    before = turns[0]
    call()
    after = turns[0]
    stop.set()
    thread.join()
    return after - before


def test_short_calls_keep_the_interpreters_lock_and_long_ones_give_it_up(patient_threads):
    conv = DepthwiseConvolution(512, 31, causal=True, rng=0)
    stream, batch = conv.stream(), conv.stream(batch_size=2)
    x = np.zeros((2, 2000, 1024), np.float32)
    y = np.zeros_like(x)
    pair = np.zeros((2, 1024), np.float32)  # NumPy gives the lock up to copy

    def short_calls():
        for t in range(300):
            stream.step(x[0, t], y[0, t])
            stream.process(x[0, t : t + 4], y[0, t : t + 4])
            batch.step(pair, y[0, :2])

    def long_call():
        for _ in range(20):
            stream.process(x[0], y[0])

    short_calls()  # the first of all loads parts of Numba
    assert turns_of_another_thread(short_calls) == 0
    assert turns_of_another_thread(long_call) > 0


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_recogniser_keeps_the_lock_until_it_searches(patient_threads, kind):
    recogniser = edgeconv.load_recogniser(WEIGHTS / "cards-and-commands.npz")
    streams, encoder = [recogniser.stream() for _ in range(100)], recogniser.encoder.stream()
    samples = np.zeros(1600, kind)
    chunk = np.zeros((80, recogniser.encoder.input_size), np.float32)

    def short_calls():
        for stream in 5 * streams:  # less than a window each
            stream.accept_waveform(16000, samples)
        for _ in range(300):
            encoder.process(chunk)

    assert turns_of_another_thread(short_calls) == 0


def test_a_stream_that_another_thread_uses_refuses_everything():
    conv = DepthwiseConvolution(512, 301, causal=True, rng=0)
    stream = conv.stream()
    x = np.random.default_rng(0).standard_normal((12_000, 1024), np.float32)
    stream.process(x[:9])
    state = stream.snapshot()
    results = []
    worker = threading.Thread(target=lambda: results.append(stream.process(x)))
    calls = {
        "step": lambda: stream.step(x[0]),
        "process": lambda: stream.process(x[:9].astype(np.float64)),
        "flush": stream.flush,
        "reset": stream.reset,
        "snapshot": stream.snapshot,
        "restore": lambda: stream.restore(state),
        "cache": lambda: stream.cache,
    }

    def refused(name):
        try:
            calls[name]()
        except RuntimeError:
            return True
        return False

    worker.start()
    while not refused("snapshot") and worker.is_alive():
        pass
    assert [name for name in calls if not refused(name)] == []
    worker.join()
    assert same_bits(results[0], conv(np.concatenate([x[:9], x])[None])[0][0, 9:])


def test_a_thread_that_flushes_subnormals_or_rounds_otherwise_computes_the_same_bits():
    """Audio libraries set FTZ and DAZ in their threads; kernels set the usual mode meanwhile."""
    program = """
import platform, threading
import numba, numpy as np
from edgeconv import DepthwiseConvolution
from edgeconv.kernels.vectors import enter_usual_mode, return_to_mode

modes = [0x9FC0, 0x7F80] if platform.machine() == "x86_64" else [1 << 24, 3 << 22]
read = numba.njit(lambda: enter_usual_mode())
write = numba.njit(lambda mode: return_to_mode(mode))
usual = read()
write(usual)
conv = DepthwiseConvolution(256, 31, causal=True, rng=0)
x = np.random.default_rng(0).standard_normal((1, 30_000, 512), np.float32) * np.float32(1e-39)
conv = DepthwiseConvolution.from_state_dict({"weight": conv.weight}, causal=True)
y, _ = conv(x)
assert (y != 0).any()
tiny, third = np.float32(1e-39), np.float32(1) / np.float32(3)
heard = []

def run(mode):
    write(mode)
    different = tiny * np.float32(1) == 0 or np.float32(1) / np.float32(3) != third
    stream = conv.stream()
    frames = np.stack([stream.step(frame) for frame in x[0, :40]])
    same = (stream.process(x[0, 40:]) == y[0, 40:]).all() and (frames == y[0, :40]).all()
    heard.append((different, same, (conv(x)[0] == y).all(), read() & ~0x3F == mode))

for mode in modes:
    thread = threading.Thread(target=run, args=(mode,))
    thread.start()
    thread.join()
assert heard == [(True, True, True, True)] * 2, heard
assert read() & ~0x3F == usual & ~0x3F
"""
    passes("-c", program)
