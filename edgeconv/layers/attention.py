"""Attention of several heads, with relative positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import float32, integers
from edgeconv.checkpoint import CheckpointError
from edgeconv.layers.layer import Array, Geometry, Layer
from edgeconv.layers.norm import Norm
from edgeconv.layers.parameters import Weights, tensor
from edgeconv.layers.positions import relative_positions


class RelPositionMultiHeadedAttention(Layer):
    """
    ESPnet's ``RelPositionMultiHeadedAttention``: a chunk looks at itself and at its past.

    The score of query i and key j is ``((q_i + u) . k_j + (q_i + v) . p_(i - j)) / sqrt(dk)``. Keys
    that there are not yet, at the start of a signal, are left out. Called on whole signals, every
    frame sees every other.

    Parameters
    ----------
    state : mapping of str to array
        With ``prefix.linear_q`` and so on; simplified scores are left out.
    prefix : str
        The layer's name.
    norm : Norm, optional
        Of the inputs.
    """

    chunked = True

    def __init__(self, state: Mapping[str, Any], prefix: str, *, norm: Norm | None = None) -> None:
        from edgeconv.kernels import attention

        if f"{prefix}.linear_pos.bias" in state:
            raise CheckpointError(f"{prefix} must not have simplified scores, which are left out")
        u = tensor(state, f"{prefix}.pos_bias_u", ("heads", "size"))
        self.n_heads, self.head_size = u.shape
        self.input_size = self.output_size = u.size
        v = tensor(state, f"{prefix}.pos_bias_v", u.shape)
        self._biases = np.stack([u, v]).reshape(2, -1)
        names, shape = (f"{prefix}.linear_{name}" for name in "qkv"), (u.size, u.size)
        self._project = Weights(state, *names, shape=shape, norm=norm)
        self.positions = Weights(state, f"{prefix}.linear_pos", shape=shape)
        self._out = Weights(state, f"{prefix}.linear_out", shape=shape)
        self._kernel = attention.kernel()

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        return {"past": KeysAndValues(self, geometry)}

    def _run(self, x: Array, memory: dict[str, Any], **target: Array) -> Array:
        past: KeysAndValues = memory["past"]
        span, projected = past.append(len(x)), self._project.rows(x)
        self._kernel(projected, self._biases, past.keys, past.values, past.positions, span)
        return self._out.rows(projected[:, : self.input_size], **target)


class KeysAndValues:
    """
    The latest keys and values of a stream, and the projected positions, in the kernel's layout.

    What a chunk sees is one run of memory: the run moves on, and goes back to the start when it
    reaches the end.
    """

    def __init__(self, layer: RelPositionMultiHeadedAttention, geometry: Geometry) -> None:
        from edgeconv.kernels import pointwise
        from edgeconv.kernels.vectors import BLOCK

        self._copy = pointwise.kernel(pointwise.copy)
        heads, size = layer.n_heads, layer.head_size
        chunk_size, self._left = geometry[:2]
        self._capacity = self._left + chunk_size * (1 if geometry.is_whole else 4)
        self.keys = np.zeros((heads, size, self._capacity + BLOCK), np.float32)
        self.values = np.zeros((self._capacity, heads, -(-size // BLOCK) * BLOCK), np.float32)
        self._zero = self._left + chunk_size - 1
        distances = relative_positions(self._zero, 1 - chunk_size, layer.input_size)
        projected = layer.positions.rows(distances)
        # Beyond the last frame of a chunk the kernel reads on, by less than two blocks.
        self.positions = np.zeros((heads, size, len(projected) + 2 * BLOCK), np.float32)
        self.positions[..., : len(projected)] = projected.T.reshape(heads, size, -1)
        self._end = self._past = 0  # where the run ends, and how much of it the next chunk sees

    def append(self, n_frames: int) -> NDArray[np.int64]:
        """Make room for the keys and values of a chunk; return the span that it sees."""
        if self._end + n_frames > self._capacity:
            kept = slice(self._end - self._past, self._end)
            self._copy(self.keys[..., kept], self.keys[..., : self._past])
            self._copy(self.values[kept], self.values[: self._past])
            self._end = self._past
        first, seen = self._end - self._past, self._past + n_frames
        self._end += n_frames
        self._past = min(self._left, seen)
        return np.array([first, seen, self._zero])

    @property
    def memory(self) -> int:
        """Bytes of keys, values and positions."""
        return self.keys.nbytes + self.values.nbytes + self.positions.nbytes

    def reset(self) -> None:
        """Forget all."""
        self._end = self._past = 0

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return the keys and values that the next chunk sees, (n, D)."""
        heads, size, _ = self.keys.shape
        kept = slice(self._end - self._past, self._end)
        keys = self.keys[..., kept].reshape(heads * size, -1).T.copy()
        values = self.values[kept, :, :size].reshape(-1, heads * size).copy()
        return {"keys": keys, "values": values}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go to a state."""
        heads, size, _ = self.keys.shape
        keys = float32("state['keys']", state["keys"], ("n", heads * size), "attention")
        values = float32("state['values']", state["values"], keys.shape, "attention")
        integers("len(state['keys'])", len(keys), 0, self._left)
        self._end = self._past = len(keys)
        self.keys[..., : self._end] = keys.T.reshape(heads, size, -1)
        self.values[: self._end, :, :size] = values.reshape(-1, heads, size)
