"""A digest of the bits that a module computes, however it is run; docs/files.md specifies it."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeconv.convolution import DepthwiseConvolution
from edgeconv.encoder import Encoder
from edgeconv.recogniser import Recogniser

Frames: TypeAlias = NDArray[np.float32]
# 0, -0, the smallest and the largest subnormal, the largest numbers, the infinities and a NaN.
SPECIAL = [0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000]

ENCODER_FRAMES = 360  # chunks of 17, 20, 20, 20 and 12 encoder frames, of which the third is past


class VerificationError(AssertionError):
    """A module does not compute the bits that it must: in a test, a failure and not an error."""


def noise(n_frames: int, channels: int) -> Frames:
    """Return multiples of 2**-22 within +-2, (n_frames, channels)."""
    # n steps of s = a * s + b from s = 0 give b * (1 + a + ... + a**(n-1)), modulo 2**32.
    factors = np.full(n_frames * channels, 1664525, np.uint32)
    factors[0] = 1
    state = np.cumsum(np.cumprod(factors, dtype=np.uint32), dtype=np.uint32)
    state *= np.uint32(1013904223)
    # Neighbouring states are a lattice, and their low bits repeat soon: mix before use.
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x7FEB352D)
    state ^= state >> np.uint32(15)
    x = (state >> np.uint32(8)).astype(np.float32) / np.float32(2**22) - 2
    return x.reshape(n_frames, channels)


def signal(channels: int, kernel_size: int) -> Frames:
    """Return noise, (3 * K + 256, C), but for nine special frames."""
    x = noise(3 * kernel_size + 256, channels)
    special, frames = np.array(SPECIAL, np.uint32).view(np.float32), np.arange(len(SPECIAL))
    # In each of these frames neighbouring channels hold different values.
    x[kernel_size + 128 + frames] = special[(frames[:, None] + np.arange(channels)) % len(special)]
    return x


def digest(
    module: DepthwiseConvolution | Encoder | Recogniser, seed: int = 0, expected: str = ""
) -> str:
    """Return the digest of a module's outputs in all ways to run it, which must be `expected`."""
    if isinstance(module, DepthwiseConvolution):
        found = _of_convolution(module, seed)
    elif isinstance(module, Encoder):
        found = _of_encoder(module, seed)
    else:
        found = _of_recogniser(module, seed)
    origin = "that the file records" if expected else next(iter(found))
    for way, digest in found.items():
        expected = expected or digest
        if digest != expected:
            raise VerificationError(
                f"{module}: the outputs must have the digest {expected} {origin}, got {digest} "
                f"{way}; convert the file again, or report this with what `edgeconv doctor` prints"
            )
    return expected


def _of_convolution(conv: DepthwiseConvolution, seed: int) -> dict[str, str]:
    x = signal(conv.channels, conv.kernel_size)
    # The second signal is subnormal, which a bias would hide. A kernel makes it: NumPy follows the
    # mode of the processor, which may be to flush it.
    no_bias = -np.zeros_like(conv.bias)
    tiny = {"weight": np.full((conv.channels, 1, 1), 2.0**-126, np.float32), "bias": no_bias}
    scaled, _ = DepthwiseConvolution.from_state_dict(tiny, causal=True)(x[np.newaxis])
    state = {"conv.weight": conv.weight, "conv.bias": np.zeros_like(conv.bias)}
    unbiased = DepthwiseConvolution.from_state_dict(state, causal=conv.causal)
    cases = [(conv, x), (unbiased, scaled[0])]
    cuts = _cuts(len(x), seed)
    ways: dict[str, Callable[[DepthwiseConvolution, Frames], Frames]] = {
        "offline": lambda module, x: module(x[np.newaxis])[0].reshape(x.shape),
        "frame by frame": _frame_by_frame,
        f"in random chunks (seed {seed})": lambda module, x: _in_pieces(module, x, cuts),
    }
    return {way: _sha256(run(*case) for case in cases) for way, run in ways.items()}


def _of_encoder(encoder: Encoder, seed: int) -> dict[str, str]:
    x = noise(ENCODER_FRAMES, encoder.input_size)
    offline = encoder(x[np.newaxis])[0]
    return {
        way: _sha256([offline, *([_in_pieces(encoder, x, cuts)] if encoder.causal else [])])
        for way, cuts in _two_ways(len(x), seed).items()
    }


def _of_recogniser(recogniser: Recogniser, seed: int) -> dict[str, str]:
    """Return the digests of what it hears, greedily and with a beam."""
    # Noise that is louder in every quarter of a second, and then is silent.
    bursts = np.repeat(np.arange(12) % 4, 4000).astype(np.float32) / 32
    x = noise(48000, 1)[:, 0] * bursts
    beam: dict[str, Any] = {"beam_size": 3, "search": {"expansion_beta": 0}}
    searches = [{}, beam] if len(recogniser.tokens) > 3 else [{}]
    found = {}
    for way, cuts in _two_ways(len(x), seed).items():
        total = hashlib.sha256()
        for options in searches:
            if recogniser.causal:
                stream = recogniser.stream(**options)
                for piece in np.split(x, cuts):
                    stream.accept_waveform(recogniser.sample_rate, piece)
                result = stream.input_finished()
            else:
                result = recogniser.transcribe(recogniser.sample_rate, x, **options)
            total.update("\0".join(result.tokens).encode())
            total.update(np.array([result.score, *result.timestamps], "<f8").tobytes())
        found[way] = total.hexdigest()
    return found


def _sha256(outputs: Iterable[Frames]) -> str:
    """Return the SHA-256 of little-endian float32 values (T, C), any NaN as 0x7fc00000."""
    total = hashlib.sha256()
    for y in outputs:
        bits = np.where(np.isnan(y), np.uint32(SPECIAL[-1]), y.view(np.uint32))
        total.update(bits.astype("<u4").tobytes())
    return total.hexdigest()


def _frame_by_frame(conv: DepthwiseConvolution, x: Frames) -> Frames:
    stream = conv.stream()
    frames = [y[np.newaxis] for frame in x if (y := stream.step(frame)) is not None]
    return np.concatenate([*frames, stream.flush()])


def _cuts(n_frames: int, seed: int) -> NDArray[np.int64]:
    """Return where to cut a signal."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.integers(n_frames + 1, size=rng.integers(64)))


def _two_ways(n_frames: int, seed: int) -> dict[str, Any]:
    return {"in one piece": [n_frames], f"in random pieces (seed {seed})": _cuts(n_frames, seed)}


def _in_pieces(module: DepthwiseConvolution | Encoder, x: Frames, cuts: Any) -> Frames:
    stream = module.stream()
    return np.concatenate([*map(stream.process, np.split(x, cuts)), stream.flush()])
