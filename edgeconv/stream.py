"""Signals through a convolution: by frames, by chunks, or whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from edgeconv import arguments
from edgeconv.arguments import FLOAT32, check_out, float32
from edgeconv.kernels import ring
from edgeconv.kernels.vectors import LANES

if TYPE_CHECKING:
    from edgeconv.convolution import DepthwiseConvolution

Frames: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.floating[Any]]
Lengths: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]
# Multiply-adds from which threads share a signal, some 20 ms on a PC: on a busy machine, two were
# up to 27 times slower than one on shorter work.
SHARED = 300_000_000


class Stream:
    """
    One signal, or a batch in step, through a module; `DepthwiseConvolution.stream` opens it.

    Outputs are those of the module called on the whole signal, bit for bit, however it is cut. A
    stream belongs to one thread at a time, which a RuntimeError says. If a signal handler raises
    during `step` or `process`, the call has happened or it has not, and `frames_in` tells.
    """

    def __init__(
        self, conv: DepthwiseConvolution, batch_size: int | None, has_step: bool = True
    ) -> None:
        if batch_size is not None:
            batch_size = arguments.integer("batch_size", batch_size, 1, 2**31)
        self._conv, self._batch_size = conv, batch_size
        self._leading = () if batch_size is None else (batch_size,)
        self._frame_shape = (*self._leading, conv.channels)
        self.latency = conv.latency
        self._missing = max(0, LANES - conv.channels)  # channels, up to a whole vector
        dimensions = len(self._frame_shape)
        geometry = conv.channels + self._missing, conv.latency, dimensions
        self._memory = ring.new_state(batch_size or 1, *geometry, conv._taps)
        self._headers = self._memory.view(np.int64)
        self._frames_in = self._headers[:, ring.FRAMES_IN]
        self._step = ring.kernel(dimensions) if has_step else None  # its compiling takes a while
        self._process = ring.kernel(dimensions + 1)
        self._process_rows = None if batch_size is None else ring.rows_kernel()

    @property
    def memory(self) -> int:
        """Bytes that the stream holds; the weights are the module's."""
        return self._memory.nbytes

    @property
    def frames_in(self) -> int | NDArray[np.int64]:
        """Frames taken since the start of the signal; with a batch (B,) int64."""
        return self._frames_in.copy() if self._leading else int(self._frames_in[0])

    @property
    def frames_out(self) -> int | NDArray[np.int64]:
        """Frames returned since the start of the signal; with a batch (B,) int64."""
        frames = np.maximum(0, self._frames_in - self.latency)
        return frames if self._leading else int(frames[0])

    def step(self, frame: Floats, out: Frames | None = None) -> Frames | None:
        """
        Take a frame of floats, (C,), or (B, C) with a batch; return the output that is now final.

        It is None while the latency is unmet, else a new array, float32, of the same shape, or
        `out`, which must be C-contiguous and may not overlap `frame`. Other arguments are a
        TypeError or ValueError, and the stream is as before the call.
        """
        y = np.empty(self._frame_shape, np.float32) if out is None else out
        n = self._try(self._step, frame, y)
        if n < 0:
            x = float32("frame", frame, self._frame_shape, self)
            y = check_out(y, self._frame_shape, x, frame, self)
            n = self._call(self._step, x, y)
        return (y if out is None else out) if n else None

    def process(
        self, chunk: Floats, out: Frames | None = None, *, lengths: Lengths | None = None
    ) -> Any:
        """
        Take a chunk of any number of frames; return the output frames that are now final.

        Parameters
        ----------
        chunk : ndarray of floats, (T, C), or (B, T, C) with a batch
            T may be 0.
        out : ndarray, float32, C-contiguous, (n, C), or (B, n, C) with a batch, optional
            For the output, ``n = max(0, frames_in + T - latency) - frames_out``, or the largest.
        lengths : integers from 0 to T, (B,), optional
            Row b takes only its first ``lengths[b]`` frames; with 0 it sits out this call. Without
            them, rows must have the same number of outputs.

        Returns
        -------
        y : ndarray, float32, (n, C), or (B, n, C) with a batch
            `out` or a new array. With `lengths`, zeros after each row's own outputs.
        counts : ndarray, int64, (B,)
            Only with `lengths`: how many outputs each row has.
        """
        if lengths is None:
            y = out
            if out is None and type(chunk) is ndarray and not self.latency:
                y = np.empty(chunk.shape, np.float32)
            if self._try(self._process, chunk, y) >= 0:
                return y
        x = float32("chunk", chunk, (*self._leading, "T", self._conv.channels), self)
        n_frames, kernel = x.shape[-2], self._process
        taken, valid = [n_frames], []
        if lengths is not None:
            if not self._leading:
                raise ValueError("`lengths` must be None for a stream without a batch")
            valid = [arguments.integers("lengths", lengths, 0, n_frames)]
            arguments.check_shape("lengths", valid[0], self._leading, self)
            kernel, taken = self._process_rows, valid[0].tolist()
        ready = (self._frames_in - self.latency).tolist()
        counts = [max(0, t + n) - max(0, t) for t, n in zip(ready, taken, strict=False)]
        shape = (*self._leading, max(counts), self._conv.channels)
        y = np.empty(shape, np.float32) if out is None else check_out(out, shape, x, chunk, self)
        self._call(kernel, x, y, *valid)
        y = y if out is None else out
        if lengths is None:
            return y
        for row, count in enumerate(counts):
            y[row, count:] = 0
        return y, np.array(counts)

    def _try(self, kernel: Any, x: Any, y: Any) -> int:
        """Call a kernel with arrays as they came: a negative answer unless it can take them."""
        if (  # what Numba tells by itself, by an error, is not asked here
            type(x) is type(y) is ndarray
            and x.dtype is y.dtype is FLOAT32
            and x.flags.c_contiguous
            and not self._missing
        ):
            try:
                n: int = kernel(x, y, self._memory)
                return n
            except TypeError as error:  # for an array that is read-only or misaligned
                if "No matching definition" not in str(error):
                    raise
        return int(ring.REFUSED)

    def _call(self, kernel: Any, x: Frames, y: Frames, *lengths: NDArray[np.int64]) -> int:
        """Call a kernel with arrays that were checked; raise what its answer stands for."""
        if not self._missing:
            n = int(kernel(x, y, self._memory, *lengths))
        elif np.shares_memory(x, y):
            n = ring.REFUSED
        else:  # zeros beside too few channels for a vector
            wide = np.empty((*y.shape[:-1], LANES), np.float32)
            n = int(kernel(widened(x, self._missing), wide, self._memory, *lengths))
            if n > 0:
                y[...] = wide[..., : self._conv.channels]
        if n == ring.BUSY:
            raise RuntimeError(arguments.IN_USE)
        if n < 0 and (self._frames_in != self._frames_in[0]).any():
            got = f"rows after {self._frames_in.tolist()} frames; call `process(..., lengths=...)`"
            raise ValueError(f"rows must have the same number of outputs, got {got}")
        if n < 0:
            raise ValueError("`out` must not overlap the input, got two arrays that share memory")
        return n

    def flush(self, rows: int | Sequence[int] | None = None) -> Frames:
        """
        End the signal: return the outputs that still waited for frames, then start anew.

        There are ``min(latency, frames_in)``, (n, C), or (len(rows), n, C) with a batch and zeros
        after each row's own. `rows`, an integer or several, are those to end; the others go on.
        """
        chosen = self._rows(rows)
        zeros = np.zeros((*self._leading, self.latency, self._conv.channels), np.float32)
        if self._leading:
            lengths = self.latency * np.bincount(chosen, minlength=len(self._memory))
            y: Frames = self.process(zeros, lengths=lengths)[0][chosen]
        else:
            y = self.process(zeros)
        self.reset(rows)
        return y

    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """Start a new signal, or only in these rows of the batch: as if just opened."""
        chosen = self._rows(rows)
        self._memory[chosen, ring.HEADER :] = 0
        self._frames_in[chosen] = 0

    def _rows(self, rows: Any) -> NDArray[np.int64]:
        """Return the rows that are meant, in a stream that no other thread uses."""
        if self._headers[0, ring.IN_USE]:
            raise RuntimeError(arguments.IN_USE)
        if rows is None:
            return np.arange(len(self._memory))
        if not self._leading:
            raise ValueError(f"`rows` must be None for a stream without a batch, got {rows!r}")
        chosen = np.atleast_1d(arguments.integers("rows", rows, 0, len(self._memory) - 1))
        if chosen.ndim != 1 or len(set(chosen.tolist())) != len(chosen):
            raise ValueError(f"`rows` must be one or more different rows, got {rows!r}")
        return chosen

    def snapshot(self) -> dict[str, Any]:
        """
        Return the stream's state as arrays: ``np.savez(path, **state)`` keeps it for any machine.

        `frames`, (C, K - 1) or (B, C, K - 1), are the latest; `frames_in`, () or (B,), how many
        came; `weights` a digest of the module's.
        """
        frames = self.cache if self._leading else self.cache[0]
        frames_in = self._frames_in.reshape(self._leading).copy()
        return {"frames": frames, "frames_in": frames_in, "weights": np.array(self._conv._digest)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """
        Go back, or on, to what `snapshot` returned for the same weights and batch size.

        ``np.load`` of it will do. Anything else is a TypeError or ValueError that changes nothing.
        """
        arguments.check_state(state, self.snapshot(), "weights")
        shape = *self._frame_shape, self._conv.kernel_size - 1
        frames = float32("state['frames']", state["frames"], shape, self)
        frames_in = arguments.integers("state['frames_in']", state["frames_in"], 0, 2**62)
        arguments.check_shape("state['frames_in']", frames_in, self._leading, self)
        self._write(frames.reshape(len(self._memory), *shape[-2:]), frames_in)

    def _write(self, frames: Frames, frames_in: Any) -> None:
        self._rows(None)
        self._frames_in[:] = frames_in
        ring.write(self._memory, widened(frames, self._missing, axis=1))

    @property
    def cache(self) -> Frames:
        """
        A copy of the last K - 1 frames, oldest first: (B, C, K - 1), (1, C, K - 1) without a batch.

        It fits ``conv(x, cache=...)``. If causal, assigning replaces them and leaves the counters.
        """
        self._rows(None)
        frames = ring.read(self._memory)
        return frames[:, : self._conv.channels].copy()

    @cache.setter
    def cache(self, cache: Floats) -> None:
        if not self._conv.causal:
            raise ValueError(f"`cache` cannot be assigned: {self._conv} is not causal")
        shape = len(self._memory), self._conv.channels, self._conv.kernel_size - 1
        self._write(float32("cache", cache, shape, self), self._frames_in)

    def __getstate__(self) -> tuple[DepthwiseConvolution, int | None, dict[str, Any]]:
        # Neither vector width nor ring position belongs to the signal: copies go to any CPU.
        return self._conv, self._batch_size, self.snapshot()

    def __setstate__(self, state: tuple[Any, Any, Any]) -> None:
        Stream.__init__(self, *state[:2])
        self.restore(state[2])

    def __repr__(self) -> str:
        state = f"batch_size={self._batch_size}, {self.frames_in} frames in"
        return f"<Stream of {self._conv}, {state}>"


def widened(array: NDArray[Any], missing: int, axis: int = -1) -> NDArray[Any]:
    """Append zeros for `missing` channels."""
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = 0, missing
    return np.pad(array, widths)


def convolve(
    conv: DepthwiseConvolution,
    x: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    cache: Frames | None,
    lengths: NDArray[np.int64],
    *,
    serial: bool,
) -> tuple[Frames, Frames]:
    """Convolve ``lengths[b]`` frames of every row b, as `conv` documents its arguments."""
    y = (np.zeros if (lengths < x.shape[1]).any() else np.empty)(x.shape, np.float32)
    latest = np.empty((len(x), conv.channels, conv.kernel_size - 1), np.float32)
    stream = Stream(conv, None, has_step=False)
    for row, length in enumerate(lengths.tolist()):
        frames, out = x[row, :length], y[row, : max(0, length - conv.latency)]
        if mask is not None:
            frames = np.where(mask[row, :length, None], x.dtype.type(0), frames)
        if cache is not None:
            stream.cache = cache[row : row + 1]
        pays = length * conv.channels * conv.kernel_size >= SHARED and not stream._missing
        given = arguments.as_float32(frames), out, stream._memory
        if serial or not pays or not ring.in_parallel(*given):
            stream.process(given[0], out)
        if conv.causal:
            latest[row] = stream.cache[0]
            stream.reset()
        else:
            y[row, len(out) : length] = stream.flush()
    return y, latest
