"""One signal, or a batch of them in step, through a convolution: by frames or by chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from edgeconv.arrays import (
    FLOAT32,
    as_float32,
    check_cache,
    check_lengths,
    check_out,
    check_rows,
    check_shape,
    described,
    float_array,
    is_array,
    is_integer,
)
from edgeconv.state import StreamState

if TYPE_CHECKING:
    from edgeconv.convolution import DepthwiseConvolution

_REFUSED = -1  # kernels.REFUSED, without importing Numba
_ALL_FRAMES = np.empty(0, np.int64)  # for the kernels: no row gets less than the chunk


class Stream:
    """
    The state of one signal on its way through a module; `DepthwiseConvolution.stream` opens it.

    Notes
    -----
    Outputs are bit-identical to those of the module called on the whole signal, for every way of
    cutting it into frames and chunks. Work per frame is constant and the state never grows. A
    stream belongs to one thread at a time; its module may be shared.

    The latest frames lie in a ring whose every row is written twice, so that each window of K
    frames is one run of memory, and no frame costs more because the ring wraps. A row's ring and
    its counter lie side by side, and change in one call into compiled code or not at all.
    """

    def __init__(self, conv: DepthwiseConvolution, batch_size: int | None) -> None:
        # These import Numba, which only those who convolve wait for.
        from edgeconv import kernels, layout
        from edgeconv.convolution import DepthwiseConvolution

        if not isinstance(conv, DepthwiseConvolution):
            raise TypeError(f"`conv` must be a DepthwiseConvolution, got {described(conv)}")
        if batch_size is not None:
            if not is_integer(batch_size):
                raise TypeError(f"`batch_size` must be an integer, got {described(batch_size)}")
            if batch_size < 1:
                raise ValueError(f"`batch_size` must be positive, got {batch_size}")
            batch_size = int(batch_size)
        self._conv = conv
        self._latency = 0 if conv.causal else (conv.kernel_size - 1) // 2
        self._batch_size = batch_size
        rows = 1 if batch_size is None else batch_size
        self._frame_shape = (conv.channels,) if batch_size is None else (rows, conv.channels)
        self._cache_shape = (rows, conv.channels, conv.kernel_size - 1)
        self._ring = ring = layout.Ring(rows, conv.channels, conv.kernel_size)
        self._state = (conv._taps, ring.memory, conv.channels, self._latency)
        self._step = kernels.step(len(self._frame_shape)), len(self._frame_shape)
        self._process = kernels.process(self._step[1] + 1), self._step[1] + 1

    @property
    def latency(self) -> int:
        """Frames by which the output lags the input: 0 if causal, else ``(K - 1) // 2``."""
        return self._latency

    @property
    def frames_in(self) -> int | NDArray[np.int64]:
        """Frames taken since the start of the signal; with a batch (B,) int64."""
        return self._counter(self._ring.frames_in)

    @property
    def frames_out(self) -> int | NDArray[np.int64]:
        """Frames returned since the start of the signal; with a batch (B,) int64."""
        return self._counter(np.maximum(self._ring.frames_in - self.latency, 0))

    def _counter(self, frames: NDArray[np.int64]) -> int | NDArray[np.int64]:
        return int(frames[0]) if self._batch_size is None else frames.copy()

    def step(
        self, frame: NDArray[np.floating[Any]], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32] | None:
        """
        Take one frame; return the output frame that is now final.

        Parameters
        ----------
        frame : ndarray of floats, (C,), or (B, C) with a batch
            Computed in float32.
        out : ndarray, float32, C-contiguous, the same shape, optional
            Where to write the output. It may not overlap `frame`.

        Returns
        -------
        ndarray, float32, the same shape, or None
            `out` or a new array. None while the latency is unmet: `out` is then untouched.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described. The stream is then as before the call.
        """
        y = np.empty(self._frame_shape, np.float32) if out is None else out
        n_outputs = self._run(self._step, frame, y)
        if n_outputs == _REFUSED:
            self._check_even(self._n_outputs(1), "must have the same number of outputs")
            n_outputs = self._run_checked(
                self._step, "frame", frame, self._frame_shape, y, self._frame_shape
            )
        return y if n_outputs else None

    @overload
    def process(
        self, chunk: NDArray[np.floating[Any]], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]: ...

    @overload
    def process(
        self,
        chunk: NDArray[np.floating[Any]],
        out: NDArray[np.float32] | None = None,
        *,
        lengths: Sequence[int] | NDArray[np.integer[Any]],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...

    def process(
        self,
        chunk: NDArray[np.floating[Any]],
        out: NDArray[np.float32] | None = None,
        *,
        lengths: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.int64]]:
        """
        Take a chunk of any number of frames; return the output frames that are now final.

        Parameters
        ----------
        chunk : ndarray of floats, (T, C), or (B, T, C) with a batch
            Computed in float32. T may be 0.
        out : ndarray, float32, C-contiguous, (n, C), or (B, n, C) with a batch, optional
            Where to write the output, with ``n = max(0, frames_in + T - latency) - frames_out``,
            or the largest of these. It may not overlap `chunk`.
        lengths : integers from 0 to T, (B,), optional
            Row b takes only its first ``lengths[b]`` frames; with 0 it sits out this call.

        Returns
        -------
        y : ndarray, float32, (n, C), or (B, n, C) with a batch
            `out` or a new array. With `lengths`, zeros after each row's own outputs.
        counts : ndarray, int64, (B,)
            Only with `lengths`: how many outputs each row has.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described, or if the rows are at different frames and there
            are no `lengths`. The stream is then as before the call.
        """
        if (
            lengths is None
            and out is not None
            and self._run(self._process, chunk, out, 0, _ALL_FRAMES) != _REFUSED
        ):
            return out
        n_frames = chunk.shape[-2] if is_array(chunk) and chunk.ndim > 1 else 0
        expected = (*self._frame_shape[:-1], "T", self._frame_shape[-1])
        if lengths is not None:
            check_shape("chunk", float_array("chunk", chunk), expected, self._opened)
            lengths = check_lengths(lengths, self._batch_size, n_frames)
            counts = self._n_outputs(lengths)
            shape = self._chunk_shape(int(counts.max()))
            y = np.empty(shape, np.float32) if out is None else out
            self._run_checked(self._process, "chunk", chunk, expected, y, shape, 0, lengths)
            return y, counts
        shape = self._chunk_shape(int(self._n_outputs(n_frames)[0]))
        y = np.empty(shape, np.float32) if out is None else out
        if self._run(self._process, chunk, y, 0, _ALL_FRAMES) == _REFUSED:
            self._check_even(self._ring.frames_in, "must be at the same frame")
            self._run_checked(self._process, "chunk", chunk, expected, y, shape, 0, _ALL_FRAMES)
        return y

    def flush(self, rows: int | Sequence[int] | None = None) -> NDArray[np.float32]:
        """
        End the signal: return the outputs that still waited for frames, then start anew.

        Parameters
        ----------
        rows : int or integers, optional
            Only these rows of the batch; the others go on.

        Returns
        -------
        ndarray, float32, (n, C), or (len(rows), n, C) with a batch
            The last ``min(latency, frames_in)`` outputs, for which zeros follow the signal. Where
            rows have different numbers of them, zeros after each row's own. The rows are then as
            after `reset`.
        """
        chosen = check_rows(rows, self._batch_size)
        frames_in = self._ring.frames_in[chosen]
        n = min(self.latency, int(frames_in.max(initial=0)))
        batch_size = None if self._batch_size is None else len(frames_in)
        leading = () if batch_size is None else (batch_size,)
        y = np.empty((*leading, n, self._conv.channels), np.float32)
        if n:  # the end happens to a copy: an interrupt leaves the signal either whole or over
            ending = _restored(self._conv, batch_size, self._ring.read(chosen), frames_in)
            nothing = np.empty((*leading, 0, self._conv.channels), np.float32)
            lengths = np.zeros(len(frames_in), np.int64)
            self._taken(ending._run(ending._process, nothing, y, self.latency, lengths))
        self.reset(rows)
        return y

    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """
        Start a new signal: as if the stream had just been opened.

        Parameters
        ----------
        rows : int or integers, optional
            Only these rows of the batch; the others go on.
        """
        self._ring.memory[check_rows(rows, self._batch_size)] = 0

    def snapshot(self) -> StreamState:
        """Return the stream's state, a value that no later call changes."""
        return StreamState(self.cache, self._ring.frames_in, **self._geometry())

    def _geometry(self) -> dict[str, Any]:
        conv = self._conv
        return {
            "batch_size": self._batch_size,
            "channels": conv.channels,
            "kernel_size": conv.kernel_size,
            "causal": conv.causal,
            "weights": conv._fingerprint,
        }

    def restore(self, state: StreamState) -> None:
        """
        Go back, or on, to a state: the outputs that follow are those that followed it.

        Parameters
        ----------
        state : StreamState
            From `snapshot` of a stream of the same weights and batch size, on any machine.

        Raises
        ------
        TypeError, ValueError
            If it is anything else. The stream is then as before the call.
        """
        self._check_state(state)
        restored = _restored(self._conv, self._batch_size, state.frames, state.frames_in)
        self._ring.memory[...] = restored._ring.memory

    def _check_state(self, state: StreamState, argument: str = "state") -> None:
        """Raise the TypeError or ValueError of `restore`."""
        if not isinstance(state, StreamState):
            raise TypeError(f"`{argument}` must be a StreamState, got {described(state)}")
        for name, own in self._geometry().items():
            value = getattr(state, name)
            if value != own:
                raise ValueError(
                    f"`{argument}` must have {name}={own!r}, got {value!r}: {self._conv}"
                )

    @property
    def cache(self) -> NDArray[np.float32]:
        """
        The last K - 1 input frames, oldest first: (B, C, K - 1), or (1, C, K - 1) without a batch.

        Reading gives a copy, which fits ``conv(x, cache=...)``. Assigning replaces these frames,
        if the module is causal, and leaves the counters; any float dtype will do.
        """
        return self._ring.read()

    @cache.setter
    def cache(self, cache: NDArray[np.floating[Any]]) -> None:
        if not self._conv.causal:
            raise ValueError(
                f"`cache` cannot be assigned: {self._conv} is not causal, and the state of its "
                "stream is more than the last K - 1 frames"
            )
        self._ring.write(check_cache(cache, self._cache_shape, self._conv))

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither vector width nor ring position belongs to the signal: copies go to any CPU.
        return _restored, (self._conv, self._batch_size, self.cache, self._ring.frames_in.copy())

    def __repr__(self) -> str:
        return (
            f"<Stream of {self._conv}, batch_size={self._batch_size}, {self.frames_in} frames in>"
        )

    def _n_outputs(self, n_frames: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many outputs of each row become final with `n_frames` more frames."""
        ready = self._ring.frames_in - self._latency
        counts: NDArray[np.int64] = np.maximum(0, ready + n_frames) - np.maximum(0, ready)
        return counts

    def _check_even(self, values: NDArray[np.int64], rule: str) -> None:
        """Refuse frames for all rows if a value that they must share differs."""
        if (values != values[0]).any():
            raise ValueError(
                f"rows {rule}, got rows after {self._ring.frames_in.tolist()} frames with a "
                f"latency of {self.latency}; call `process(chunk, lengths=...)`, which takes each "
                "row where it is and tells how many outputs it has"
            )

    def _chunk_shape(self, n_frames: int) -> tuple[int, ...]:
        return (*self._frame_shape[:-1], n_frames, self._frame_shape[-1])

    def _run(self, kernel: tuple[Any, int], x: Any, y: Any, *rest: Any) -> int:
        """Call a kernel if its arguments are of the types that it takes."""
        call, dimensions = kernel
        if (
            type(x) is np.ndarray
            and type(y) is np.ndarray
            and x.ndim == y.ndim == dimensions
            and x.dtype is FLOAT32
            and y.dtype is FLOAT32
            and x.flags.c_contiguous
            and y.flags.carray  # and writable, and aligned
        ):
            return call(x, y, *self._state, *rest)  # type: ignore[no-any-return]  # Numba's
        return _REFUSED

    def _run_whole(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        lengths: NDArray[np.int64] | None,
        work: int | None = None,
    ) -> None:
        """Push whole signals (B, T, C), and at their end what `flush` pushes."""
        from edgeconv import parallel

        work = x.size * self._conv.kernel_size if work is None else work
        rest = (self.latency, _ALL_FRAMES if lengths is None else lengths)
        self._taken(parallel.process_signal(x, y, *self._state, *rest, work=work))

    def _run_checked(
        self, kernel: tuple[Any, int], name: str, x: Any, shape: tuple[int | str, ...], y: Any,
        y_shape: tuple[int, ...], *rest: Any,
    ) -> int:  # fmt: skip
        """Say what is wrong with refused arguments, or convert them and call the kernel."""
        check_shape(name, float_array(name, x), shape, self._opened)
        check_out(y, y_shape, name, x, self._opened)
        out = y.view(FLOAT32, np.ndarray)
        return self._taken(self._run(kernel, as_float32(x), out, *rest))

    def _taken(self, n_outputs: int) -> int:
        """Return what a kernel answered to arguments that have been checked."""
        if n_outputs == _REFUSED:
            raise RuntimeError(f"edgeconv is inconsistent: {self} refuses what it checked")
        return n_outputs

    @property
    def _opened(self) -> str:
        """What shapes are expected by, for messages."""
        return f"{self._conv}, stream opened with batch_size={self._batch_size}"


def _restored(
    conv: DepthwiseConvolution,
    batch_size: int | None,
    cache: NDArray[np.float32],
    frames_in: NDArray[np.int64],
) -> Stream:
    stream = Stream(conv, batch_size)
    stream._ring.frames_in[:] = frames_in
    stream._ring.write(cache)
    return stream
