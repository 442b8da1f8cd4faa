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


def log_mel(path, state):
    """Return normalised features of a recording, as ESPnet's frontend makes them."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 256, "reflect"), 512)[::128]
    power = np.abs(np.fft.rfft(frames * np.hanning(513)[:-1])) ** 2
    mel = np.log(np.maximum(power @ state["frontend.logmel.melmat"], 1e-10))
    return ((mel - state["normalize.mean"]) / state["normalize.std"]).astype(np.float32)


def test_eight_bits_keep_35_decibels():
    """On real recordings through the trained model, offline and streamed."""
    trained = WEIGHTS / "cards-and-commands.pth"
    state = dict(edgeconv.read_checkpoint(trained))
    exact = edgeconv.load_encoder(trained, trained.with_suffix(".yaml"))
    configuration = read_configuration(trained.with_suffix(".yaml"))
    rough = Encoder(with_8_bits(state), configuration)
    for name in ("cards-001.wav", "goforward.wav"):
        x = log_mel(WEIGHTS / "recordings" / name, state)
        whole = [encoder(x[None])[0] for encoder in (exact, rough)]
        streamed = [run(encoder.stream(), [x]) for encoder in (exact, rough)]
        for signal, other in (whole, streamed):
            noise = other - signal
            assert 35 < 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm(noise)) < 60
