"""The state of a stream as a value: to return to, to keep in a file, to move elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.arrays import described
from edgeconv.checkpoint import Checkpoint, CheckpointError, npz, read_checkpoint
from edgeconv.checkpoint.converted import check_prefix
from edgeconv.checkpoint.error import damaged, naming, shown
from edgeconv.checkpoint.safetensors import parse_object

FORMAT = "edgeconv state"
VERSION = 1
MOST_FRAMES = 2**62  # the counters of the kernels stay within 64 bits


@dataclass(frozen=True, eq=False, repr=False)
class StreamState:
    """
    What a stream remembers, without vector width or position in the ring.

    Attributes
    ----------
    frames : ndarray, float32, (B, C, K - 1)
        The latest frames, oldest first, read-only; B is 1 without a batch.
    frames_in : ndarray, int64, (B,)
        How many frames each row took, read-only.
    batch_size : int or None
        As the stream was opened.
    channels, kernel_size : int
        C and K.
    causal : bool
        Whether the module is causal.
    weights : str
        SHA-256 of the module's weight and bias as little-endian float32, in hexadecimal.
    """

    frames: NDArray[np.float32]
    frames_in: NDArray[np.int64]
    batch_size: int | None
    channels: int
    kernel_size: int
    causal: bool
    weights: str

    def __post_init__(self) -> None:
        rows = 1 if self.batch_size is None else self.batch_size
        shape = (rows, self.channels, self.kernel_size - 1)
        for name, dtype, expected in (
            ("frames", np.float32, shape),
            ("frames_in", np.int64, (rows,)),
        ):
            array = np.array(getattr(self, name))  # a copy: the state is a value
            if array.dtype != dtype or array.shape != expected:
                found = f"{array.dtype} {array.shape}"
                raise ValueError(f"`{name}` must be {np.dtype(dtype)} {expected}, got {found}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for frames_in in self.frames_in.tolist():
            if not 0 <= frames_in <= MOST_FRAMES:
                raise ValueError(f"`frames_in` must be from 0 to 2**62, got {frames_in}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies come about as the original did, checked and read-only.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        return f"<StreamState after {self.frames_in.tolist()} frames, {self.geometry}>"

    @property
    def geometry(self) -> dict[str, Any]:
        """What a stream must have in common with the one that the state comes from."""
        names = ("batch_size", "channels", "kernel_size", "causal", "weights")
        return {name: getattr(self, name) for name in names}


def save_state(
    path: str | os.PathLike[str], state: StreamState | Mapping[str, StreamState]
) -> None:
    """
    Write a state, or those of several streams by prefix, to a file.

    Parameters
    ----------
    path : str or path-like
        Exactly this file is written, a `.npz` that any NumPy can read, in one step.
    state : StreamState or mapping of str to StreamState
        From `Stream.snapshot` or `Streams.snapshot`.

    Raises
    ------
    TypeError, ValueError
        If `state` is anything else, or a prefix could not be read back as it is.
    OSError
        If the file cannot be written; it is then as it was.
    """
    states = {"": state} if isinstance(state, StreamState) else state
    if not isinstance(states, Mapping) or not states:
        raise TypeError(f"`state` must be one or more stream states, got {described(states)}")
    arrays: dict[str, NDArray[Any]] = {}
    for prefix, one in states.items():
        if not isinstance(prefix, str) or not isinstance(one, StreamState):
            raise TypeError(
                f"`state` must map prefixes to stream states, got {described(prefix)} and "
                f"{described(one)}"
            )
        check_prefix(prefix)
        arrays[_name(prefix, "frames")] = one.frames.astype("<f4")
        arrays[_name(prefix, "frames_in")] = one.frames_in.astype("<i8")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "single": isinstance(state, StreamState),
        "states": {prefix: one.geometry for prefix, one in states.items()},
    }
    npz.write(path, {npz.HEADER: np.array(json.dumps(header)), **arrays})


def load_state(path: str | os.PathLike[str]) -> StreamState | dict[str, StreamState]:
    """
    Read what `save_state` wrote.

    Parameters
    ----------
    path : str or path-like
        The file. Nothing in it is executed.

    Returns
    -------
    StreamState or dict of str to StreamState
        As it was saved.

    Raises
    ------
    CheckpointError
        If it is another file, a damaged one, or of a newer version.
    OSError
        If it is missing, or may not be read.
    """
    checkpoint = read_checkpoint(path)
    with naming(checkpoint.path, checkpoint.format):
        header = parse_object(checkpoint.header or "{}", "the header of a state")
        if header.get("format") != FORMAT:
            raise CheckpointError(
                "the file must be what `save_state` wrote",
                f"{checkpoint.format} of another kind",
                "give the path of a saved state",
            )
        version, described_states = header.get("version"), header.get("states")
        if type(version) is int and version > VERSION:
            raise CheckpointError(
                f"a state must be of version {VERSION} or older",
                f"version {version}",
                "upgrade edgeconv",
            )
        if type(version) is not int or version < 1 or not isinstance(described_states, dict):
            raise damaged("the header of a state must state its version and streams", "others")
        states = {
            prefix: _state(checkpoint, prefix, geometry)
            for prefix, geometry in described_states.items()
        }
        single = header.get("single") is True
        if not states or (single and list(states) != [""]):
            expected = "states must go by prefix, a single one by none"
            raise damaged(expected, shown(str(list(states))))
        return states[""] if single else states


def _state(checkpoint: Checkpoint, prefix: str, geometry: object) -> StreamState:
    """Check and read the state of one stream."""
    match geometry:
        case {
            "batch_size": int() | None as batch_size,
            "channels": int(channels),
            "kernel_size": int(kernel_size),
            "causal": bool(causal),
            "weights": str(weights),
            **rest,
        } if not rest and bool not in map(type, (batch_size, channels, kernel_size)):
            pass
        case _:
            raise damaged(
                f"{shown(prefix)} must have the geometry of a stream", shown(str(geometry))
            )
    names = [_name(prefix, part) for part in ("frames", "frames_in")]
    for name in names:
        if name not in checkpoint:
            raise damaged(f"{shown(name)} must be there", "no such array")
    frames, frames_in = (checkpoint[name] for name in names)
    try:
        return StreamState(frames, frames_in, batch_size, channels, kernel_size, causal, weights)
    except ValueError as error:
        expected = f"{shown(prefix)} must be the state of a stream"
        raise damaged(expected, shown(str(error))) from error


def _name(prefix: str, part: str) -> str:
    return f"{prefix}.{part}" if prefix else part
