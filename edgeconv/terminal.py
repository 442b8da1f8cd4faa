"""What the commands share: errors of one line, tables, and a word while Numba compiles."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from edgeconv.checkpoint.error import printable

COMPILING = "compiling for this processor, once: 5 to 15 seconds on a PC, minutes on a board"
FORBIDDEN = "this process may not make memory executable, as Numba must to compile; take "
FORBIDDEN += "MemoryDenyWriteExecute=yes out of the systemd unit, or allow execmem in SELinux"


class CommandError(Exception):
    """Why a command cannot go on: one line that names the cause and the remedy."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status  # 2 for a wrong command line


def table(rows: Sequence[Sequence[object]]) -> str:
    """Align columns, the first one to the left and the others to the right."""
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in texts
    )


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Say on stderr, terminal or not, when the block compiles; explain why it cannot."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        raise CommandError("unset NUMBA_DISABLE_JIT: nothing here runs uncompiled")
    texts = iter([f"edgeconv: {COMPILING}\n"])  # once

    def say() -> None:
        print(end=next(texts, ""), file=sys.stderr, flush=True)

    try:
        from edgeconv.kernels import heard_compiling

        with heard_compiling(say):
            yield
    except OSError as error:
        if "executable memory" in str(error):
            raise CommandError(FORBIDDEN) from error
        raise
