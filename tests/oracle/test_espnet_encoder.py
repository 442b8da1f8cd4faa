"""The encoder against ESPnet 202511's: whole utterances, its streaming, and the chunk mask."""

import numpy as np
import pytest
import torch
from espnet2.asr_transducer.encoder.encoder import Encoder as Original

from edgeconv.encoder import Encoder

TOLERANCE = 1e-4  # of the largest output
torch.set_num_threads(1)

INPUTS = {"conv2d": (False, 4), "vgg4": (True, 4), "vgg6": (True, 6)}
EXACT = {"conv2d": 11, "vgg6": 15}  # feature frames that ESPnet's windows share
KINDS = ["conformer", "ebranchformer", "branchformer"]
SEEDS = range(3)
SHAPES = [
    {"hidden_size": 32, "linear_size": 64, "heads": 4, "conv_mod_kernel_size": 15},
    {"hidden_size": 36, "linear_size": 50, "heads": 3, "conv_mod_kernel_size": 3},
    {"hidden_size": 64, "linear_size": 96, "heads": 1, "conv_mod_kernel_size": 31},
]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def pair(kinds, block_input="conv2d", shape=SHAPES[0], seed=0, causal=True, **main):
    """Return ESPnet's encoder with random weights and statistics, and this library's."""
    torch.manual_seed(seed)
    is_vgg, factor = INPUTS[block_input]
    body = [{"block_type": kind, **shape} for kind in kinds]
    block = {"vgg_like": is_vgg, "subsampling_factor": factor, "conv_size": (5, 8) if is_vgg else 8}
    main = {"dynamic_chunk_training": causal, **main}
    original = Original(40, [dict(b) for b in body], dict(block), dict(main)).eval()
    original.dynamic_chunk_training = False  # it would draw chunks at random
    for name, parameter in original.named_parameters():
        if "norm" in name and parameter.ndim:
            parameter.add_(0.2 * torch.randn(parameter.shape))
    for name, buffer in original.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    state = {name: array.numpy() for name, array in original.state_dict().items()}
    conf = {"body_conf": body, "input_conf": block, "main_conf": main}
    return original, Encoder(state, {"input_size": 40, "encoder_conf": conf})


def features(n_frames, seed=0):
    return np.random.default_rng(seed).standard_normal((n_frames, 40), np.float32)


def assert_close(y, expected):
    assert y.shape == expected.shape
    assert len(y)
    assert np.abs(y - expected).max() <= TOLERANCE * np.abs(expected).max()


def streamed(original, x, chunk_size, left_context, shared):
    """Run ESPnet's `chunk_forward` over its own windows of unbroken features."""
    original.reset_cache(left_context, "cpu")
    outputs, done, start, end = [], 0, 0, 4 * chunk_size - 1
    while end <= len(x):
        window = torch.from_numpy(x[None, start:end])
        sizes, frames = torch.tensor([end - start]), torch.tensor([[done]])
        y = original.chunk_forward(window, sizes, frames, left_context=left_context)[0].numpy()
        outputs.append(y)
        done += len(y)
        start, end = end - shared, end + 4 * chunk_size
    return np.concatenate(outputs)


def masked(original, x, chunk_size, left_context, lost):
    """Run ESPnet's blocks over all embeddings but the first, with the mask of the grid."""
    embedded, _ = original.embed(torch.from_numpy(x[None]))
    embedded = embedded[:, 1:]
    frames = np.arange(embedded.size(1))
    start = (frames + lost) // chunk_size * chunk_size - lost  # of each frame's chunk
    is_seen = frames >= start[:, None] - left_context
    is_seen &= frames < start[:, None] + chunk_size
    positions = original.pos_enc(embedded)
    padding = torch.zeros(1, len(frames), dtype=torch.bool)
    mask = torch.from_numpy(~is_seen)
    return original.encoders(embedded, positions, padding, chunk_mask=mask)[0].numpy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_input", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_utterances(kind, block_input, shape, causal, seed):
    original, encoder = pair([kind] * 3, block_input, shape, seed, causal)
    for n_frames in (11, 12, 13, 14, 203):
        x = features(n_frames, seed)[None]
        expected, _ = original(torch.from_numpy(x), torch.tensor([n_frames]))
        assert_close(encoder(x)[0], expected[0].numpy())


def test_ragged_batches_row_by_row():
    original, encoder = pair(["conformer", "ebranchformer"], causal=False)
    x, lengths = np.stack([features(200, seed) for seed in range(3)]), [200, 55, 131]
    y, counts = encoder(x, lengths=lengths)
    for row, length, out, count in zip(x, lengths, y, counts, strict=True):
        alone, _ = original(torch.from_numpy(row[None, :length]), torch.tensor([length]))
        assert_close(out[:count], alone[0].numpy())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("geometry", [(20, 32), (8, 3), (5, 0), (6, 100)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_input", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_where_espnets_is_exact(kind, block_input, shape, geometry, seed):
    original, encoder = pair([kind] * 2, block_input, shape, seed)
    assert_streams_as_espnet(original, encoder, block_input, geometry, seed)


@pytest.mark.parametrize("seed", range(30))
def test_streaming_of_any_shape(seed):
    draw = np.random.default_rng(seed)
    heads = int(draw.integers(1, 7))
    shape = {
        "hidden_size": 2 * heads * int(draw.integers(1, 13)),
        "linear_size": 2 * int(draw.integers(1, 80)),
        "heads": heads,
        "conv_mod_kernel_size": 2 * int(draw.integers(0, 20)) + 1,
    }
    block_input = str(draw.choice(list(EXACT)))
    kinds = draw.choice(KINDS, draw.integers(1, 4)).tolist()
    original, encoder = pair(kinds, block_input, shape, seed)
    # ESPnet's first window makes 3 or 4 frames less than a chunk, and must make one.
    geometry = int(draw.integers(5, 33)), int(draw.integers(0, 65))
    assert_streams_as_espnet(original, encoder, block_input, geometry, seed)


def assert_streams_as_espnet(original, encoder, block_input, geometry, seed):
    x = features(500, seed)
    expected = streamed(original, x, *geometry, EXACT[block_input])
    stream = encoder.stream(*geometry)
    y = np.concatenate([stream.process(piece) for piece in np.split(x, [1, 100, 150])])
    # Of a window's embeddings, ESPnet holds back the last: what comes here is never less.
    assert len(expected) <= len(y) <= len(expected) + geometry[0]
    assert_close(y[: len(expected)], expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("geometry", [(1, 0), (1, 7), (2, 3), (3, 5), (4, 4), (20, 32), (400, 9)])
@pytest.mark.parametrize("block_input", INPUTS)
@pytest.mark.parametrize("kinds", [("conformer",), ("branchformer", "ebranchformer")])
def test_streaming_is_the_offline_run_with_the_mask_of_the_grid(kinds, block_input, geometry, seed):
    chunk_size, left_context = geometry
    original, encoder = pair(kinds, block_input, seed=seed)
    x = features(161, seed)
    lost = 4 if block_input == "vgg6" else 3
    expected = masked(original, x, chunk_size, left_context, lost)
    stream = encoder.stream(chunk_size, left_context)
    assert_close(np.concatenate([stream.process(x), stream.flush()]), expected)


@pytest.mark.parametrize("norm", ["layer_norm", "basic_norm", "rms_norm", "scale_norm"])
@pytest.mark.parametrize("partial", [None, 0.4])
def test_norms(norm, partial):
    shape = {**SHAPES[0], "norm_eps": 0.01, "norm_partial": partial, "conv_mod_norm_eps": 0.02}
    main = {"norm_type": norm, "conv_mod_norm_type": norm, "after_norm_partial": partial}
    original, encoder = pair(["ebranchformer", "conformer"], shape=shape, **main)
    x = features(100)[None]
    expected, _ = original(torch.from_numpy(x), torch.tensor([100]))
    assert_close(encoder(x)[0], expected[0].numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"pos_wise_act_type": "relu", "conv_mod_act_type": "tanh"},
        {"pos_wise_act_type": "hardtanh", "hardtanh_min_val": -0.2, "hardtanh_max_val": 0.3},
        {"pos_wise_act_type": "leaky_relu", "leakyrelu_neg_slope": 0.3},
        {"swish_beta": 1.5},
        {"swish_beta": 0.5},
        {"conv_mod_act_type": "identity"},
    ],
)
def test_activations(options):
    original, encoder = pair(["conformer", "ebranchformer"], **options)
    x = features(100)[None]
    expected, _ = original(torch.from_numpy(x), torch.tensor([100]))
    assert_close(encoder(x)[0], expected[0].numpy())


def test_the_shape_of_published_models():
    """12 blocks of 256, as in the benchmark: what rounding adds up to in a deep encoder."""
    shape = {"hidden_size": 256, "linear_size": 1024, "heads": 4, "conv_mod_kernel_size": 31}
    original, encoder = pair(["ebranchformer", "conformer"] * 6, shape=shape)
    x = features(400)
    expected = streamed(original, x, 16, 32, EXACT["conv2d"])
    assert_close(encoder.stream(16, 32).process(x)[: len(expected)], expected)
