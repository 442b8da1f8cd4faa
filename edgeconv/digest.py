"""A digest of the bits that a module computes; the README specifies it with the file format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeconv.arrays import ignoring_float_errors

if TYPE_CHECKING:
    from edgeconv.convolution import DepthwiseConvolution

    Way: TypeAlias = Callable[[DepthwiseConvolution, NDArray[np.float32]], NDArray[np.float32]]

__all__ = ["by_way", "cases", "check_arithmetic", "of_module", "of_outputs", "signal"]

MAXIMUM_CUTS = 64  # of about 350 frames for 31 taps: chunks of one frame and of several passes

# 0, -0, the smallest and the largest subnormal, the largest numbers, the infinities and a NaN.
SPECIAL = np.array(
    [0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000],
    np.uint32,
).view(np.float32)
NAN = np.uint32(0x7FC00000)


def signal(channels: int, kernel_size: int) -> NDArray[np.float32]:
    """
    Return the input of the digest, the same on every machine and for every version of NumPy.

    Parameters
    ----------
    channels, kernel_size : int
        Geometry of the module, C and K.

    Returns
    -------
    ndarray, float32, (3 * K + 256, C)
        Multiples of 2**-22 within +-2 from a linear congruential generator, but for nine frames
        of special values. Before them and after them the ring of a stream wraps.
    """
    shape = 3 * kernel_size + 256, channels
    # n steps of s = a * s + b from s = 0 give b * (1 + a + ... + a**(n-1)), modulo 2**32.
    factors = np.full(shape[0] * shape[1], 1664525, np.uint32)
    factors[0] = 1
    state = np.cumsum(np.cumprod(factors, dtype=np.uint32), dtype=np.uint32)
    state *= np.uint32(1013904223)
    # Neighbouring states are a lattice, and their low bits repeat soon: mix before use.
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x7FEB352D)
    state ^= state >> np.uint32(15)
    x = (state >> np.uint32(8)).astype(np.float32).reshape(shape) / np.float32(2**22) - 2
    frames, lanes = np.arange(len(SPECIAL)), np.arange(channels)
    # In each of these frames neighbouring channels hold different values.
    x[kernel_size + 128 + frames] = SPECIAL[(frames[:, None] + lanes) % len(SPECIAL)]
    return x


@ignoring_float_errors
def cases(conv: DepthwiseConvolution) -> list[tuple[DepthwiseConvolution, NDArray[np.float32]]]:
    """Return what is run: a module on `signal`, and without its bias on 2**-126 of that.

    The second one's inputs, products and sums are subnormal, which a bias would hide: a processor
    that flushes them to zero is found out.
    """
    x = signal(conv.channels, conv.kernel_size)
    state = {"conv.weight": conv.weight, "conv.bias": np.zeros_like(conv.bias)}
    unbiased = type(conv).from_state_dict(state, causal=conv.causal)
    return [(conv, x), (unbiased, x * np.float32(2.0**-126))]


def of_outputs(outputs: Iterable[NDArray[np.float32]]) -> str:
    """Return the SHA-256 of little-endian float32 values (T, C), any NaN as 0x7fc00000."""
    digest = hashlib.sha256()
    for y in outputs:
        digest.update(np.where(np.isnan(y), NAN, y.view(np.uint32)).astype("<u4").tobytes())
    return digest.hexdigest()


@ignoring_float_errors
def check_arithmetic() -> None:
    """Raise a FloatingPointError if this process makes the processor round in another way.

    A library that is built with ``-ffast-math`` does so when it is loaded, for all of a process.
    """
    smallest, one = SPECIAL[2], np.float32(1)
    # Halfway from 1 to the next number, and from there to the one after it.
    tie, next_tie, even = (np.float32(n * 2.0**-24) for n in (1, 3, 4))
    if smallest * one != 0 and one + tie == one and one + next_tie == one + even:
        return
    raise FloatingPointError(
        "this process must round to nearest and keep subnormal numbers, got one that does not; "
        "look for what sets the processor so: a library built with -ffast-math, or "
        "`torch.set_flush_denormal`"
    )


def by_way(conv: DepthwiseConvolution, seed: int) -> Iterator[tuple[str, str]]:
    """Yield the ways to run a module, and the digest of its outputs."""
    check_arithmetic()
    ways: dict[str, Way] = {
        "offline": _offline,
        "on all threads": _on_all_threads,
        "frame by frame": _frame_by_frame,
        f"in random chunks (seed {seed})": partial(_in_chunks, seed=seed),
        "in a batch whose rows differ": _in_a_batch,
    }
    for name, way in ways.items():
        yield name, of_outputs(way(*case) for case in cases(conv))


def of_module(conv: DepthwiseConvolution) -> str:
    """Return the digest of a module's outputs, the same for every way to run it."""
    digests = dict(by_way(conv, seed=0))
    if len(set(digests.values())) > 1:
        raise FloatingPointError(
            f"{conv} must give the same outputs however it is run, got other digests: {digests}; "
            "report this with what `edgeconv doctor` prints"
        )
    return digests["offline"]


def _offline(conv: DepthwiseConvolution, x: NDArray[np.float32]) -> NDArray[np.float32]:
    y: NDArray[np.float32] = conv(x[np.newaxis])[0][0]
    return y


def _on_all_threads(conv: DepthwiseConvolution, x: NDArray[np.float32]) -> NDArray[np.float32]:
    from edgeconv.parallel import PARALLEL_WORK

    y = np.empty((1, *x.shape), np.float32)
    conv.stream(batch_size=1)._run_whole(x[np.newaxis], y, None, work=PARALLEL_WORK)
    return y.reshape(x.shape)


def _frame_by_frame(conv: DepthwiseConvolution, x: NDArray[np.float32]) -> NDArray[np.float32]:
    stream = conv.stream()
    frames = [y[np.newaxis] for frame in x if (y := stream.step(frame)) is not None]
    return np.concatenate([*frames, stream.flush()])


def _in_chunks(
    conv: DepthwiseConvolution, x: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(len(x) + 1, size=rng.integers(MAXIMUM_CUTS)))
    stream = conv.stream()
    chunks = [stream.process(chunk) for chunk in np.split(x, cuts)]
    return np.concatenate([*chunks, stream.flush()])


def _in_a_batch(conv: DepthwiseConvolution, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Step with both rows, go on with the second one alone, and end it."""
    stream = conv.stream(batch_size=2)
    pairs = np.stack([x, x], axis=1)
    start = len(x) // 2
    frames = [y[1:] for pair in pairs[:start] if (y := stream.step(pair)) is not None]
    rest = len(x) - start
    y, counts = stream.process(pairs[start:].swapaxes(0, 1), lengths=[0, rest])
    return np.concatenate([*frames, y[1, : counts[1]], stream.flush(rows=1)[0]])
