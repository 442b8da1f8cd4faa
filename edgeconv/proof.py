"""`verify`: the proof that this machine computes, bit for bit, what it must."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from edgeconv import digest
from edgeconv.arrays import described, ignoring_float_errors, is_integer
from edgeconv.checkpoint import CheckpointError, converted, read_checkpoint
from edgeconv.checkpoint.error import naming
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.weights import load, load_all

__all__ = ["VerificationError", "verify"]


class VerificationError(AssertionError):
    """A module does not compute the bits that it must: in a test, a failure and not an error."""


def verify(
    conv_or_path: DepthwiseConvolution | str | os.PathLike[str],
    prefix: str | None = None,
    *,
    seed: int = 0,
) -> dict[str, str]:
    """
    Check that this machine computes the right bits, offline and streamed.

    Parameters
    ----------
    conv_or_path : DepthwiseConvolution, str or path-like
        A converted checkpoint: its modules' outputs must have the digests that it records, so
        that this machine computes what the one that wrote the file did. Or a module: its outputs
        must be those of the definition, which NumPy evaluates in float64.
    prefix : str, optional
        Only this module of the file.
    seed : int
        Decides where the signal is cut into chunks.

    Returns
    -------
    dict of str to str
        The digests by prefix; that of a module by ``''``.

    Raises
    ------
    VerificationError
        If a digest is another one. The message names the module, both digests and the seed.
    CheckpointError
        If the file cannot be used, or records no digests.
    FloatingPointError
        If something makes this process round in another way, or flush subnormal numbers to zero.

    Notes
    -----
    The README specifies inputs and digest. They go through each module offline, on all threads,
    frame by frame, in random chunks, and through one row of a batch while the other waits.
    """
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"`seed` must be a non-negative integer, got {described(seed)}")
    if isinstance(conv_or_path, DepthwiseConvolution):
        if prefix is not None:
            raise ValueError(f"`prefix` must be None for a module in memory, got {prefix!r}")
        convs = {"": conv_or_path}
        cases = digest.cases(conv_or_path)
        digests = {"": digest.of_outputs(_definition(*case) for case in cases)}
        origin, remedy = "of the definition", "report"
    else:
        convs, digests = _recorded(conv_or_path, prefix)
        origin, remedy = "that the file records", "copy or convert the file again, or report"
    for name, conv in convs.items():
        for way, found in digest.by_way(conv, seed):
            if found != digests[name]:
                raise VerificationError(
                    f"{conv}: the outputs must have the digest {digests[name]} {origin}, got "
                    f"{found} {way}; {remedy} this with what `edgeconv doctor` prints"
                )
    return digests


def _recorded(
    path: str | os.PathLike[str], prefix: str | None
) -> tuple[dict[str, DepthwiseConvolution], dict[str, str]]:
    """Load modules and their recorded digests."""
    checkpoint = read_checkpoint(path)
    recorded = converted.digests(checkpoint)
    if recorded is None:
        with naming(checkpoint.path, checkpoint.format):
            raise CheckpointError(
                "a file to verify must record digests of what its modules compute",
                "none",
                "write it with `edgeconv convert`, from the original file",
            )
    if prefix is None:
        return load_all(path), recorded
    conv = load(path, prefix)
    return {prefix: conv}, {prefix: recorded[prefix]}


def _definition(conv: DepthwiseConvolution, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Evaluate the definition, sharing no code with the kernels."""
    left = conv.lorder if conv.causal else conv.kernel_size // 2
    padded = np.pad(x, ((left, conv.kernel_size - 1 - left), (0, 0)))
    y = np.broadcast_to(conv.bias, x.shape)
    for k in range(conv.kernel_size):
        y = _fused(conv.weight[:, 0, k], padded[k : k + len(x)], y)
    return y


@ignoring_float_errors
def _fused(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """
    Return ``a * b + c`` rounded once, to float32.

    The product of two float32 is exact in float64. Their sum is rounded to odd there (Boldo and
    Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
    odd, 2008), so that rounding it again, to float32, gives what rounding once gives.
    """
    product = a.astype(np.float64) * b
    total = product + c
    added = total - product
    error = (product - (total - added)) + (c - added)  # Knuth's exact error of the sum
    is_even = total.view(np.int64) % 2 == 0
    odd = np.nextafter(total, np.copysign(np.inf, error))
    return np.where(is_even & (np.abs(error) > 0), odd, total).astype(np.float32)
