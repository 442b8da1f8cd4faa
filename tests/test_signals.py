"""Signals whose handlers raise: a call has happened wholly or not at all, and can be repeated."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest
from interrupting import TickError, interrupted_at
from reference import same_bits

from edgeconv import DepthwiseConvolution, kernels, parallel

PAGE = os.sysconf("SC_PAGE_SIZE")
ROOT = Path(__file__).parents[1]


HERE = globals()
armed = False


def tick(number, frame):
    """Raise, if armed, in a call of `is_interrupted`."""
    global armed
    # Not in the code of a tracer: that of coverage would never give up its lock.
    if armed and (frame.f_globals["__name__"].startswith("edgeconv.") or frame.f_globals is HERE):
        armed = False
        raise TickError


def is_interrupted(call, *arguments):
    """Call; tell whether the handler raised. Outside it does not: there the tests keep books."""
    global armed
    try:
        armed = True
        call(*arguments)
        armed = False
    except TickError:
        return True
    return False


@contextlib.contextmanager
def ticking(call):
    """Have `tick` called every 50 µs, or less often where that leaves no time for a call."""
    durations = []
    for _ in range(30):
        start = perf_counter()
        call()
        durations.append(perf_counter() - start)
    period = max(50e-6, 10 * min(durations))
    before = signal.signal(signal.SIGALRM, tick)
    gc.disable()  # nothing that its callbacks raise comes out
    signal.setitimer(signal.ITIMER_REAL, period, period)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)


def taken(stream):
    """Return how many frames a stream took, all rows alike."""
    return int(np.atleast_1d(stream.frames_in)[0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("n_frames", [1, 9])
def test_repeating_what_was_not_taken_gives_the_output_without_signals(
    causal, batch_size, n_frames
):
    conv = DepthwiseConvolution(12, 7, causal=causal, rng=0)
    leading = () if batch_size is None else (batch_size,)
    x = np.random.default_rng(0).standard_normal((*leading, 9000, 24), np.float32)
    expected = conv(x.reshape(-1, 9000, 24))[0].reshape(x.shape)
    stream = conv.stream(batch_size=batch_size)
    heard = np.full_like(x, 7)
    interrupted = 0
    with ticking(lambda: stream.process(x[..., :9, :])):
        while interrupted == 0:
            stream.reset()
            for start in range(0, 9000, n_frames):
                frames = x[..., start : start + n_frames, :].copy()
                ready = max(0, start + n_frames - stream.latency) - max(0, start - stream.latency)
                y = np.full((*leading, ready, 24), 7, np.float32)
                call = stream.process, frames, y
                if n_frames == 1:
                    call = stream.step, frames[..., 0, :].copy(), np.full_like(frames[..., 0, :], 7)
                while taken(stream) == start:
                    interrupted += is_interrupted(*call)
                assert taken(stream) == start + n_frames
                if ready:
                    first = start + n_frames - ready - stream.latency
                    heard[..., first : first + ready, :] = call[2].reshape(y.shape)
    length = 9000 - stream.latency
    assert same_bits(heard[..., :length, :], expected[..., :length, :])
    assert same_bits(stream.flush(), expected[..., length:, :])


def state_of(stream):
    """Return all that a stream knows, as bytes."""
    state = stream.snapshot()
    return state.frames.tobytes(), state.frames_in.tobytes()


CALLS = {
    "step": lambda stream, x, state: stream.step(x[..., 0, :]),
    "process": lambda stream, x, state: stream.process(x),
    "process with lengths": lambda stream, x, state: stream.process(x, lengths=[40, 2]),
    "flush": lambda stream, x, state: stream.flush(),
    "flush a row": lambda stream, x, state: stream.flush(rows=[1]),
    "reset": lambda stream, x, state: stream.reset(),
    "reset a row": lambda stream, x, state: stream.reset(rows=[0]),
    "restore": lambda stream, x, state: stream.restore(state),
    "cache": lambda stream, x, state: setattr(stream, "cache", x[..., :6, :].swapaxes(1, 2)),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_happens_wholly_or_not_at_all(name, causal):
    conv = DepthwiseConvolution(12, 7, causal=causal or name == "cache", rng=0)
    x = np.random.default_rng(0).standard_normal((2, 40, 24), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x[:, 5:30])
    begin = stream.snapshot()
    stream.process(x, lengths=[33, 40])
    other = stream.snapshot()
    stream.restore(begin)
    before = state_of(stream)
    CALLS[name](stream, x, other)
    after = state_of(stream)
    outcomes = []
    while True:
        stream.restore(begin)
        if not interrupted_at(len(outcomes) + 1, lambda: CALLS[name](stream, x, other)):
            break
        outcomes.append(state_of(stream))
    first = outcomes.index(after)
    assert outcomes == [before] * first + [after] * (len(outcomes) - first)
    assert first > 0
    assert state_of(stream) == after


def resident():
    """Return the bytes of memory that this process holds."""
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.parametrize("threads", ["one", "all"])
def test_ctrl_c_acts_before_a_long_signal_is_done(threads, monkeypatch):
    """What was written by then shows how far the work had come."""
    monkeypatch.setattr("edgeconv.parallel.PARALLEL_WORK", 0 if threads == "all" else 1 << 62)
    conv = DepthwiseConvolution(32, 801, causal=True, rng=0)
    x = np.ones((1, 2**18, 64), np.float32)
    conv(x[:, :900])  # what is loaded now is not taken for work
    held, written = resident(), []

    def ctrl_c(number, frame):
        written.append(resident() - held)
        if written[-1] > 2**21:  # the work has begun
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 1e-3)  # not before: no handler interrupts this one

    before = signal.signal(signal.SIGALRM, ctrl_c)
    gc.disable()  # nothing that its callbacks raise comes out
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    try:
        with pytest.raises(KeyboardInterrupt):
            conv(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    assert written[-1] < x.nbytes * 3 / 4


@pytest.mark.parametrize("raised", [KeyboardInterrupt, TimeoutError])
def test_no_handler_disturbs_the_compiler(monkeypatch, raised):
    """It runs elsewhere, and goes on; the call that was interrupted can be repeated."""
    conv = DepthwiseConvolution(4, 3, rng=0)
    conv.stream()
    parallel.for_frames.forget()
    compiling, interrupted = [], threading.Event()
    step = kernels.step

    def slow(dimensions):
        compiling.append(threading.get_ident())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        interrupted.wait()
        return step(dimensions)

    def handler(*_):
        raise raised

    monkeypatch.setattr(kernels, "step", slow)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(raised):
            conv.stream()
    finally:
        signal.signal(signal.SIGALRM, before)
    interrupted.set()
    assert conv.stream().step(np.zeros(8, np.float32)) is None
    assert len(compiling) == 1
    assert compiling[0] != threading.main_thread().ident


def test_an_interrupt_anywhere_leaves_no_lock_behind(monkeypatch):
    """Neither in this library nor in what it calls: threads and the next call go on."""
    made = []
    make = parallel._Undisturbed(lambda: made.append(1) or "made")
    number = 1
    while interrupted_at(number, make, within=""):
        assert make() == "made"
        make.forget()
        number += 1
    assert number > 30
    assert len(made) >= number - 1
    parallel._finish()  # for ever, if a thread had kept the lock

    monkeypatch.setattr(parallel, "PARALLEL_WORK", 0)
    conv = DepthwiseConvolution(4, 3, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((1, 5, 8), np.float32)
    expected, outputs, number = conv(x)[0], [], 1
    while interrupted_at(number, lambda: conv(x), within=""):
        number += 5
    thread = threading.Thread(target=lambda: outputs.append(conv(x)[0]), daemon=True)
    thread.start()
    thread.join(60)  # for ever, if there were a lock that nobody gives up
    assert same_bits(outputs[0], expected)


def test_an_interrupt_anywhere_leaves_the_callers_error_state():
    """With NumPy 2; the one before keeps it for the thread, where nothing can protect it."""
    stream = DepthwiseConvolution(4, 3, rng=0).stream()
    with np.errstate(all="raise"):
        number, state = 1, np.geterr()
        while interrupted_at(number, lambda: stream.step(np.full(8, 1e300)), within=""):
            assert np.geterr() == state or np.__version__ < "2"
            np.seterr(**state)
            number += 1
        assert np.geterr() == state


def test_threads_that_open_the_first_streams_share_one_compilation(monkeypatch):
    conv = DepthwiseConvolution(4, 3, rng=0)
    conv.stream()
    compiling, all_wait = [], threading.Event()
    step = kernels.step

    def slow(dimensions):
        compiling.append(dimensions)
        all_wait.wait()
        return step(dimensions)

    monkeypatch.setattr(kernels, "step", slow)
    parallel.for_frames.forget()
    threads = [threading.Thread(target=conv.stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not compiling:
        pass
    all_wait.set()
    for thread in threads:
        thread.join()
    assert compiling == [1]


def printed(program):
    """Run a program; return what it prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_what_another_thread_has_made_or_makes_is_not_made_again():
    made = []
    make = parallel._Undisturbed(lambda: made.append(1))
    make()
    parallel._run(make._work, (), make._outcomes[()])
    with parallel._working:
        make._work((), parallel._Outcome())
    assert made == [1]


def test_the_size_of_other_threads_stacks_stays():
    before = threading.stack_size(2**15)
    try:
        assert parallel._Undisturbed(lambda: 3)() == 3
        assert threading.stack_size() == 2**15
    finally:
        threading.stack_size(before)


def test_the_end_waits_as_long_as_the_compiler_works(monkeypatch):
    answers = [False, True, True]
    monkeypatch.setattr(parallel, "_working", SimpleNamespace(locked=answers.pop))
    parallel._finish()
    assert not answers


EXIT = """
import os, signal, threading
from edgeconv import parallel

going_on = threading.Event()

@parallel._Undisturbed
def work():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    going_on.wait()
    print("worked", flush=True)

try:
    work()
except KeyboardInterrupt:
    child = os.fork()
    if child:
        print("the child's status:", os.waitpid(child, 0)[1], flush=True)
        going_on.set()
"""


def test_the_end_of_a_process_waits_for_its_own_compiler():
    assert printed(EXIT) == "the child's status: 0\nworked\n"


def test_threads_with_small_stacks_are_no_concern_of_the_compiler():
    program = """
import threading
from edgeconv import DepthwiseConvolution
threading.stack_size(2**15)
DepthwiseConvolution(4, 3).stream()
print(threading.stack_size())
"""
    assert printed(program) == f"{2**15}\n"


def test_what_the_compiler_raises_comes_out(monkeypatch):
    def failing(_):
        raise RuntimeError("no compiler")

    conv = DepthwiseConvolution(4, 3, rng=0)
    with monkeypatch.context() as patch:
        parallel.for_frames.forget()
        patch.setattr(kernels, "step", failing)
        with pytest.raises(RuntimeError, match="no compiler"):
            conv.stream()
    conv.stream()
