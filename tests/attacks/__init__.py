"""Files that attack their reader: each table holds the content and the outcome by name.

Instead of the content it may be what returns it; the outcome is the tensors that must be read, or
a pattern that the error must match.
"""

import contextlib
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np

MEMORY = 2**28  # bytes that a file may cost: the largest is one of some MB
SECONDS = 100  # of processor time, on slow machines and under coverage; a hang takes all of it


def wrong(found, outcome, path):
    """Say what is wrong with what a reader returned or raised; None if nothing is."""
    if isinstance(found, Exception):
        line = str(found)
        if type(found).__name__ != "CheckpointError" or "MemoryError" in line:
            return f"raised {found!r}"
        if not line.startswith(f"{path}: ") or not line.isprintable() or len(line) > 1000:
            return f"an error that is not one line about the file: {line[:2000]!r}"
        matches = isinstance(outcome, str) and re.search(outcome, line)
        return None if matches else f"another error: {line}"
    return f"loaded {sorted(found)}" if isinstance(outcome, str) else different(found, outcome)


def different(found, expected):
    """Say where two mappings of arrays differ in names, order, types, shapes or bits."""
    if list(found) != list(expected):
        return f"has the names {list(found)[:20]}"
    for name, array in expected.items():
        array, other = np.asarray(array), np.asarray(found[name])
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return f"{name!r} is {other.dtype} {other.shape}"
        if _content(array) != _content(other):
            return f"{name!r} has other values"
    return None


def _content(array):
    """Return the bytes of an array, once if it repeats them to be larger than any memory."""
    if array.nbytes > MEMORY:
        array = array[tuple(slice(None if step else 1) for step in array.strides)]
    return array.tobytes()


@contextlib.contextmanager
def bounded(memory=MEMORY, seconds=SECONDS):
    """Let the block have so much more memory, and so much processor time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = signal.signal(signal.SIGVTALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def _too_long(*_):
    raise TimeoutError("took too long")
