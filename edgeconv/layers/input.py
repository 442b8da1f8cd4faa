"""The input block: convolutions over time and frequency that subsample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import float32, integers
from edgeconv.checkpoint import CheckpointError
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array, Geometry, Layer, joined
from edgeconv.layers.linear import Linear
from edgeconv.layers.parameters import Weights

PIECE = 16  # frames convolved together: what comes of them fits in the second-level cache


class ConvInput(Layer):
    """
    ESPnet's ``ConvInput``: the conv2d block of factor 4, the VGG blocks of factors 4 and 6.

    * conv2d: two convolutions of 3 x 3 and stride 2, each with a ReLU
    * VGG: twice a convolution of 3 x 3 padded by 1, one that is not padded, each with a ReLU, and
      the largest of 2 x 2, or for factor 6 first of 3 x 3, with stride 2: all of them subsample by
      4, whatever the factor

    and a dense layer over all channels of a frame. Computed directly, without copies of the
    windows; a stream computes no frame twice.

    Attributes
    ----------
    lost : int
        By how many encoder frames ESPnet's first window is shorter than its later ones.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.conv.0`` and so on, and ``prefix.output``: the names tell conv2d from VGG.
    prefix : str
        The block's name.
    input_size : int
        Number of features of a frame.
    subsampling_factor : int
        4, or 6 for a VGG block; the tensors do not tell.
    """

    def __init__(
        self, state: Mapping[str, Any], prefix: str, *, input_size: int, subsampling_factor: int = 4
    ) -> None:
        is_vgg = f"{prefix}.conv.5.weight" in state
        if subsampling_factor not in ((4, 6) if is_vgg else (4,)):
            kind = "VGG block of factor 4 or 6" if is_vgg else "conv2d block of factor 4"
            raise CheckpointError(f"{prefix} must be a {kind}, found factor {subsampling_factor}")
        # The number of a convolution, its padding, and what is the largest of how many behind it.
        vgg = ((0, 1, 0), (2, 0, subsampling_factor // 2), (5, 1, 0), (7, 0, 2))
        conv2d = ((0, 0, 0), (2, 0, 0))
        stages: list[Stage] = []
        rows, channels = input_size, 1
        for number, padding, pool in vgg if is_vgg else conv2d:
            shape = "N", channels, 3, 3
            lines, relu = (3, 1 if is_vgg else 2), Activation("relu")
            name = f"{prefix}.conv.{number}"
            weights = Weights(state, name, shape=shape, lines=lines, activation=relu)
            stages.append(Convolution(weights, rows, lines[1], padding))
            if pool:
                stages.append(Largest(stages[-1].output_shape, pool))
            rows, channels = stages[-1].output_shape
        self._stages, self._out = stages, _last(state, f"{prefix}.output", rows, channels, is_vgg)
        self.lost = 4 if subsampling_factor == 6 else 3
        self.input_size, self.output_size = input_size, self._out.output_size

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {str(n): Frames(stage) for n, stage in enumerate(self._stages)}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        pieces = [x[i : i + PIECE, :, None] for i in range(0, max(1, len(x)), PIECE)]
        return self._through(pieces, memory, is_end=False)

    def _finish(self, memory: dict[str, Any]) -> Array:
        nothing = np.empty((0, self.input_size, 1), np.float32)
        return self._through([nothing], memory, is_end=True)

    def _through(self, pieces: list[Array], memory: dict[str, Any], is_end: bool) -> Array:
        outputs = []
        for x in pieces:
            for frames in memory.values():
                x = frames.push(x, is_end)
            outputs.append(x.reshape(len(x), self._out.input_size))
        return self._out._run(joined(outputs, self._out.input_size), {})


def _last(state: Mapping[str, Any], prefix: str, rows: int, channels: int, is_vgg: bool) -> Linear:
    """Return the last dense layer, for channels that vary fastest, where ESPnet's rows do."""
    name = f"{prefix}.weight"
    weight = np.asarray(state.get(name, np.empty(0)))
    if weight.ndim != 2 or weight.shape[1] != rows * channels:
        raise CheckpointError(
            f"{name} must have shape (N, {rows * channels})",
            f"{weight.shape if name in state else 'none'}",
            "check n_mels, or input_size, in the configuration"
            + ", or is it of before December 2022? VGG blocks were others then" * is_vgg,
        )
    turned = weight.reshape(-1, channels, rows).swapaxes(1, 2).reshape(weight.shape)
    own = {name: state[name] for name in state if name.startswith(f"{prefix}.")}
    return Linear({**own, name: turned}, prefix)


class Stage:
    """
    One step of the block: frames (n, rows, channels) to fewer or as many frames.

    An output frame needs `reach` input frames, and the next one begins `stride` later. With
    `padding` the signal has a frame of zeros before it and one behind it.
    """

    ends_partly = False  # whether the last output takes the frames that there are

    def __init__(self, n_rows: int, channels: int, reach: int, stride: int, padding: int) -> None:
        self.n_rows, self.channels = n_rows, channels
        self.reach, self.stride, self.padding = reach, stride, padding
        self.output_shape = 0, 0  # rows and channels

    def run(self, x: Array, n: int) -> Array:
        """Return `n` output frames of padded input frames."""
        raise NotImplementedError  # each kind of stage has its own


class Convolution(Stage):
    """A convolution of 3 x 3, with its ReLU."""

    def __init__(self, weights: Weights, n_rows: int, stride: int, padding: int) -> None:
        super().__init__(n_rows, weights.n_inputs // 3, 3, stride, padding)
        self._weights = weights
        rows = (self.n_rows + 2 * padding - 3) // stride + 1
        self.output_shape = rows, self._weights.n_outputs

    def run(self, x: Array, n: int) -> Array:
        """Convolve."""
        y = np.empty((n, *self.output_shape), np.float32)
        self._weights.convolve(x, y)
        return y


class Largest(Stage):
    """The largest of neighbouring numbers, with stride 2; the last window may be smaller."""

    ends_partly = True

    def __init__(self, shape: tuple[int, int], size: int) -> None:
        from edgeconv.kernels import pointwise

        super().__init__(*shape, size, 2, 0)
        self._largest = pointwise.kernel(pointwise.largest)
        self.output_shape = -(-(self.n_rows - size) // 2) + 1, self.channels

    def run(self, x: Array, n: int) -> Array:
        """Take the largest of frames and rows."""
        y = np.empty((n, *self.output_shape), np.float32)
        self._largest(x, y, self.reach)
        return y


class Frames:
    """The input frames of a stage that later outputs need, in a stream."""

    def __init__(self, stage: Stage) -> None:
        from edgeconv.kernels import pointwise

        self._stage, self._copy = stage, pointwise.kernel(pointwise.copy)
        self._follow = pointwise.kernel(pointwise.follow)
        shape = stage.padding, stage.n_rows + 2 * stage.padding, stage.channels
        self._frames = np.zeros(shape, np.float32)

    def push(self, x: Array, is_end: bool) -> Array:
        """Append frames; return those outputs that are now final."""
        stage, behind = self._stage, int(is_end and self._stage.padding)
        length = len(self._frames) + len(x) + behind
        frames = np.empty((length, *self._frames.shape[1:]), np.float32)
        self._follow(self._frames, x, frames)
        partial = stage.stride - 1 if is_end and stage.ends_partly else 0
        n = max(0, (len(frames) - stage.reach + partial) // stage.stride + 1)
        y = stage.run(frames, n) if n else np.empty((0, *stage.output_shape), np.float32)
        rest = frames[n * stage.stride :]
        self._frames = np.empty(rest.shape, np.float32)
        self._copy(rest, self._frames)
        return y

    @property
    def memory(self) -> int:
        """Bytes of the most frames that wait between two calls."""
        return 4 * (self._stage.reach - 1) * int(np.prod(self._frames.shape[1:]))

    def reset(self) -> None:
        """Begin a signal: with a frame of zeros, if it is padded."""
        self._frames = np.zeros((self._stage.padding, *self._frames.shape[1:]), np.float32)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return the frames that later outputs need."""
        return {"frames": self._frames.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go to a state."""
        shape = ("n", *self._frames.shape[1:])
        frames = float32("state['frames']", state["frames"], shape, "an input block")
        integers("len(state['frames'])", len(frames), 0, self._stage.reach - 1)
        self._frames = frames.copy()
