"""Sounds through other people's programs: PortAudio on ALSA, soxr, sox."""

import itertools
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import COMMAND, ENVIRONMENT, ROOT

import edgeconv
from edgeconv.recogniser.audio import open_wav, resampler

MODEL = ROOT / "weights" / "cards-and-commands.npz"
RECORDING = ROOT / "weights" / "recordings" / "numbers.wav"
TRANSCRIBE = [*COMMAND, "transcribe", str(MODEL)]

# A microphone that hears a file, again and again, as fast as it is read.
ALSA = """
pcm.loop { type file slave.pcm null file /dev/null infile FILE format raw
           hint { show on description loop } }
pcm.!default { type plug slave.pcm loop }
"""


@pytest.fixture
def microphone(tmp_path):
    """Return the environment in which ALSA has it."""
    (tmp_path / "said.raw").write_bytes(RECORDING.read_bytes()[44:])
    (tmp_path / ".asoundrc").write_text(ALSA.replace("FILE", str(tmp_path / "said.raw")))
    return ENVIRONMENT | {"HOME": str(tmp_path)}


@pytest.mark.parametrize("device", [[], ["loop"]])
def test_a_microphone_is_transcribed(device, microphone):
    whole = edgeconv.load_recogniser(MODEL).transcribe(16000, open_wav(RECORDING).samples())
    command = [*TRANSCRIBE, "--json", "--microphone", *device]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=microphone, text=True, **pipes) as process:
        results = map(json.loads, process.stdout)
        result = next(result for result in results if result["tokens"])
        process.send_signal(signal.SIGINT)
        *_, last = itertools.chain([result], results)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert result["tokens"] == list(whole.tokens[: len(result["tokens"])])
    assert last["is_final"]
    assert all(line.startswith("edgeconv: ") for line in errors.splitlines())  # nothing of ALSA's


def test_a_microphone_gives_every_sample(microphone):
    program = """
import itertools, sys, numpy as np
from edgeconv.recogniser.audio import open_wav
from edgeconv.recogniser.microphone import open_microphone
expected = open_wav(sys.argv[1]).samples()
audio = open_microphone("loop", 16000, id)
heard = np.concatenate([*itertools.islice(audio.blocks, len(expected) // 800)])
audio.close()
print(audio.sample_rate, np.array_equal(heard, expected[: len(heard)]), len(heard))
"""
    command = [sys.executable, "-c", program, RECORDING]
    output = subprocess.check_output(command, env=microphone, text=True)
    assert output.split()[:2] == ["16000", "True"]


def test_microphones_of_alsa_are_listed_and_others_are_not_found(microphone):
    listed = subprocess.check_output([*TRANSCRIBE, "--list-devices"], env=microphone, text=True)
    assert any(line.startswith("loop ") for line in listed.splitlines())
    command = [*TRANSCRIBE, "--microphone", "none such"]
    done = subprocess.run(command, env=microphone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "microphone none such: No input device matching 'none such'; --list-d" in done.stderr


def test_a_pipe_from_sox():
    expected = edgeconv.load_recogniser(MODEL).transcribe(16000, open_wav(RECORDING).samples())
    for kind in (["-t", "raw"], ["-t", "wav"]):  # a WAV whose header knows no length
        with subprocess.Popen(["sox", RECORDING, *kind, "-"], stdout=subprocess.PIPE) as sox:
            output = subprocess.check_output([*TRANSCRIBE, "-"], env=ENVIRONMENT, stdin=sox.stdout)
        assert output.decode() == f"{expected.text}\n"


@pytest.mark.parametrize(
    "bits", [["-b", "8"], ["-b", "24"], ["-b", "32"], ["-e", "floating-point"]]
)
def test_wavs_of_sox(bits, tmp_path):
    subprocess.run(["sox", "-D", RECORDING, *bits, tmp_path / "a.wav"], check=True)
    read, expected = open_wav(tmp_path / "a.wav").samples(), open_wav(RECORDING).samples()
    assert np.abs(read - expected).max() <= (1 / 128 if "8" in bits else 0)


@given(
    st.sampled_from([(48000, 16000), (44100, 16000), (8000, 16000), (16000, 8000)]),
    st.lists(st.integers(0, 4000), max_size=20),
)
def test_resampled_samples_are_the_same_however_they_come(rates, cuts):
    signal = np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32)
    whole = resampler(*rates).resample_chunk(signal, last=True)
    assert len(whole) == pytest.approx(len(signal) * rates[1] / rates[0], abs=1)
    stream = resampler(*rates)
    pieces = [stream.resample_chunk(piece) for piece in np.split(signal, sorted(cuts))]
    again = np.concatenate([*pieces, stream.resample_chunk(signal[:0], last=True)])
    assert again.dtype == np.float32
    assert np.array_equal(again, whole)


def test_a_tone_stays_a_tone():
    tone = np.sin(np.arange(44100) * 2 * np.pi * 1000 / 44100).astype(np.float32)
    resampled = resampler(44100, 16000).resample_chunk(tone, last=True)
    expected = np.sin(np.arange(16000) * 2 * np.pi * 1000 / 16000)
    assert np.abs(resampled - expected)[500:-500].max() < 1e-4


def test_text_and_scores_of_another_rate_do_not_depend_on_cuts():
    recogniser = edgeconv.load_recogniser(MODEL)
    samples = np.repeat(open_wav(RECORDING).samples()[:30000], 3)  # 48 kHz, not well made
    expected = recogniser.transcribe(48000, samples)
    stream, rng = recogniser.stream(), np.random.default_rng(0)
    for n_cuts in range(20):
        for piece in np.split(samples, np.sort(rng.integers(len(samples), size=n_cuts))):
            stream.accept_waveform(48000, piece)
        assert stream.input_finished() == expected


def test_files_of_other_rates(tmp_path):
    for rate in ("8000", "44100"):
        path = tmp_path / f"{rate}.wav"
        subprocess.run(["sox", RECORDING, "-r", rate, "-c", "2", path], check=True)
        output = subprocess.check_output([*TRANSCRIBE, path], env=ENVIRONMENT, text=True)
        expected = edgeconv.load_recogniser(MODEL).transcribe(int(rate), open_wav(path).samples())
        assert output == f"{expected.text}\n"
