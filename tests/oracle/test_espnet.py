"""Parity with ESPnet 202511's own code: its module, its encoder, and what it computed on speech."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.encoder.modules.convolution import DepthwiseConvolution

import edgeconv

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"
CHECKPOINT = "espnet-streaming-encoder.pth"

# No bound of one layer holds behind attention and normalisation, where values are around 1. What
# rounding does there was measured: 1.5e-6 at most against float64, in the encoders of this file
# and of `weights/make.py`, and 2e-6 between instruction sets.
ENCODER_TOLERANCE = 1e-5

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


# The module.


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


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((32, 10, 128), None), ((10, 5, 128), np.zeros((10, 5), dtype=bool))],
    ids=["class", "forward"],
)
def test_examples_of_the_documentation(shape, mask):
    torch.manual_seed(0)
    module = DepthwiseConvolution(size=64, kernel_size=3)
    x = torch.rand(shape)
    expected, _ = module(x.clone(), tensor(mask))
    y, cache = counterpart(module)(x.numpy(), mask)
    assert y.shape == shape
    assert cache is None
    assert_within_bounds(module, y, expected.numpy(), x=x.numpy())


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


# The encoder.


class Bridge(torch.nn.Module):
    """Answer the calls of ESPnet's `DepthwiseConvolution` with this library."""

    def __init__(self, module):
        super().__init__()
        self.conv = counterpart(module, causal=module.lorder > 0)
        # The encoder makes its first cache by this size.
        self.kernel_size = module.kernel_size

    def forward(self, x, mask=None, cache=None):
        if mask is not None:
            # The block goes on with `x`, and relies on its being masked in place.
            x.masked_fill_(mask.unsqueeze(-1), 0.0)
            mask = mask.numpy()
        y, new_cache = self.conv(x.numpy(), mask, cache if cache is None else cache.numpy())
        return torch.from_numpy(y), cache if cache is None else torch.from_numpy(new_cache)


def build_encoder(streaming):
    """Build an encoder that mixes the blocks; only E-Branchformers hold the convolution."""
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "linear_size": 48, "conv_mod_kernel_size": 15}
    body = [
        {"block_type": "ebranchformer", "depth_conv_kernel_size": 31, **shape},
        {"block_type": "conformer", **shape},
        {"block_type": "ebranchformer", "num_blocks": 2, **shape},
    ]
    return Encoder(40, body, {"conv_size": 8}, {"dynamic_chunk_training": streaming}).eval()


def bridged(encoder):
    """Replace every `DepthwiseConvolution` in an encoder."""
    names = [n for n, m in encoder.named_modules() if isinstance(m, DepthwiseConvolution)]
    assert len(names) == 3
    for name in names:
        encoder.set_submodule(name, Bridge(encoder.get_submodule(name)))
    return encoder


def assert_same_encoding(encode, streaming):
    """
    Compare `encode(encoder)` with and without this library in the encoder.

    The float64 encoder measures what rounding does to this very result. Rounding three of the
    layers in another order may not take the result further away than as much again.
    """
    original = encode(build_encoder(streaming))
    replaced = encode(bridged(build_encoder(streaming)))
    exact = encode(build_encoder(streaming).double())
    rounding = (original - exact).abs().max()
    assert rounding < ENCODER_TOLERANCE
    assert (replaced - exact).abs().max() <= 2 * rounding


def cast(features, encoder):
    """Return features in the encoder's precision."""
    return features.to(next(encoder.parameters()).dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("streaming", [False, True], ids=["offline", "streaming"])
def test_encoder_forward_with_padding(streaming, seed):
    features = torch.randn(3, 203, 40, generator=torch.Generator().manual_seed(seed))
    # ESPnet cuts the features' mask to the subsampled length and does not subsample it: only
    # lengths below 50 = 203 // 4 mask anything.
    lengths = torch.tensor([203, 41, 7])

    def encode(encoder):
        # A streaming encoder draws its chunk size, in evaluation too.
        torch.manual_seed(seed)
        encoded, encoded_lengths = encoder(cast(features, encoder), lengths)
        assert encoded_lengths.tolist() == [50, 41, 7]
        return encoded

    assert_same_encoding(encode, streaming)


@pytest.mark.parametrize("sizes", [[64] * 6, [4] * 30, [128, 4, 8, 60, 100, 16]])
def test_encoder_chunk_forward_over_an_utterance(sizes):
    # A chunk brings 11 features of its past along, and gives one frame for each 4 new ones.
    overlap = 11
    features = torch.randn(1, overlap + sum(sizes), 40, generator=torch.Generator().manual_seed(0))

    def encode(encoder):
        left_context = 16
        encoder.reset_cache(left_context, torch.device("cpu"))
        encoded = []
        for end in np.cumsum(sizes):
            start = 4 * sum(chunk.size(1) for chunk in encoded)
            chunk = cast(features[:, start : end + overlap], encoder)
            processed = torch.tensor([[start // 4]])
            length = torch.tensor([chunk.size(1)])
            encoded.append(encoder.chunk_forward(chunk, length, processed, left_context))
        assert [4 * chunk.size(1) for chunk in encoded] == sizes
        return torch.cat(encoded, dim=1)

    assert_same_encoding(encode, streaming=True)


# The script that makes the shipped files, and the recording.


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
    assert sorted(first) == sorted([CHECKPOINT, "espnet-streaming-encoder.npz", "recording.npz"])
    assert first == second


def test_shipped_checkpoint_is_what_the_script_makes(remade):
    shipped, again = (torch.load(d / CHECKPOINT) for d in (WEIGHTS, remade[0]))
    assert list(shipped) == list(again)
    for name, values in shipped.items():
        # The last bit of a random weight depends on whether the CPU has a fused multiply-add.
        torch.testing.assert_close(values, again[name], rtol=0, atol=2.0**-24)


def test_shipped_recording_is_what_the_script_makes(remade):
    shipped, again = (dict(np.load(d / "recording.npz")) for d in (WEIGHTS, remade[0]))
    for recording in (shipped, again):
        del recording["made_with"]
    assert list(shipped) == list(again)
    for name in ("inputs", "outputs"):
        # The layers before this one add in an order that depends on the CPU.
        difference = np.abs(shipped.pop(name) - again.pop(name))
        assert difference.max() < ENCODER_TOLERANCE
    np.testing.assert_equal(shipped, again)


def test_recording_is_one_signal_for_espnet_too():
    """The chunks' caches made what the whole recording in one go makes, and so do streams."""
    recording = np.load(WEIGHTS / "recording.npz")
    inputs, outputs, prefix = recording["inputs"], recording["outputs"], str(recording["prefix"])
    channels = inputs.shape[1]
    state = torch.load(WEIGHTS / CHECKPOINT)
    module = DepthwiseConvolution(channels // 2, 31, causal=True)
    module.load_state_dict(
        {name: state[f"{prefix}.{name}"] for name in ("conv.weight", "conv.bias")}
    )
    whole, _ = module(tensor(inputs[None]))
    assert_within_bounds(module, outputs[None], whole.numpy(), x=inputs[None])

    conv = edgeconv.load(WEIGHTS / CHECKPOINT, prefix=prefix, causal=True)
    streamed = conv.stream().process(inputs)
    assert_within_bounds(module, streamed[None], outputs[None], x=inputs[None])
