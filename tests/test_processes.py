"""Threads and processes: streams go on elsewhere with the same bits, and share nothing."""

import copy
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeconv import DepthwiseConvolution, Streams

ROOT = Path(__file__).parents[1]
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# A process of several threads that forks is warned by Python 3.12 and later.
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "PYTHONWARNINGS": "ignore::DeprecationWarning"}


def works(layer):
    """Tell whether a threading layer of Numba can be loaded here."""
    try:
        importlib.import_module(f"numba.np.ufunc.{layer}")
    except ImportError:
        return False
    return True


LAYERS = {"omp": "omppool", "workqueue": "workqueue", "tbb": "tbbpool"}


def passes(*command, **environment):
    """Run Python in a process; it must say nothing."""
    process = subprocess.run(
        [sys.executable, *command],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


MOVES = """
import copy, multiprocessing, pickle, sys
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
            with context.Pool(2) as pool:
                arguments = conv, [original], x[20:]
                for results in pool.starmap(go_on, [arguments] * 4):
                    assert same(results, expected), method
            assert original.frames_in == 20
        assert same(go_on(conv, [original], x[20:]), expected)
"""


def test_pools_of_every_kind_of_process_go_on_with_the_same_bits(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MOVES)
    passes(program)


FORKED = """
import os
import numpy as np
from edgeconv import DepthwiseConvolution

conv = DepthwiseConvolution(9, 5, causal=True, rng=0)
x = np.random.default_rng(0).standard_normal((60, 18), np.float32)
y = conv(x[None])[0][0]
stream = conv.stream()
stream.process(x[:20])
children = []
for _ in range(2):
    children.append(os.fork())
    if children[-1] == 0:
        is_same = (stream.process(x[20:]) == y[20:]).all() and stream.frames_in == 60
        os._exit(7 if is_same else 1)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert stream.frames_in == 20
assert (stream.process(x[20:]) == y[20:]).all()
"""


def test_a_stream_goes_on_in_forked_children_and_in_their_parent():
    passes("-c", FORKED)


PARALLEL = """
import os, threading
import numpy as np
from edgeconv import DepthwiseConvolution, parallel

parallel.PARALLEL_WORK = 0
conv = DepthwiseConvolution(64, 9, causal=True, rng=0)
x = np.random.default_rng(0).standard_normal((3, 50, 128), np.float32)
y, _ = conv(x)
results = []

def run():
    results.extend((conv(x)[0] == y).all() for _ in range(100))

threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(results) == 400 and all(results)
child = os.fork()
if child == 0:
    run()
    os._exit(7 if all(results) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
run()
assert all(results)
"""


@pytest.mark.parametrize("layer", [name for name, module in LAYERS.items() if works(module)])
def test_whole_signals_in_threads_and_then_in_a_forked_child(layer):
    passes("-c", PARALLEL, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("way", ["step", "process"])
def test_another_thread_runs_while_a_kernel_does(way):
    """It sees the output half written: the call had not returned, and did not hold the lock."""
    conv = DepthwiseConvolution(2**13, 127, causal=True, rng=0)
    stream = conv.stream()
    x = np.ones((2, conv.channels), np.float32)
    if way == "step":
        x = x[0]
    out, half_written, stop = np.zeros_like(x), threading.Event(), threading.Event()

    def watch():
        while not (stop.is_set() or half_written.is_set()):
            n_missing = np.isnan(out).sum()
            if 0 < n_missing < x.size:
                half_written.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2000):
        out = np.full_like(x, np.nan)
        getattr(stream, way)(x, out)
        if half_written.is_set():
            break
    stop.set()
    watcher.join()
    assert half_written.is_set()


def test_a_fork_is_noticed_before_numba_is_imported():
    program = """
import os, sys
from edgeconv import parallel
assert "numba" not in sys.modules
child = os.fork()
if child == 0:
    os._exit(parallel._is_forked_child)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), parallel._is_forked_child)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("1 False\n", "")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_streams_share_nothing(copied):
    streams = Streams({"a": DepthwiseConvolution(2, 3, causal=True, rng=0)})
    streams["a"].step(np.ones(4, np.float32))
    other = copied(streams)
    other["a"].step(np.ones(4, np.float32))
    assert (streams["a"].frames_in, other["a"].frames_in) == (1, 2)
