"""Memory in the layout that the kernels read: packed taps, and the ring of a stream."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeconv import kernels
from edgeconv.vectors import LANES


def _zeros(*shape: int) -> NDArray[np.float32]:
    """Return float32 zeros that begin on a cache line: the kernels' loads are aligned."""
    size = math.prod(shape)
    memory = np.zeros(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape)


def channels_of_lanes(channels: int) -> NDArray[np.intp]:
    """Return the channel that each lane of each block holds, (blocks, LANES)."""
    first = np.arange(0, channels, LANES).clip(max=max(0, channels - LANES))
    return (first[:, None] + np.arange(LANES)).clip(max=channels - 1)


def pack_taps(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pack a weight (C, 1, K) and a bias (C,) into taps."""
    lanes = channels_of_lanes(len(bias))
    taps = _zeros(len(lanes), 1 + weight.shape[2], LANES)
    taps[:, 0] = bias[lanes]
    taps[:, 1:] = weight[lanes, 0].swapaxes(1, 2)
    taps.setflags(write=False)
    return taps


class Ring:
    """
    The state of a stream: the latest frames of every row of the batch, and how many came.

    Compiled code alone changes it: one thread at a time, and no signal handler in between.

    Attributes
    ----------
    memory : ndarray, float32, (B, n)
        What the kernels call `state`: a run of memory for each row of the batch.
    frames_in : ndarray, int64, (B,)
        The part of it that counts the frames of each row.
    """

    def __init__(self, batch_size: int, channels: int, kernel_size: int) -> None:
        self._channels = channels
        self._context = kernel_size - 1
        self._period = self._context + kernels.PASS
        n_blocks = -(-channels // LANES)
        self._shape = (n_blocks, 2 * self._period + kernels.SPARE_ROWS, LANES)
        self.memory = _zeros(batch_size, kernels.HEADER + math.prod(self._shape))
        self.frames_in = _header(self.memory, kernels.FRAMES_IN)
        self._copy_rows = kernels.copy_rows(1).entry_point

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the latest K - 1 frames of some rows, (n, C, K - 1), and their `frames_in`."""
        memory = _zeros(len(rows), self.memory.shape[1])
        self._copy(rows, memory, np.full(len(rows), -1), inward=False)
        frames_in = _header(memory, kernels.FRAMES_IN).copy()
        latest = np.empty((len(rows), self._channels, self._context), np.float32)
        lanes = min(LANES, self._channels)
        whole = self._channels // lanes
        for target, row, count in zip(latest, memory, frames_in.tolist(), strict=True):
            first = (count - self._context) % self._period
            window = self._frames(row)[:, first : first + self._context, :lanes].swapaxes(1, 2)
            target[: whole * lanes].reshape(whole, lanes, -1)[...] = window[:whole]
            target[-lanes:] = window[-1]
        return latest, frames_in

    def write(
        self,
        rows: NDArray[np.int64],
        latest: NDArray[np.float32] | None,
        frames_in: NDArray[np.int64],
        expected: NDArray[np.int64] | None = None,
    ) -> None:
        """Replace the latest frames, zeros for None, and `frames_in` of some rows.

        Raises a RuntimeError if another thread uses the stream, or has used it since the rows were
        at the `expected` frames.
        """
        memory = _zeros(len(rows), self.memory.shape[1])
        _header(memory, kernels.FRAMES_IN)[:] = frames_in
        _header(memory, kernels.AHEAD_SINCE)[:] = frames_in
        if latest is not None:
            frames = latest[:, channels_of_lanes(self._channels)].swapaxes(2, 3)
            for row, window, count in zip(memory, frames, frames_in.tolist(), strict=True):
                slots = np.arange(count - self._context, count) % self._period
                for copy in (0, self._period):
                    self._frames(row)[:, slots + copy] = window
        if expected is None:
            expected = np.full(len(rows), -1)
        self._copy(rows, memory, expected, inward=True)

    def _frames(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """View the part of a row's memory that holds frames, (blocks, rows, LANES)."""
        return row[kernels.HEADER :].reshape(self._shape)

    def _copy(
        self,
        rows: NDArray[np.int64],
        memory: NDArray[np.float32],
        expected: NDArray[np.int64],
        inward: bool,
    ) -> None:
        if self._copy_rows(self.memory, rows, memory, expected, inward):
            raise self.in_use()

    @staticmethod
    def in_use() -> RuntimeError:
        """Return the error for two threads in one stream."""
        return RuntimeError(
            "a stream must be used by one thread at a time, got a call during another; open a "
            "stream for each thread, and anew in a process that was forked during a call"
        )


def _header(memory: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """View a number of every row's header."""
    return memory[:, : kernels.HEADER].view(np.int64)[:, number]
