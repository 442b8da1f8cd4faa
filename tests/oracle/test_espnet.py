"""Parity with ESPnet 202511's convolution, and the script that makes the encoder that ships."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from espnet2.asr_transducer.encoder.modules.convolution import DepthwiseConvolution

import edgeconv

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"
CHECKPOINT = "espnet-streaming-encoder.pth"

# The tests share the processor with compiled threads, and gain nothing by PyTorch's own.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def counterpart(module, causal=False):
    """Return this library's convolution with the weights of ESPnet's."""
    return edgeconv.DepthwiseConvolution.from_state_dict(module.state_dict(), causal=causal)


def tensor(array):
    """Return a tensor of its own, because ESPnet's masking writes into its input."""
    return None if array is None else torch.from_numpy(array.copy())


def error_bound(module, x, cache=None):
    """Bound the error of one float32 result, in float64; `x` is (B, T, C) and already masked."""
    K = module.kernel_size
    right = 0 if module.lorder else (K - 1) // 2
    left = K - 1 - right
    if cache is not None:
        x, left = np.concatenate([cache.swapaxes(1, 2), x], axis=1), 0
    padded = np.pad(np.abs(x, dtype=np.float64), ((0, 0), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, K, axis=1)
    weight, bias = (np.abs(values.double().numpy()) for values in module.conv.parameters())
    gamma = (K + 1) * 2.0**-24 / (1 - (K + 1) * 2.0**-24)
    return gamma * (bias + np.einsum("btck,ck->btc", windows, weight[:, 0])) + K * 2.0**-150


def assert_within_bounds(module, y, expected, *, x, mask=None, cache=None):
    """Compare two float32 results, each of which has the bound's error."""
    if mask is not None:
        x = np.where(mask[..., None], 0, x)
    difference = np.abs(y.astype(np.float64) - expected)
    assert np.all(difference <= 2 * error_bound(module, x, cache))


def masks(rng, B, T):
    """Yield no mask, padding of several lengths, scattered frames and one row for the batch."""
    yield None
    yield np.arange(T) >= rng.integers(0, T + 1, (B, 1))
    yield rng.random((B, T)) < 0.5
    yield rng.random((1, T)) < 0.5


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("kernel_size", [1, 3, 15, 31])
@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_module(size, kernel_size, causal):
    rng = np.random.default_rng(size * kernel_size)
    torch.manual_seed(size * kernel_size)
    module = DepthwiseConvolution(size, kernel_size, causal)
    conv = counterpart(module, causal)
    # No empty signal: ESPnet refuses it.
    for B, T in itertools.product([1, 3], [1, 2, kernel_size, kernel_size + 1, 100]):
        x = rng.normal(size=(B, T, conv.channels)).astype(np.float32)
        x *= 10.0 ** rng.integers(-6, 6, conv.channels)
        start = np.zeros((B, conv.channels, kernel_size - 1), dtype=np.float32)
        past = rng.normal(size=start.shape).astype(np.float32)
        caches = [None, start, past] if causal else [None]
        for mask, cache in itertools.product(masks(rng, B, T), caches):
            y, new_cache = conv(x, mask, cache)
            expected, _ = module(tensor(x), tensor(mask), tensor(cache))
            assert_within_bounds(module, y, expected.numpy(), x=x, mask=mask, cache=cache)
            if causal:
                # ESPnet returns no cache if it was given none, and zeros mean the same.
                before = start if cache is None else cache
                _, expected_cache = module(tensor(x), tensor(mask), tensor(before))
                assert new_cache.shape == expected_cache.shape
                assert new_cache.tobytes() == expected_cache.numpy().tobytes()
            else:
                assert new_cache is None


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_initial_weights_have_the_same_distribution(name):
    torch.manual_seed(0)
    ours = edgeconv.DepthwiseConvolution(1000, 15, rng=np.random.default_rng(0))
    theirs = DepthwiseConvolution(1000, 15)
    ours, theirs = (
        np.sort(values.ravel())
        for values in (getattr(ours, name), getattr(theirs.conv, name).numpy())
    )
    limit = np.float32(1 / np.sqrt(15))
    for values in (ours, theirs):
        assert 0.99 * limit < values[-1] <= limit
        assert -limit <= values[0] < -0.99 * limit
    # Kolmogorov's and Smirnov's distance; one pair in a million drawn alike exceeds the limit.
    steps = np.arange(len(theirs)) / len(theirs)
    distance = np.abs(np.searchsorted(ours, theirs) / len(ours) - steps).max()
    assert distance < np.sqrt(np.log(2e6) / len(ours))


# The script that makes the shipped encoder.


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """Run the script twice, in two directories."""
    targets = [tmp_path_factory.mktemp("weights") for _ in range(2)]
    for target in targets:
        subprocess.run(
            [sys.executable, WEIGHTS / "make.py", "--output", target],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    return targets


def test_script_makes_the_same_bytes_every_time(remade):
    first, second = ({path.name: path.read_bytes() for path in d.iterdir()} for d in remade)
    assert sorted(first) == sorted([CHECKPOINT, "espnet-streaming-encoder.npz"])
    assert first == second


def test_shipped_checkpoint_is_what_the_script_makes(remade):
    shipped, again = (torch.load(d / CHECKPOINT) for d in (WEIGHTS, remade[0]))
    assert list(shipped) == list(again)
    for name, values in shipped.items():
        # The last bit of a random weight depends on whether the CPU has a fused multiply-add.
        torch.testing.assert_close(values, again[name], rtol=0, atol=2.0**-24)
