"""One signal, or a batch of them in step, through a convolution: by frames or by chunks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from edgeconv import parallel
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
    owns_memory,
)
from edgeconv.files import package_stamp
from edgeconv.state import StreamState

if TYPE_CHECKING:
    from edgeconv.convolution import DepthwiseConvolution

_REFUSED, _IN_USE = -1, -2  # those of `kernels`, without importing Numba
_IMPORTED = package_stamp()
_ALL_FRAMES = np.empty(0, np.int64)  # for the kernels: no row gets less than the chunk


class Stream:
    """
    The state of one signal on its way through a module; `DepthwiseConvolution.stream` opens it.

    Notes
    -----
    Outputs are bit-identical to those of the module called on the whole signal, for every way of
    cutting it into frames and chunks. Neither work per frame nor the state grows. A stream belongs
    to one thread at a time; its module may be shared.

    The latest frames lie in a ring whose every row is written twice, so that each window of K
    frames is one run of memory, and no frame costs more because the ring wraps. Ring and counters
    change in one call into compiled code or not at all, whatever signal handlers raise.

    An `out` that overlaps the input is an error, even as another map of the same file or shared
    memory. To notice that, a call looks up what is mapped where, which takes about a millisecond,
    if the memory of both is not NumPy's own.
    """

    def __init__(self, conv: DepthwiseConvolution, batch_size: int | None) -> None:
        # These import Numba, which only those who convolve wait for. Kernels trust their callers:
        # those of another version, which was installed meanwhile, must not be theirs.
        if "edgeconv.kernels" not in sys.modules and package_stamp() != _IMPORTED:
            raise RuntimeError("edgeconv was replaced after this process began: start it again")
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
        self._dimensions = len(self._frame_shape)  # of a frame
        self._step, self._process, ring_of = parallel.for_frames(self._dimensions)
        self._ring = ring = ring_of(rows, conv.channels, conv.kernel_size)
        self._state = (conv._taps, ring.memory, conv.channels, self._latency)

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
        # Spelled out, because each call from here would add a tenth to the time of a short step.
        if (
            type(frame) is ndarray
            and type(y) is ndarray
            and frame.dtype is FLOAT32
            and y.dtype is FLOAT32
            and frame.ndim == y.ndim == self._dimensions
            and y.flags.writeable
            and (
                (base := y.base) is None
                or (type(base) is ndarray and base.base is None)
                or owns_memory(frame)
            )
        ):
            taps, memory, channels, latency = self._state
            n_outputs = self._step(frame, y, taps, memory, channels, latency)
        else:
            n_outputs = _REFUSED
        if n_outputs < 0:
            even = self._n_outputs(self._ring.frames_in, 1)
            self._explain(n_outputs, even, "must have the same number of outputs")
            shape = self._frame_shape
            n_outputs = self._run_checked(self._step, "frame", frame, shape, y, shape)
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
        if (  # what follows would add a third to a short call
            lengths is None
            and out is not None
            and self._are_plain(chunk, out)
            and self._process(chunk, out, *self._state, 0, _ALL_FRAMES) >= 0
        ):
            return out
        expected = (*self._frame_shape[:-1], "T", self._frame_shape[-1])
        n_frames = chunk.shape[-2] if is_array(chunk) and chunk.ndim > 1 else 0
        frames_in = self._ring.frames_in.copy()
        valid, counts = _ALL_FRAMES, self._n_outputs(frames_in, n_frames)
        if lengths is not None:
            check_shape("chunk", float_array("chunk", chunk), expected, self._opened)
            valid = check_lengths(lengths, self._batch_size, n_frames)
            counts = self._n_outputs(frames_in, valid)
        shape = (*self._frame_shape[:-1], int(counts.max()), self._frame_shape[-1])
        y = np.empty(shape, np.float32) if out is None else out
        answer = _REFUSED
        if self._are_plain(chunk, y) and y.shape == shape:
            answer = self._process(chunk, y, *self._state, 0, valid)
        if answer < 0:
            if lengths is None:
                self._explain(answer, self._ring.frames_in, "must be at the same frame")
            self._run_checked(self._process, "chunk", chunk, expected, y, shape, 0, valid)
        if lengths is None:
            return y
        if (self._ring.frames_in != frames_in + valid).any():  # the counts are not those of `y`
            raise self._ring.in_use()
        return y, counts

    def _are_plain(self, chunk: Any, y: Any) -> bool:
        """Tell whether the kernels can take these arrays if their sizes are right."""
        return (
            type(chunk) is ndarray
            and type(y) is ndarray
            and chunk.dtype is FLOAT32
            and y.dtype is FLOAT32
            and chunk.ndim == y.ndim == self._dimensions + 1
            and y.flags.writeable
            and (y.base is None or owns_memory(y) or owns_memory(chunk))
        )

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
            rows have different numbers of them, zeros after each row's own: look at `frames_in`
            before. The rows are then as after `reset`.
        """
        chosen = check_rows(rows, self._batch_size)
        latest, frames_in = self._ring.read(chosen)
        n = min(self.latency, int(frames_in.max(initial=0)))
        batch_size = None if self._batch_size is None else len(frames_in)
        leading = () if batch_size is None else (batch_size,)
        y = np.empty((*leading, n, self._conv.channels), np.float32)
        if n:  # the end happens to a copy: an interrupt leaves the signal either whole or over
            ending = _restored(self._conv, batch_size, latest, frames_in)
            nothing = np.empty((*leading, 0, self._conv.channels), np.float32)
            lengths = np.zeros(len(frames_in), np.int64)
            ending._taken(ending._process(nothing, y, *ending._state, self.latency, lengths))
        self._ring.write(chosen, None, np.zeros_like(frames_in), expected=frames_in)
        return y

    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """
        Start a new signal: as if the stream had just been opened.

        Parameters
        ----------
        rows : int or integers, optional
            Only these rows of the batch; the others go on.
        """
        chosen = check_rows(rows, self._batch_size)
        self._ring.write(chosen, None, np.zeros_like(chosen))

    def snapshot(self) -> StreamState:
        """Return the stream's state, a value that no later call changes."""
        return StreamState(*self._read(), **self._geometry())

    def _read(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the latest frames and the counters of all rows."""
        return self._ring.read(check_rows(None, self._batch_size))

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
        self._ring.write(check_rows(None, self._batch_size), state.frames, state.frames_in)

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
        return self._read()[0]

    @cache.setter
    def cache(self, cache: NDArray[np.floating[Any]]) -> None:
        if not self._conv.causal:
            raise ValueError(
                f"`cache` cannot be assigned: {self._conv} is not causal, and the state of its "
                "stream is more than the last K - 1 frames"
            )
        latest = check_cache(cache, self._cache_shape, self._conv)
        frames_in = self._ring.frames_in.copy()
        self._ring.write(check_rows(None, self._batch_size), latest, frames_in, frames_in)

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither vector width nor ring position belongs to the signal: copies go to any CPU.
        return _restored, (self._conv, self._batch_size, *self._read())

    def __repr__(self) -> str:
        return (
            f"<Stream of {self._conv}, batch_size={self._batch_size}, {self.frames_in} frames in>"
        )

    def _n_outputs(
        self, frames_in: NDArray[np.int64], n_frames: int | NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return how many outputs of each row become final with `n_frames` more frames."""
        ready = frames_in - self._latency
        counts: NDArray[np.int64] = np.maximum(0, ready + n_frames) - np.maximum(0, ready)
        return counts

    def _explain(self, answer: int, even: NDArray[np.int64], rule: str) -> None:
        """Raise what a kernel's answer means, unless its arguments may have been the reason.

        Frames for all rows are refused if a value that these must share is not `even`.
        """
        if answer == _IN_USE:
            raise self._ring.in_use()
        if (even != even[0]).any():
            raise ValueError(
                f"rows {rule}, got rows after {self._ring.frames_in.tolist()} frames with a "
                f"latency of {self.latency}; call `process(chunk, lengths=...)`, which takes each "
                "row where it is and tells how many outputs it has"
            )

    def _run_whole(
        self,
        x: NDArray[np.floating[Any]],
        y: NDArray[np.float32],
        lengths: NDArray[np.int64] | None,
        mask: NDArray[np.bool_] | None = None,
        work: int | None = None,
    ) -> None:
        """Push whole signals (B, T, C), and at their end what `flush` pushes, piece by piece.

        A piece is some rows, or some frames of one row, converted and computed while no signal
        handler runs. What lies beyond a row's own frames in `y` is left as it is, or becomes zeros.
        """
        batch_size, n_frames, channels = x.shape
        taps = channels * self._conv.kernel_size
        most = max(1, parallel.PIECE_WORK // (taps + parallel.FRAME_WORK))
        at_once = max(1, most // max(1, n_frames))
        if lengths is None:
            lengths = np.full(batch_size, n_frames)
        for row in range(0, batch_size, at_once):
            rows = slice(row, row + at_once)
            end = n_frames if at_once > 1 else int(lengths[row])
            for start in range(0, max(1, end), most):
                stop = min(start + most, end)
                padding = self.latency if stop == end else 0
                out = y[rows, max(0, start - self.latency) : max(0, stop + padding - self.latency)]
                valid = np.minimum(lengths[rows] - start, stop - start)
                state = (self._state[0], self._ring.memory[rows], *self._state[2:])
                piece = x[rows, start:stop]
                if mask is not None:
                    piece = np.where(mask[rows, start:stop, None], x.dtype.type(0), piece)
                arguments = (as_float32(piece), out, *state, padding, valid)
                piece_work = len(valid) * (stop - start) * taps
                self._taken(parallel.process(arguments, piece_work if work is None else work))

    def _run_checked(
        self, kernel: Callable[..., int], name: str, x: Any, shape: tuple[int | str, ...], y: Any,
        y_shape: tuple[int, ...], *rest: Any,
    ) -> int:  # fmt: skip
        """Say what is wrong with the arguments, or convert them and call the kernel."""
        check_shape(name, float_array(name, x), shape, self._opened)
        check_out(y, y_shape, name, x, self._opened)
        out = y.view(FLOAT32, np.ndarray)
        return self._taken(kernel(as_float32(x), out, *self._state, *rest))

    def _taken(self, n_outputs: int) -> int:
        """Return what a kernel answered to arguments that have been checked."""
        if n_outputs == _IN_USE:
            raise self._ring.in_use()
        if n_outputs == _REFUSED:
            raise RuntimeError(
                f"{self} refuses what was checked: another thread used it meanwhile, or edgeconv "
                "is inconsistent"
            )
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
    stream._ring.write(check_rows(None, batch_size), cache, frames_in)
    return stream
