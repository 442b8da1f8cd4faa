"""The streams of a recogniser's blocks, as one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeconv.arrays import described
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.state import StreamState
from edgeconv.stream import Stream


class Streams(Mapping[str, Stream]):
    """
    One stream for each of several modules, by prefix.

    Parameters
    ----------
    modules : mapping of str to DepthwiseConvolution
        What `load_all` returns, for example.
    batch_size : int, optional
        As for `DepthwiseConvolution.stream`, for all of them.

    Notes
    -----
    Each stream changes wholly or not at all. An exception that a signal handler raises in the
    middle of `reset`, `flush` or `restore`, or a stream that another thread uses, can leave some of
    them changed: call it again.

    Examples
    --------
    >>> streams = Streams(load_all("encoder.npz"))
    >>> for prefix, stream in streams.items():
    ...     y = stream.step(frames[prefix])
    """

    def __init__(
        self, modules: Mapping[str, DepthwiseConvolution], batch_size: int | None = None
    ) -> None:
        if not isinstance(modules, Mapping):
            raise TypeError(f"`modules` must be a mapping, got {described(modules)}")
        for prefix, conv in modules.items():
            if not isinstance(conv, DepthwiseConvolution):
                raise TypeError(
                    f"`modules[{prefix!r}]` must be a DepthwiseConvolution, got {described(conv)}"
                )
        self._streams = {prefix: conv.stream(batch_size) for prefix, conv in modules.items()}

    def __getitem__(self, prefix: str) -> Stream:
        return self._streams[prefix]

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def __copy__(self) -> Streams:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"<Streams of {', '.join(map(repr, self._streams))}>"

    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """Reset every stream, or these rows of it."""
        for stream in self.values():
            stream.reset(rows)

    def flush(self, rows: int | Sequence[int] | None = None) -> dict[str, NDArray[np.float32]]:
        """Flush every stream, or these rows of it; return what each had left."""
        return {prefix: stream.flush(rows) for prefix, stream in self.items()}

    def snapshot(self) -> dict[str, StreamState]:
        """Return the states of all streams."""
        return {prefix: stream.snapshot() for prefix, stream in self.items()}

    def restore(self, states: Mapping[str, StreamState]) -> None:
        """
        Restore every stream; none of them if a state does not fit.

        Raises
        ------
        TypeError, ValueError
            If `states` are not those of the same modules and batch size.
        """
        if not isinstance(states, Mapping):
            raise TypeError(f"`states` must be a mapping, got {described(states)}")
        if states.keys() != self.keys():
            raise ValueError(f"`states` must be those of {list(self)}, got {list(states)}")
        for prefix, stream in self.items():
            stream._check_state(states[prefix], f"states[{prefix!r}]")
        for prefix, stream in self.items():
            stream.restore(states[prefix])
