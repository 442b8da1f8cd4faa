"""Real recordings: what a trained model hears, and the bits of what tiny ones do."""

import json
import pathlib
import wave

import numpy as np
import pytest
from recogniser_states import KINDS, recogniser

from edgeconv import Recogniser, load_recogniser
from edgeconv.layers.parameters import with_8_bits

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = pathlib.Path(__file__).with_name("data") / "recogniser.json"


@pytest.fixture(scope="module")
def trained():
    stem = ROOT / "weights" / "cards-and-commands"
    return load_recogniser(stem.with_suffix(".pth"), stem.with_suffix(".yaml"))


def recording(name):
    with wave.open(str(ROOT / "weights" / "recordings" / name)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


STORED = json.loads((ROOT / "weights" / "cards-and-commands.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", STORED)
def test_real_speech_is_heard_as_pytorch_hears_it(name, trained):
    for window_ms, text in STORED[name].items():
        result = trained.transcribe(16000, recording(name), window_ms=int(window_ms))
        assert result.text == text


@pytest.mark.parametrize("beam_size", [1, 5])
@pytest.mark.parametrize(
    ("name", "cut_ms"),  # the last two lose a word without tail padding
    [
        *((f"cards-00{n}.wav", 0) for n in (1, 2, 3, 4, 5)),
        ("goforward.wav", 0),
        ("numbers.wav", 0),
        ("something.wav", 0),
        ("synthetic-1.wav", 60),
        ("synthetic-2.wav", 100),
    ],
)
def test_a_recording_that_ends_with_its_last_word_loses_no_word(name, cut_ms, beam_size, trained):
    samples, rng = recording(name), np.random.default_rng(0)
    quiet = rng.normal(0, 3, 20480).astype(np.int16)
    loudness = np.convolve(np.abs(samples.astype(float)), np.ones(400) / 400, "same")
    end = np.flatnonzero(loudness > 0.05 * loudness.max())[-1] + 160
    spoken = samples[: end - 16 * cut_ms]
    stream = trained.stream(beam_size=beam_size)
    for lead in range(0, 10240, 1031):  # the word's end at ten places in a window, and in a frame
        cut = np.concatenate([quiet[:lead], spoken])
        uncut = trained.transcribe(
            16000, np.concatenate([cut, quiet]), beam_size=beam_size, tail_padding_ms=0
        )
        stream.accept_waveform(16000, cut)
        assert stream.input_finished().tokens == uncut.tokens


def golden():
    """Return what three tiny recognisers hear in a real recording; a score's bits as text."""
    heard = {}
    for kind in KINDS:
        state, configuration = recogniser(kind)
        for weights, tensors in (("float32", state), ("int8", with_8_bits(state))):
            model = Recogniser(tensors, configuration)
            for beam_size in (1, 4):
                result = model.transcribe(16000, recording("cards-005.wav"), beam_size=beam_size)
                heard[f"{kind}, {weights}, beam {beam_size}"] = {
                    "text": result.text,
                    "timestamps": " ".join(map(str, result.timestamps)),
                    "score": result.score.hex(),
                }
    return heard


def test_text_and_scores_are_those_of_every_other_machine():
    """They are those of the machine that wrote the file: `python tests/test_trained.py`."""
    assert golden() == json.loads(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
