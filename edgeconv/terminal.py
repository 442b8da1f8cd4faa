"""What the commands share: errors of one line, tables, and signs of life."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic

PATIENCE = 1.0  # seconds until anything is said about waiting
REDRAW = 0.1
ERASE = "\r\033[K"
COMPILING = "Compiling for this processor; only the first run on a machine waits for it."


class CommandError(Exception):
    """Why a command cannot go on: one line that names the file and the remedy."""


def printable(text: str) -> str:
    """Escape what would not print as part of one line: names in files can hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Align columns, the first one to the left and the others to the right."""
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in texts
    )


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that draws on a terminal how many of `total` are done, if that takes long."""
    due = monotonic() + PATIENCE if sys.stderr.isatty() else float("inf")
    drawn = False

    def show(done: int) -> None:
        nonlocal due, drawn
        now = monotonic()
        if now >= due:
            due, drawn = now + REDRAW, True
            bar = "#" * (30 * done // total)
            print(f"\r{what} [{bar:.<30}] {done / total:4.0%}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if drawn:
            print(ERASE, end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def explaining_compilation() -> Iterator[None]:
    """Say on a terminal what a block that takes longer than a second waits for.

    A CommandError where Numba is told not to compile at all.
    """
    say = partial(print, ERASE + COMPILING, file=sys.stderr, flush=True)
    timer = threading.Timer(PATIENCE, say)
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    except RuntimeError as error:
        if "NUMBA_DISABLE_JIT" not in str(error):
            raise
        raise CommandError(str(error)) from error
    finally:
        timer.cancel()
