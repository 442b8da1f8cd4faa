"""The one error of everything that reads checkpoints and their configurations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["CheckpointError", "damaged", "naming", "shown"]

SHOWN_CHARACTERS = 120


class CheckpointError(ValueError):
    """
    A checkpoint, a tensor in it, or the configuration beside it, that cannot be used.

    Parameters
    ----------
    expected : str
        What was expected, and of which key or record.
    found : str
        What was found instead.
    remedy : str
        What the reader of the message can do.
    path : str, optional
        The file; None for tensors that came from memory.

    Attributes
    ----------
    format : str or None
        The file's format as `Checkpoint.format` calls it; None if it is not known.
    record : str or None
        The part of the file that was read, where `expected` does not name it.

    Notes
    -----
    The message is one line: ``{path}: {format}: {record}: {expected}, found {found}; {remedy}``,
    without those of the first three that are None.
    """

    def __init__(self, expected: str, found: str, remedy: str, path: str | None = None) -> None:
        super().__init__(expected, found, remedy, path)
        self.expected = expected
        self.found = found
        self.remedy = remedy
        self.path = path
        self.format: str | None = None
        self.record: str | None = None

    def __str__(self) -> str:
        where = [_escaped(part) for part in (self.path, self.format, self.record) if part]
        return ": ".join([*where, f"{self.expected}, found {self.found}; {self.remedy}"])


def damaged(expected: str, found: str) -> CheckpointError:
    """Return the error for a file that breaks the rules of its own format."""
    return CheckpointError(expected, found, "the file is damaged: download or copy it again")


@contextlib.contextmanager
def naming(
    path: str | os.PathLike[str] | None = None,
    file_format: str | None = None,
    record: str | None = None,
) -> Iterator[None]:
    """Let the errors raised inside name the file, its format and a record, if they do not yet."""
    try:
        yield
    except CheckpointError as error:
        if path is not None and error.path is None:
            error.path = os.fspath(path)
        error.format = error.format or file_format
        error.record = error.record or record
        raise


def shown(text: str) -> str:
    """Quote text from a file for a message: on one line, printable, and not too long."""
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[: SHOWN_CHARACTERS // 2]}...{text[-SHOWN_CHARACTERS // 2 :]}"
    return f"'{_escaped(text)}'"


def _escaped(text: str) -> str:
    """Replace what a terminal would not print as one line by escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
