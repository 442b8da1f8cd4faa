"""`edgeconv transcribe --microphone`, with one that stands for all."""

import re
import sys
import types

import numpy as np
import pytest
from processes import ROOT

import edgeconv
from edgeconv import cli
from edgeconv.recogniser.audio import open_wav
from edgeconv.recogniser.microphone import open_microphone

MODEL = str(ROOT / "weights" / "cards-and-commands.npz")
SOUND = open_wav(ROOT / "weights" / "recordings" / "numbers.wav").samples()
PCM = (SOUND * 32768).astype("<i2").tobytes()


class Microphones(types.ModuleType):
    """Stands for sounddevice: a microphone that says what was said, as fast as it is taken."""

    class PortAudioError(Exception):
        pass

    devices = (
        {"name": "Speaker", "max_input_channels": 0, "default_samplerate": 48000.0},
        {"name": "USB Mic", "max_input_channels": 1, "default_samplerate": 48000.0},
    )
    default = types.SimpleNamespace(device=(1, 0))
    only = 16000, 1  # what the device can do

    def __init__(self, said):
        super().__init__("sounddevice")
        self.said = said

    def query_devices(self, device=None, kind=None):
        if device not in (None, 1, "USB"):
            raise ValueError(f"No input device matching {device!r}")
        return self.devices[1] if kind else self.devices

    def check_input_settings(self, samplerate, channels, **_):
        if (samplerate, channels) != self.only:
            raise self.PortAudioError("Invalid sample rate", -9997)

    def RawInputStream(  # noqa: N802
        self, device, channels, blocksize, callback, finished_callback, **_
    ):
        if device == 1:
            raise self.PortAudioError("Device unavailable", -9985)

        def start():
            size = 2 * channels * blocksize
            for at in range(0, len(self.said), size):
                status = types.SimpleNamespace(input_overflow=at == 10 * size)
                callback(memoryview(self.said)[at : at + size], blocksize, None, status)
            finished_callback()

        return types.SimpleNamespace(start=start, close=lambda: None)


@pytest.fixture(scope="module")
def text():
    recogniser = edgeconv.load_recogniser(MODEL)
    recogniser.stream()  # compiles what no test expects to be announced
    return recogniser.transcribe(16000, SOUND).text


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `edgeconv transcribe MODEL ...`; return exit status, standard output and error."""
    monkeypatch.setitem(sys.modules, "sounddevice", Microphones(PCM))
    return lambda *words: (cli.main(["transcribe", MODEL, *words]), *capsys.readouterr())


def test_a_microphone_that_is_too_fast_and_then_disappears(run, text):
    """All was copied before any was heard: nothing of it is lost, and how much waited is said."""
    status, output, errors = run("--microphone", "USB")
    listening, behind, lost, gone = errors.splitlines()
    assert "listening to microphone USB at 16000 Hz; Ctrl-C ends" in listening
    assert re.search(r"\b4 s behind: computing takes longer than speaking; nothing is los", behind)
    assert "microphone USB: the sound system lost samples; this machine is too busy" in lost
    assert "microphone USB: it has disappeared: no sound comes; plug it in" in gone
    assert (status, output) == (1, f"{text}\n")


def test_a_microphone_of_another_rate_in_stereo(run, monkeypatch):
    monkeypatch.setattr(Microphones, "only", (48000, 2))
    audio = open_microphone("USB", 16000, lambda _: None)
    assert (audio.sample_rate, audio.is_live, audio.seconds) == (48000, True, None)
    pairs = SOUND[: len(next(audio.blocks)) * 2].reshape(-1, 2)
    audio = open_microphone("USB", 16000, lambda _: None)
    assert np.array_equal(next(audio.blocks), (pairs[:, 0] + pairs[:, 1]) / 2)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("1", "microphone 1: Device unavailable; another program has it: `fuser"),
        ("0", "microphone 0: No input device matching 0"),
        ("Bluetooth", "No input device matching 'Bluetooth'; --list-devices shows them all"),
    ],
)
def test_a_microphone_that_cannot_be_had(device, words, run):
    status, output, errors = run("--microphone", device)
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert words in errors


def test_no_microphone_is_the_default(run, monkeypatch):
    monkeypatch.setattr(Microphones, "default", types.SimpleNamespace(device=(-1, 0)))
    status, _, errors = run("--microphone")
    assert (status, errors.count("\n")) == (1, 1)
    assert "is the system's default; --list-devices shows them all: --microphone 2" in errors
    monkeypatch.setattr(Microphones, "devices", ())
    status, _, errors = run("--microphone")
    assert (status, errors.count("\n")) == (1, 1)
    assert "no microphone was found; `arecord -l`" in errors


def test_microphones_are_listed(run, capsys, monkeypatch):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["transcribe", "--list-devices"])
    output = capsys.readouterr().out
    assert output.splitlines()[1].split() == ["USB", "Mic", "(default)", "1", "1", "48000"]
    assert "Speaker" not in output
    monkeypatch.setattr(Microphones, "devices", ())
    assert cli.main(["transcribe", "--list-devices"]) == 1
    assert "no microphone was found; `arecord -l`" in capsys.readouterr().err
