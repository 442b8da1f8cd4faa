"""`edgeconv demo`: from a PyTorch checkpoint to streamed frames, on the files that ship."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint import read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.listing import summary
from edgeconv.machine import time_calls
from edgeconv.terminal import CommandError, explaining_compilation
from edgeconv.weights import convert, load

CHECKPOINT = "espnet-streaming-encoder.pth"
RECORDING = "recording.npz"
RANDOM_CUTS = 20
SECONDS = 1.0  # of timing: enough frames for a steady 99th percentile


def shipped_files() -> Path:
    """Return the directory of the files that ship: in the package, or beside it in a checkout."""
    package = Path(__file__).parent
    for directory in (package / "shipped", package.parent / "weights"):
        if (directory / RECORDING).is_file():
            return directory
    raise CommandError(f"{RECORDING}: is neither in {package} nor beside it; reinstall edgeconv")


def demo() -> None:
    """Read, convert, load, stream and measure; a CommandError if an output is wrong."""
    directory = shipped_files()
    checkpoint = directory / CHECKPOINT
    with np.load(directory / RECORDING) as archive:
        recording = dict(archive)
    prefix, x, expected = str(recording["prefix"]), recording["inputs"], recording["outputs"]
    lengths, frame_time = recording["chunk_lengths"], 1 / float(recording["frames_per_second"])
    print(
        "A streaming ESPnet encoder with its initial weights: it is NOT TRAINED and transcribes\n"
        "nothing. Its architecture, its checkpoint and PyTorch's arithmetic are real.\n"
    )
    _say("read", f"{CHECKPOINT}: {summary(read_checkpoint(checkpoint))}")
    with tempfile.TemporaryDirectory() as temporary:
        small = Path(temporary) / "small.npz"
        with explaining_compilation():
            written = convert(checkpoint, small, causal=True)
        for name, channels, kernel_size in written:
            _say("found", f"{name:<36} {channels:5} channels, {kernel_size} taps")
        _say("converted", f"these to small.npz: {small.stat().st_size / 1e6:.2f} MB")
        conv = load(small, prefix)
    _say("loaded", prefix)
    with explaining_compilation():
        stream = conv.stream()
        offline = conv(x[np.newaxis])[0]
    streamed = np.empty_like(x)
    for frame, out in zip(x, streamed, strict=True):
        stream.step(frame, out)
    _say("streamed", f"{RECORDING}: {len(x)} frames that entered this convolution in PyTorch,")
    _say("", f"in {len(lengths)} chunks, from {len(x) * frame_time:.1f} s of synthetic speech\n")

    difference = np.abs(streamed - expected)
    bound = 2 * _error_bound(conv, x)  # each of the two may be off by once the bound
    worst = np.unravel_index(difference.argmax(), difference.shape)
    agrees = bool((difference <= bound).all())
    _say("PyTorch", f"largest difference {difference[worst]:.2g}, bound {bound[worst]:.2g} there;")
    _say("", f"all {difference.size:,} outputs within their bounds: {_answer(agrees)}")

    rng = np.random.default_rng(0)
    cuts = [np.sort(rng.integers(len(x), size=rng.integers(len(x)))) for _ in range(RANDOM_CUTS)]
    chunked = [_chunked(conv, x, cut) for cut in (np.cumsum(lengths)[:-1], *cuts)]
    is_same = all(other.tobytes() == streamed.tobytes() for other in (offline, *chunked))
    _say("same bits", f"frame by frame, in PyTorch's chunks, in chunks cut at random {len(cuts)}")
    _say("", f"times, and offline: {_answer(is_same)}\n")

    frames = itertools.cycle(x)
    calls, median, late = time_calls(lambda: stream.step(next(frames), out), SECONDS)
    _say("time a frame", f"median {median * 1e6:.1f} µs, 99th percentile {late * 1e6:.1f} µs")
    _say("", f"({calls:,} calls of `step`; {conv.channels} channels, {conv.kernel_size} taps)")
    rate = f"{1 / frame_time:.0f} frames per second"
    _say("real time", f"{frame_time / median:,.0f} times faster, at {rate}")
    _say("", "(this one convolution, not a recogniser)")
    if not (agrees and is_same):
        raise CommandError("demo: outputs are not what they must be; run `edgeconv doctor`")


def _error_bound(conv: DepthwiseConvolution, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Bound how far a causal convolution in float32 is from the exact one, in any order of sums.

    It is ``gamma(K + 1) * (|bias| + sum |w x|) + K * 2**-150`` with the ``gamma`` of Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    K = conv.kernel_size
    past = np.pad(np.abs(x.astype(np.float64)), ((K - 1, 0), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(past, K, axis=0)
    total = np.abs(conv.bias) + np.einsum("tck,ck->tc", windows, np.abs(conv.weight[:, 0]))
    rounding = (K + 1) * 2.0**-24
    bound: NDArray[np.float64] = rounding / (1 - rounding) * total + K * 2.0**-150
    return bound


def _chunked(
    conv: DepthwiseConvolution, x: NDArray[np.float32], cuts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Stream a signal in chunks that end at `cuts`; where one repeats, a chunk has no frame."""
    stream = conv.stream()
    return np.concatenate([stream.process(chunk) for chunk in np.split(x, cuts)])


def _answer(is_so: bool) -> str:
    return "yes" if is_so else "NO"


def _say(what: str, text: str) -> None:
    print(f"{what:<14}{text}")
