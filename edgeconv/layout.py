"""Memory in the layout that the kernels read: packed taps, and the ring of a stream."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeconv import kernels


def _zeros(*shape: int) -> NDArray[np.float32]:
    """Return float32 zeros that begin on a cache line: the kernels' loads are aligned."""
    size = math.prod(shape)
    memory = np.zeros(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape)


def channels_of_lanes(channels: int) -> NDArray[np.intp]:
    """Return the channel that each lane of each block holds, (blocks, LANES)."""
    first = np.arange(0, channels, kernels.LANES).clip(max=max(0, channels - kernels.LANES))
    return (first[:, None] + np.arange(kernels.LANES)).clip(max=channels - 1)


def pack_taps(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pack a weight (C, 1, K) and a bias (C,) into taps."""
    lanes = channels_of_lanes(len(bias))
    taps = _zeros(len(lanes), 1 + weight.shape[2], kernels.LANES)
    taps[:, 0] = bias[lanes]
    taps[:, 1:] = weight[lanes, 0].swapaxes(1, 2)
    taps.setflags(write=False)
    return taps


class Ring:
    """
    The state of a stream: the latest frames of every row of the batch, and how many came.

    Attributes
    ----------
    memory : ndarray, float32, (B, n)
        What the kernels call `state`: one run of memory for each row of the batch, so that a row
        starts anew, or all of them, by one assignment that no signal can cut in two.
    frames : ndarray, float32, (B, blocks, 2 * N + SPARE_ROWS, LANES)
        The part of it that holds frames, as `kernels` describes it.
    frames_in : ndarray, int64, (B,)
        The part of it that counts the frames of each row.
    """

    def __init__(self, batch_size: int, channels: int, kernel_size: int) -> None:
        self._lanes = channels_of_lanes(channels)
        self._shape = (batch_size, channels, kernel_size - 1)
        self._period = kernel_size - 1 + kernels.PASS
        n_rows = 2 * self._period + kernels.SPARE_ROWS
        blocks = (batch_size, len(self._lanes), n_rows, kernels.LANES)
        self.memory = _zeros(batch_size, kernels.HEADER + math.prod(blocks[1:]))
        self.frames = self.memory[:, kernels.HEADER :].reshape(blocks)
        self.frames_in = self.memory[:, :2].view(np.int64)[:, 0]

    def read(self, rows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.float32]:
        """Return the latest K - 1 frames of some rows, (B, C, K - 1), oldest first."""
        batch, blocks, frames = self._rows_of_latest(copies=1)
        packed = self.frames[batch[rows], blocks, frames[rows]]
        latest = np.empty((len(packed), *self._shape[1:]), np.float32)
        latest[:, self._lanes] = packed.swapaxes(2, 3)
        return latest

    def write(self, latest: NDArray[np.float32]) -> None:
        """Replace the latest K - 1 frames, both copies in one assignment."""
        frames = latest[:, self._lanes].swapaxes(2, 3)
        self.frames[self._rows_of_latest(copies=2)] = np.concatenate([frames, frames], axis=2)

    def _rows_of_latest(self, copies: int) -> tuple[NDArray[np.intp], ...]:
        """Return the index of the latest K - 1 frames, or of both their copies."""
        numbers = self.frames_in[:, None] - np.arange(self._shape[2], 0, -1)
        rows = [numbers % self._period + copy * self._period for copy in range(copies)]
        batch = np.arange(self._shape[0])[:, None, None]
        return batch, np.arange(len(self._lanes))[:, None], np.concatenate(rows, axis=1)[:, None]
