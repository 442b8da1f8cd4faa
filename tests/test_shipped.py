"""What `weights/` ships: files and their sizes, the converted encoder, what 8 bits cost."""

from pathlib import Path

import numpy as np
import pytest
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


def test_files_are_small():
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()}
    large = {name: size for name, size in sizes.items() if size > 600_000}
    assert set(large) == {"cards-and-commands.pth", "cards-and-commands.npz"}
    assert large["cards-and-commands.npz"] < 3_000_000
    assert sum(sizes.values()) < 12_000_000, sizes


def test_converted_file_is_what_the_converter_makes(tmp_path):
    target = tmp_path / "again.npz"
    assert edgeconv.convert(CHECKPOINT, target, config=CONFIG) == CONVOLUTIONS
    assert edgeconv.find_convolutions(CHECKPOINT) == CONVOLUTIONS
    assert edgeconv.find_convolutions(CONVERTED) == CONVOLUTIONS
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
