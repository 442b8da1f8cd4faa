"""Whole signals: in pieces and on several threads they have the bits of streams."""

import numpy as np
import pytest
from processes import in_threads
from reference import same_bits

from edgeconv import DepthwiseConvolution

C, K = 512, 31
LONG = 40_000  # frames: several pieces, long enough for threads


def streamed(conv, x, mask=None):
    """Return what chunks of a signal (T, C) give, none of which is worth a thread."""
    if mask is not None:
        x = np.where(mask[:, None], np.float32(0), x)
    stream = conv.stream()
    chunks = [stream.process(chunk) for chunk in np.array_split(x, 1 + len(x) // 500)]
    return np.concatenate([*chunks, stream.flush()])


@pytest.mark.parametrize("causal", [True, False])
def test_a_long_signal(causal):
    conv = DepthwiseConvolution(C // 2, K, causal=causal, rng=0)
    x = np.random.default_rng(0).standard_normal((1, LONG, C), np.float32)
    expected = streamed(conv, x[0])
    y, cache = conv(x)
    assert same_bits(y[0], expected)
    assert (cache is None) != causal
    if causal:
        assert same_bits(cache[0], x[0, 1 - K :].T.copy())
    assert same_bits(conv(x.astype(np.float64))[0][0], expected)
    mask = np.random.default_rng(0).random((1, LONG)) < 0.5
    assert same_bits(conv(x, mask=mask)[0][0], streamed(conv, x[0], mask[0]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("channels", "rows", "n_frames"), [(C, 5, 9000), (72, 67, 3000)])
def test_a_large_ragged_batch(causal, channels, rows, n_frames):
    conv = DepthwiseConvolution(channels // 2, K, causal=causal, rng=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, n_frames, channels), np.float32)
    lengths = rng.integers(2 * n_frames // 3, n_frames + 1, rows)
    lengths[:4] = n_frames, 0, 1, K // 2
    y, cache = conv(x, lengths=lengths)
    for row, length in enumerate(lengths):
        assert same_bits(y[row, :length], streamed(conv, x[row, :length]))
        assert not y[row, length:].any()
        if causal:
            last = np.pad(x[row, :length], ((K - 1, 0), (0, 0)))[length:]
            assert same_bits(cache[row], last.T.copy())


def test_long_signals_in_several_threads_at_once():
    """One of them runs in parallel, the others serially: a second parallel loop could abort."""
    conv = DepthwiseConvolution(C // 2, K, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((1, LONG, C), np.float32)
    expected, _ = conv(x)
    results = []

    def run():
        results.append(same_bits(conv(x)[0], expected))

    in_threads(*[run] * 4)
    assert results == [True] * 4
