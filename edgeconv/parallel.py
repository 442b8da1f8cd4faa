"""Threads: for whole signals, when that is safe, and for what no signal handler may disturb."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

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

Result = TypeVar("Result")

_gate = np.zeros(1, np.int64)  # kept by compiled code: no signal handler can leave it closed
_is_forked_child = False


def _mark_forked_child() -> None:
    global _is_forked_child
    _is_forked_child = True  # OpenMP kills a forked child at its first parallel loop


os.register_at_fork(after_in_child=_mark_forked_child)


def process(arguments: tuple[Any, ...], work: int) -> int:
    """Call the kernel `process`, in parallel where `work` multiply-adds make it pay.

    One parallel loop at a time in a process: a second one aborts it where Numba's threading layer
    is `workqueue`. Whoever finds the gate closed runs the serial kernel.
    """
    # These import Numba; a fork is to be noticed before.
    from edgeconv import kernels
    from edgeconv.compiling import n_threads

    if work >= PARALLEL_WORK and not _is_forked_child:
        threads = n_threads()
        if threads > 1:
            answer = _in_parallel()(*arguments, PARTS * threads, _gate)
            if answer != kernels.GATE_CLOSED:
                return int(answer)
    return int(kernels.process(3).entry_point(*arguments))


@functools.cache
def _in_parallel() -> Callable[..., int]:
    """Return the parallel kernel."""

    def prepare() -> Callable[..., int]:
        from edgeconv import kernels

        entry_point: Callable[..., int] = kernels.process_in_parallel(3).entry_point
        return entry_point

    return _undisturbed(prepare)


@functools.cache
def for_frames(dimensions: int) -> tuple[Callable[..., int], Callable[..., int], type[Ring]]:
    """Return what streams need for frames of so many dimensions: `step`, `process` and `Ring`."""

    def prepare() -> tuple[Callable[..., int], Callable[..., int], type[Ring]]:
        from edgeconv import kernels, layout

        kernels.copy_rows(1)
        step, process = kernels.step(dimensions), kernels.process(dimensions + 1)
        return step.entry_point, process.entry_point, layout.Ring

    return _undisturbed(prepare)


def _undisturbed(function: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own: signal handlers raise in the main thread only.

    Neither Numba nor LLVM survives an exception in the middle of importing or compiling. Where a
    handler raises, the function goes on, and what it has compiled is there for the next call.
    """
    results: list[Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="edgeconv compiles")
    thread.start()
    thread.join()
    for failure in failures:
        raise failure
    return results[0]
