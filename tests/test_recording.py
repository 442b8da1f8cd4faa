"""What `weights/` ships: the checkpoint, its converted file, and what PyTorch computed with it."""

import wave
from pathlib import Path

import numpy as np
import pytest
import reference
from laws import run

import edgeconv
from edgeconv.configuration import read_configuration
from edgeconv.encoder import Encoder
from edgeconv.layers.parameters import with_8_bits
from edgeconv.recogniser.audio import open_wav
from edgeconv.recogniser.features import Features

WEIGHTS = Path(__file__).parents[1] / "weights"
CHECKPOINT = WEIGHTS / "espnet-streaming-encoder.pth"
CONFIG = WEIGHTS / "espnet-streaming-encoder.yaml"
CONVERTED = WEIGHTS / "espnet-streaming-encoder.npz"
BLOCKS = "encoders.blocks"
CONVOLUTIONS = [
    (f"{BLOCKS}.0.conv_mod", 32, 31),
    (f"{BLOCKS}.0.depthwise_conv_mod", 128, 31),
    (f"{BLOCKS}.1.conv_mod", 32, 31),
    (f"{BLOCKS}.1.depthwise_conv_mod", 128, 31),
]


@pytest.fixture(scope="module")
def recording():
    with np.load(WEIGHTS / "recording.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def definition(recording):
    """Return what the definition makes of the inputs in float64, and float32's error bound."""
    state = edgeconv.read_checkpoint(CHECKPOINT)
    names = [f"{recording['prefix']}.conv.{name}" for name in ("weight", "bias")]
    terms = [recording["inputs"], *(state[name] for name in names)]
    return reference.convolve(*terms, True, reference.exact), reference.error_bound(*terms, True)


def test_files_are_small():
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()}
    large = {name: size for name, size in sizes.items() if size > 600_000}
    assert set(large) == {"cards-and-commands.pth", "cards-and-commands.npz"}
    assert large["cards-and-commands.npz"] < 3_000_000
    assert sum(sizes.values()) < 12_000_000, sizes


def test_recording_is_a_continuous_stream_of_frames(recording):
    inputs, outputs = recording["inputs"], recording["outputs"]
    assert inputs.shape == outputs.shape == (recording["chunk_lengths"].sum(), 128)
    for array in (inputs, outputs):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
        assert len(np.unique(array, axis=0)) == len(array)  # no repeated or silent frames
    assert recording["prefix"] in [prefix for prefix, _, _ in CONVOLUTIONS]
    # Windows of 640 ms are 16 frames; the first is short of what the subsampling looks ahead, and
    # the last is padded to a whole one.
    assert recording["frames_per_second"] == 25
    first, *middle, last = recording["chunk_lengths"]
    assert (first, set(middle), last) == (13, {16}, 15)
    with wave.open(str(WEIGHTS / "speech.wav")) as speech:
        assert (speech.getframerate(), speech.getnchannels()) == (16_000, 1)
        windows = -(-speech.getnframes() // (speech.getframerate() * 640 // 1000))
    assert windows == len(recording["chunk_lengths"])


@pytest.mark.parametrize("path", [CHECKPOINT, CONVERTED], ids=["checkpoint", "converted"])
def test_stream_agrees_with_pytorch(recording, definition, path):
    exact, bound = definition
    stream = edgeconv.load(path, prefix=str(recording["prefix"]), causal=True).stream()
    streamed = np.array([stream.step(frame) for frame in recording["inputs"]])
    for computed in (streamed, recording["outputs"]):
        assert np.all(np.abs(computed - exact) <= bound)


def test_converted_file_holds_the_bits_of_the_checkpoint():
    checkpoint = edgeconv.read_checkpoint(CHECKPOINT)
    modules = edgeconv.load_all(CONVERTED)
    assert edgeconv.find_convolutions(CHECKPOINT) == CONVOLUTIONS
    assert edgeconv.find_convolutions(CONVERTED) == CONVOLUTIONS
    for prefix, conv in modules.items():
        assert conv.causal
        for name, values in conv.state_dict().items():
            assert values.tobytes() == checkpoint[f"{prefix}.{name}"].tobytes()


def test_converted_file_is_what_the_converter_makes(tmp_path):
    target = tmp_path / "again.npz"
    assert edgeconv.convert(CHECKPOINT, target, config=CONFIG) == CONVOLUTIONS
    assert target.read_bytes() == CONVERTED.read_bytes()


def test_this_machine_computes_what_the_one_that_converted_it_did():
    prefixes = [prefix for prefix, _, _ in CONVOLUTIONS]
    assert list(edgeconv.verify(CONVERTED)) == [*prefixes, "encoder"]


@pytest.mark.parametrize("model", ["cards-and-commands", "espnet-streaming-encoder"])
@pytest.mark.parametrize("name", ["cards-001.wav", "goforward.wav"])
def test_eight_bits_keep_35_decibels(model, name):
    """On real recordings, offline and streamed, of a trained model and of one that is not."""
    trained, path = WEIGHTS / "cards-and-commands.pth", WEIGHTS / f"{model}.pth"
    features = Features(
        edgeconv.read_checkpoint(trained), read_configuration(trained.with_suffix(".yaml"))
    )
    x = features.whole(open_wav(WEIGHTS / "recordings" / name).samples())
    state = dict(edgeconv.read_checkpoint(path))
    configuration = read_configuration(path.with_suffix(".yaml"))
    exact, rough = (Encoder(each, configuration) for each in (state, with_8_bits(state)))
    for signal, other in (
        [encoder(x[None])[0] for encoder in (exact, rough)],
        [run(encoder.stream(), [x]) for encoder in (exact, rough)],
    ):
        assert 35 < 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm(other - signal)) < 60
