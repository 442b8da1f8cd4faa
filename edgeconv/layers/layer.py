"""What all layers have in common: whole signals, streams, and the memory of a stream."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import IN_USE, check_shape, check_state, float32, floats, integer, integers

Array = NDArray[np.float32]
L = TypeVar("L", bound="Layer")
Method = TypeVar("Method", bound=Callable[..., Any])


class Geometry(NamedTuple):
    """How a signal is cut: frames of a chunk, of the past that attention sees; or not at all."""

    chunk_size: int
    left_context: int = 0
    is_whole: bool = False


class Layer:
    """
    A layer with fixed weights; any number of streams and threads may share it.

    Every layer can be built ``from_state_dict(state, prefix, ...)``, which raises a CheckpointError
    if a tensor is missing or of another shape, called on whole signals, and streamed. The output is
    bit-identical for every batch and every cut into calls. A subclass says what of a stream has
    memory (`_memory`), what a chunk becomes (`_run`), and, if an end has outputs of its own, which
    (`_finish`). Arguments that are not as described are a TypeError or a ValueError, and a call
    that is refused changes nothing.

    Attributes
    ----------
    input_size, output_size : int
        Width of an input and of an output frame.
    chunked : bool
        Whether the frames of a chunk see each other. Its streams then have a grid of chunks.
    """

    input_size: int
    output_size: int
    chunked = False

    @classmethod
    def from_state_dict(
        cls: type[L], state: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> L:
        """Take the layer named `prefix` out of a state dict; the class says what else it takes."""
        return cls(state, prefix, *args, **kwargs)  # type: ignore[call-arg]  # a subclass takes them

    def __call__(self, x: NDArray[np.floating[Any]]) -> Array:
        """
        Run on whole signals, each as if alone.

        Parameters
        ----------
        x : ndarray of floats, (B, T, input_size)
            Computed in float32, never written to.

        Returns
        -------
        ndarray, float32, (B, T', output_size)
            T' is T, but for a layer that subsamples.
        """
        x = floats("x", x, ("B", "T", self.input_size), self)
        rows = [self._whole(float32("x", row, row.shape, self)) for row in x]
        return np.array(rows) if rows else np.empty((0, 0, self.output_size), np.float32)

    def stream(self, *, chunk_size: int | None = None, left_context: int | None = None) -> Stream:
        """
        Start a signal that comes in pieces.

        Parameters
        ----------
        chunk_size : int, at least 1
            Only for layers with attention: how many frames see each other.
        left_context : int, at least 0
            Only for layers with attention: how many frames before a chunk it sees.

        Returns
        -------
        Stream
            All of its code is compiled: no later call waits for a compiler. A layer that needs
            frames which are yet to come has none, and raises a ValueError.
        """
        if self.chunked:
            geometry = checked_geometry(chunk_size, left_context)
            return Stream(self, geometry, geometry.chunk_size)
        if chunk_size is not None or left_context is not None:
            raise TypeError(
                f"`chunk_size`, `left_context` must not be given: {self} has no attention"
            )
        return Stream(self, Geometry(1), 0)

    def _memory(self, geometry: Geometry) -> dict[str, Any]:
        """Return what a stream remembers: parts, or mappings of parts, by name."""
        return {}

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        """Return the outputs that frames (T, input_size), or a whole chunk, make final."""
        raise NotImplementedError  # each layer has its own

    def _finish(self, memory: dict[str, Any]) -> Array:
        """Return the outputs that the end of the signal makes final."""
        return np.empty((0, self.output_size), np.float32)

    def _whole(self, x: Array) -> Array:
        """Run on one whole signal (T, input_size)."""
        if self.chunked and not len(x):
            return np.empty((0, self.output_size), np.float32)
        memory = self._memory(Geometry(max(1, len(x)), is_whole=True))
        y, rest = self._run(x, memory), self._finish(memory)
        return np.concatenate([y, rest]) if len(rest) else y

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.input_size}, {self.output_size})"


def in_turn(method: Method) -> Method:
    """Refuse a call of a method while another thread is in one."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._turn.acquire(blocking=False):  # its own thread may: in a signal handler
            raise RuntimeError(IN_USE)
        try:
            return method(self, *args, **kwargs)
        finally:
            self._turn.release()

    return call  # type: ignore[return-value]  # it takes and returns what the method does


class Stream:
    """
    One signal through a layer; `Layer.stream` opens it.

    Notes
    -----
    The outputs are bit-identical for every way of cutting the signal into calls. A layer with
    attention has a grid of chunks that belongs to the signal: a chunk is computed when all of its
    frames are there, and the last one, at the end, may be shorter. Neither the work for a chunk
    nor the memory grows. A stream belongs to one thread at a time.

    Attributes
    ----------
    frames_in, frames_out : int
        Frames taken and returned since the start of the signal.
    """

    _given = "chunk"  # what `process` takes

    def __init__(self, layer: Layer, geometry: Geometry, first: int) -> None:
        self._layer, self._geometry, self._first = layer, geometry, first
        self._turn = threading.RLock()
        self._size = geometry.chunk_size if layer.chunked else 1
        self._waiting = np.empty((0, layer.input_size), np.float32)  # for the rest of a chunk
        self._missing, self.frames_in, self.frames_out = first, 0, 0
        self._memory = layer._memory(geometry)
        # All is compiled; yet a first call takes longer, and should not be the signal's.
        layer._run(np.zeros((max(1, first), layer.input_size), np.float32), self._memory)
        self.reset()

    @property
    def memory(self) -> int:
        """Bytes that the stream holds between calls, at most; the weights are the layer's."""
        waiting = 4 * (self._size - 1) * self._layer.input_size
        parts: list[int] = [part.memory for part in _parts(self._memory).values()]
        return waiting + sum(parts)

    @in_turn
    def process(self, chunk: NDArray[np.floating[Any]]) -> Array:
        """
        Take any number of frames; return the outputs that are now final.

        Parameters
        ----------
        chunk : ndarray of floats, (n, input_size)
            Computed in float32; n may be 0.

        Returns
        -------
        ndarray, float32, (m, output_size)
        """
        x = float32(self._given, chunk, ("n", self._layer.input_size), self)
        self.frames_in += len(x)
        if not self._layer.chunked:
            return self._counted([self._layer._run(x, self._memory)] if len(x) else [])
        if len(self._waiting):
            x = joined([self._waiting, x], x.shape[1])
        outputs, done = [], 0
        while len(x) - done >= self._missing:
            outputs.append(self._layer._run(x[done : done + self._missing], self._memory))
            done += self._missing
            self._missing = self._size
        self._waiting = joined([x[done:]], x.shape[1])
        return self._counted(outputs)

    @in_turn
    def flush(self) -> Array:
        """
        End the signal: return its last outputs, then start anew.

        Returns
        -------
        ndarray, float32, (m, output_size)
            What waited for a chunk to be whole is a shorter chunk.
        """
        outputs = []
        if len(self._waiting):
            outputs.append(self._layer._run(self._waiting, self._memory))
        outputs.append(self._layer._finish(self._memory))
        y = self._counted(outputs)
        self.reset()
        return y

    def _counted(self, outputs: list[Array]) -> Array:
        """Return outputs as one array, and count them."""
        y = outputs[0] if len(outputs) == 1 else joined(outputs, self._layer.output_size)
        self.frames_out += len(y)
        return y

    @in_turn
    def reset(self) -> None:
        """Start a new signal: as if the stream had just been opened."""
        for part in _parts(self._memory).values():
            part.reset()
        self._waiting = self._waiting[:0]
        self._missing = self._first
        self.frames_in = self.frames_out = 0

    @in_turn
    def snapshot(self) -> dict[str, Any]:
        """Return the stream's state by name, for ``np.savez``; no later call changes it."""
        return {
            "layer": np.array(self._name),
            "waiting": self._waiting.copy(),
            "counts": np.array([self.frames_in, self.frames_out]),
        } | snapshot_of(_parts(self._memory))

    @in_turn
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """
        Go back, or on, to a state: the outputs that follow are those that followed it.

        It is from `snapshot`, or ``np.load`` of it, of a stream of the same layer and grid.
        """
        check_state(state, self.snapshot(), "layer")
        width = self._layer.input_size
        waiting = float32("state['waiting']", state["waiting"], ("n", width), self).copy()
        counts = integers("state['counts']", state["counts"], 0, 2**62)
        check_shape("state['counts']", counts, (2,), self)
        frames_in, frames_out = counts.tolist()
        is_first = self._layer.chunked and frames_in == len(waiting)
        missing_frames = self._first if is_first else self._size
        integers("len(state['waiting'])", len(waiting), 0, min(frames_in, missing_frames - 1))
        restore_all(_parts(self._memory), state)
        self._waiting, self._missing = waiting, missing_frames
        self.frames_in, self.frames_out = frames_in, frames_out

    @property
    def _name(self) -> str:
        return f"{self._layer} in chunks of {self._geometry[:2]}"

    def __repr__(self) -> str:
        return f"<Stream of {self._name}, {self.frames_in} frames in>"


def joined(parts: Sequence[Array], *shape: int) -> Array:
    """Return arrays (n, *shape) behind each other; NumPy would give the interpreter's lock up."""
    from edgeconv.kernels import pointwise

    y, done = np.empty((sum(map(len, parts)), *shape), np.float32), 0
    copy, before = pointwise.kernel(pointwise.copy), (None,) * (3 - y.ndim)
    for x in parts:
        copy(x[before], y[done : done + len(x)][before])
        done += len(x)
    return y


def checked_geometry(chunk_size: object, left_context: object) -> Geometry:
    """Return the geometry of a stream with attention."""
    chunk = integer("chunk_size", chunk_size, 1, 2**20)
    return Geometry(chunk, integer("left_context", left_context, 0, 2**20))


def snapshot_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of parts, under their names."""
    return {
        f"{n}.{key}": array for n, part in parts.items() for key, array in part.snapshot().items()
    }


def restore_all(parts: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> None:
    """Bring parts to their states in what `snapshot_of` returned: all of them, or none."""
    before = {name: part.snapshot() for name, part in parts.items()}
    try:
        for name, part in parts.items():
            start = f"{name}."
            part.restore({key[len(start) :]: state[key] for key in state if key.startswith(start)})
    except (TypeError, ValueError):
        for name, part in parts.items():
            part.restore(before[name])
        raise


def _parts(memory: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the parts of a memory by their full names."""
    parts: dict[str, Any] = {}
    for name, part in memory.items():
        if isinstance(part, dict):
            parts |= _parts(part, f"{prefix}{name}.")
        else:
            parts[prefix + name] = part
    return parts


def convolution_memory(conv: Any, geometry: Geometry) -> Any:
    """Return what convolves (T, C) inside a layer: a stream, or the module on a whole signal."""
    if geometry.is_whole:
        return SimpleNamespace(process=lambda x: conv(x[None])[0][0])
    if not conv.causal:
        raise ValueError(
            "what is streamed must be trained with `dynamic_chunk_training`, got a convolution "
            f"that sees later frames: {conv}; call the layer or the encoder on whole signals"
        )
    from edgeconv import stream  # which needs Numba

    return stream.Stream(conv, None, has_step=False)
