"""Threads: for whole signals, when that is safe, and for what no signal handler may disturb."""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from edgeconv.layout import Ring

# A parallel loop over this many multiply-adds or more pays: half a millisecond of serial work on a
# PC, several on a board.
PARALLEL_WORK = 1 << 24
# Parts of a row's blocks for each thread. With one, two threads write to the same rows of the
# output at the same time, and were slower than one thread.
PARTS = 4
# A call into compiled code does not answer to Ctrl-C: no more than some hundredths of a second.
PIECE_WORK = 1 << 26
FRAME_WORK = 1 << 12  # what a frame costs beside its multiply-adds, in these
STACK = 1 << 23  # bytes for the compiler, as many as Linux gives to the main thread

Result = TypeVar("Result")

_gate = np.zeros(1, np.int64)  # kept by compiled code: no signal handler can leave it closed
_is_forked_child = False
_working = _thread.allocate_lock()  # taken by threads without signal handlers only


def _mark_forked_child() -> None:
    global _is_forked_child, _working
    _is_forked_child = True  # OpenMP kills a forked child at its first parallel loop
    _working = _thread.allocate_lock()  # whoever had taken the other is not in the child


os.register_at_fork(after_in_child=_mark_forked_child)


def process(arguments: tuple[Any, ...], work: int) -> int:
    """Call the kernel `process`, in parallel where `work` multiply-adds make it pay.

    One parallel loop at a time in a process: a second one aborts it where Numba's threading layer
    is `workqueue`. Whoever finds the gate closed runs the serial kernel.
    """
    from edgeconv import kernels  # imports Numba; a fork is to be noticed before

    if work >= PARALLEL_WORK and not _is_forked_child:
        n_threads = _thread_counter()()
        if n_threads > 1:
            answer = _in_parallel()(*arguments, PARTS * n_threads, _gate)
            if answer != kernels.GATE_CLOSED:
                return int(answer)
    return int(kernels.process(3).entry_point(*arguments))


class _Undisturbed(Generic[Result]):
    """
    A function of which each result is made once, by a thread of its own.

    Signal handlers raise in the main thread only, and neither Numba nor LLVM nor the locks of
    Python's own modules survive an exception in the middle of importing or compiling. Where a
    handler raises, the thread goes on; the next call waits for it too. So the waiting holds no
    lock either: it looks again and again.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._outcomes: dict[tuple[int, ...], _Outcome[Result]] = {}

    def __call__(self, *arguments: int) -> Result:
        outcome = self._outcomes.setdefault(arguments, _Outcome())
        while not outcome.is_known:
            if not _working.locked():
                _start(self._work, arguments, outcome)
            time.sleep(1e-3)
        for failure in outcome.failures:
            raise failure
        return outcome.results[0]

    def _work(self, arguments: tuple[int, ...], outcome: _Outcome[Result]) -> None:
        """Find the outcome, unless another thread works or has found it."""
        if _working.acquire(blocking=False):
            try:
                if not outcome.is_known:
                    outcome.results.append(self._function(*arguments))
            except BaseException as error:
                self._outcomes.pop(arguments, None)  # the next call tries again
                outcome.failures.append(error)
            finally:
                outcome.is_known = True
                _working.release()

    def forget(self) -> None:
        """Make all results anew."""
        self._outcomes.clear()


class _Outcome(Generic[Result]):
    """What a function returned or raised, as soon as that is known."""

    def __init__(self) -> None:
        self.is_known = False
        self.results: list[Result] = []
        self.failures: list[BaseException] = []


def _start(function: Callable[..., None], *arguments: object) -> None:
    """Start a thread, with enough of a stack for LLVM even if the application wants small ones.

    Not by `threading`: what raises in its code leaves its locks taken, and its threads stuck.
    """
    size = _thread.stack_size()
    is_small = 0 < size < STACK  # 0 is the system's choice
    try:
        if is_small:
            _thread.stack_size(STACK)
        _thread.start_new_thread(lambda: _run(function, *arguments), ())
    finally:
        if is_small:
            _thread.stack_size(size)


def _run(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a new thread; debuggers follow it as they do those of `threading`."""
    sys.settrace(threading.gettrace())
    function(*arguments)


@atexit.register
def _finish() -> None:
    """Wait for the thread that works: LLVM does not survive the end of the process either."""
    while _working.locked():
        time.sleep(1e-3)


@_Undisturbed
def _thread_counter() -> Callable[[], int]:
    """Start Numba's threads; return what tells how many of them a parallel loop would use."""
    from edgeconv.compiling import thread_counter

    return thread_counter()


@_Undisturbed
def _in_parallel() -> Callable[..., int]:
    """Return the parallel kernel."""
    from edgeconv import kernels

    entry_point: Callable[..., int] = kernels.process_in_parallel(3).entry_point
    return entry_point


@_Undisturbed
def for_frames(dimensions: int) -> tuple[Callable[..., int], Callable[..., int], type[Ring]]:
    """Return what streams need for frames of so many dimensions: `step`, `process` and `Ring`."""
    from edgeconv import kernels, layout

    kernels.copy_rows(1)
    step, process = kernels.step(dimensions), kernels.process(dimensions + 1)
    return step.entry_point, process.entry_point, layout.Ring
