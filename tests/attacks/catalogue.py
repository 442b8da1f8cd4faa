"""What an attack is, the list of all, and the bounds under which each is opened."""

import contextlib
import os
import re
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

W = np.float32([1, 2, 3])
"""The tensor ``w`` that most of the files hold."""

RAW = W.tobytes()

MEMORY = 2**28  # bytes that a file may cost: the largest is one of 6 MB
SECONDS = 100  # of processor time, on slow machines and under coverage; a hang takes all of it
ATTACKS = []


@dataclass(frozen=True, eq=False)
class Attack:
    """A file, and what must come of it."""

    group: str
    name: str
    make: Callable
    """Returns the content, or a function that makes the file at a path; of a payload, given the
    directory that it is to create."""
    outcome: dict | str
    """The tensors that must be read, or a regular expression that the error must match."""
    read: str
    """How it is opened: one of `readers.READERS`."""
    live: tuple
    """The loaders in `unsafe.LOADERS` that run its payload."""

    def write(self, path, marker):
        """Make the file at `path`."""
        content = self.make(marker) if self.live else self.make()
        if isinstance(content, bytes):
            Path(path).write_bytes(content)
        else:
            content(path)


def register(outcome, name, make, read="tensors", live=()):
    """Add an attack to the list."""
    group = make.__module__.rpartition(".")[2]
    ATTACKS.append(Attack(group, name, make, outcome, read, live))


def refused(match, **how):
    """Register the function below: what it makes must be a CheckpointError of that text."""
    return _decorator(match, how)


def loads(tensors=None, **how):
    """Register the function below: what it makes must load as these tensors, exactly."""
    return _decorator({"w": W} if tensors is None else tensors, how)


def _decorator(outcome, how):
    def decorate(make):
        register(outcome, make.__name__.strip("_").replace("_", " "), make, **how)
        return make

    return decorate


def wrong(found, outcome, path):
    """Say what is wrong with what a reader returned or raised; None if nothing is."""
    if isinstance(outcome, str):
        if not isinstance(found, Exception):
            return f"loaded {sorted(found)}"
        text = str(found)
        if type(found).__name__ != "CheckpointError":
            return f"raised {found!r}"
        if not text.startswith(f"{path}: ") or not text.isprintable() or len(text) > 1000:
            return f"an error that is not one line about the file: {text[:2000]!r}"
        return None if re.search(outcome, text) else f"another error: {text}"
    if isinstance(found, Exception):
        return f"raised {found!r}"
    return different(found, outcome)


def different(found, expected):
    """Say where two mappings of arrays differ in names, order, types, shapes or bits."""
    if list(found) != list(expected):
        return f"has the names {list(found)}"
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
