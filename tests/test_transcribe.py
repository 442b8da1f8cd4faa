"""`edgeconv transcribe`: what it prints where, what it says when something is wrong."""

import io
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from processes import PATHS, ROOT

import edgeconv
from edgeconv import cli
from edgeconv.recogniser import RecogniserStream, Result
from edgeconv.recogniser.audio import open_wav

MODEL = str(ROOT / "weights" / "cards-and-commands.npz")
NAMES = ["numbers", "synthetic-2"]  # of several words
FILES = [str(ROOT / "weights" / "recordings" / f"{name}.wav") for name in NAMES]
COMMAND = [sys.executable, "-m", "edgeconv", "transcribe", MODEL]
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
SUMMARY = r"edgeconv: (\d+\.\d\d) s of audio in \d+\.\d\d s of computing: \d\.\d{4} of real time\n"


@pytest.fixture(scope="module")
def recogniser():
    recogniser = edgeconv.load_recogniser(MODEL)
    recogniser.stream()  # compiles what no test expects to be announced
    return recogniser


@pytest.fixture(scope="module")
def sounds():
    return [open_wav(path).samples() for path in FILES]


@pytest.fixture(scope="module")
def texts(recogniser, sounds):
    texts = [recogniser.transcribe(16000, sound).text for sound in sounds]
    assert all(" " in text for text in texts)
    return texts


def raw(sound):
    return (sound * 32768).astype("<i2").tobytes()


@pytest.fixture
def run(recogniser, monkeypatch, capsys):
    """Run `edgeconv transcribe MODEL ...`; return exit status, standard output and error."""

    def run(*arguments, stdin=b"", model=MODEL):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = cli.main(["transcribe", model, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_a_file_is_a_line(run, texts, sounds):
    status, output, errors = run(FILES[0])
    assert (status, output) == (0, f"{texts[0]}\n")
    (seconds,) = re.fullmatch(SUMMARY, errors).groups()
    assert float(seconds) == pytest.approx(len(sounds[0]) / 16000, abs=0.01)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_options_stand_anywhere_and_several_files_have_names(place, run, texts):
    arguments = [*FILES[:place], "--window-ms", "640", *FILES[place:]]
    status, output, _ = run(*arguments)
    assert status == 0
    assert output == "".join(f"{f}: {text}\n" for f, text in zip(FILES, texts, strict=True))


@pytest.mark.parametrize("kind", ["raw", "odd", "wav"])
def test_standard_input(kind, run, texts, sounds):
    data = Path(FILES[0]).read_bytes() if kind == "wav" else raw(sounds[0])
    assert run("-", stdin=data + b"\7" * (kind == "odd")) == (0, f"{texts[0]}\n", "")


def test_a_named_pipe_is_read_once(run, texts, tmp_path):
    """As a shell's <(sox ...)."""
    os.mkfifo(tmp_path / "pipe")
    data = Path(FILES[0]).read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[data])
    writer.start()
    assert run(tmp_path / "pipe")[:2] == (0, f"{texts[0]}\n")
    writer.join()


def test_options_reach_the_stream(run, recogniser, sounds):
    options = {"window_ms": 160, "left_context": 8, "beam_size": 4, "tail_padding_ms": 0}
    words = ["--window-ms=160", "--left-context=8", "--beam=4", "--tail-padding-ms=0"]
    expected = recogniser.transcribe(16000, sounds[0], **options)
    _, output, _ = run(*words, "--threads=2", "--json", FILES[0])
    final = json.loads(output.splitlines()[-1])
    assert final["text"] == expected.text
    assert final["score"] == expected.score
    assert final["score"] != recogniser.transcribe(16000, sounds[0]).score


def test_every_result_as_json(run, texts, sounds, recogniser):
    status, output, errors = run("--json", *FILES)
    assert status == 0
    assert re.fullmatch(SUMMARY, errors)
    results = [json.loads(line) for line in output.splitlines()]
    assert [r["text"] for r in results if r["is_final"]] == texts
    for file, sound in zip(FILES, sounds, strict=True):
        own = [r for r in results if r["file"] == file]
        assert [r["is_final"] for r in own] == [False] * (len(own) - 1) + [True]
        assert (
            3 < len(own) < len(sound) / 16000 / 0.5
        )  # one for each window, and not for each block
        heard = [r["heard"] for r in own]
        assert heard == sorted(heard)
        assert heard[-1] == pytest.approx(len(sound) / 16000, abs=1e-3)
        last = recogniser.transcribe(16000, sound)
        assert own[-1]["tokens"] == list(last.tokens)
        assert own[-1]["timestamps"] == pytest.approx(last.timestamps, abs=1e-3)


def test_endpoints_end_lines_of_what_is_live(run, sounds, texts):
    silence = np.zeros(3 * 16000, np.float32)
    said = raw(np.concatenate([sounds[0], silence, silence, sounds[1]]))
    lines = run("-", stdin=said)[1].splitlines()
    assert lines[0] == texts[0]
    assert len(lines) == 2  # silence alone is no line
    assert run("-", "--no-endpoint", stdin=said)[1].count("\n") == 1
    lines = [json.loads(line) for line in run("-", "--json", stdin=said)[1].splitlines()]
    assert sum(line["is_final"] and line["text"] != "" for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.wav", "--beam", "4", "b.wav", "--weird"], "unrecognized arguments: .*--weird"),
        (["a.wav", "--window-ms", "x"], "invalid float value: 'x'"),
    ],
)
def test_wrong_command_line(arguments, words, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["transcribe", MODEL, *arguments])
    assert re.search(words, capsys.readouterr().err)


def test_a_microphone_takes_no_model(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["transcribe", "--microphone", "a model.pth"])
    assert "edgeconv transcribe 'a model.pth' --microphone" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], [MODEL], [FILES[1]], ["-"], ["--microphone"]])
def test_a_recording_where_the_model_should_be(arguments, run):
    status, output, errors = run(*arguments, model=FILES[0])
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert f"is a WAV; MODEL comes first: edgeconv transcribe MODEL {FILES[0]}" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.wav"], "missing.wav: No such file or directory; check the path$"),
        ([FILES[0], "some.ogg"], "some.ogg: .* found Ogg; convert it: ffmpeg -i some.ogg"),
        (["empty.wav"], "empty.wav: no samples came"),
        (["slow.wav"], "slow.wav: .* a rate from 1000 to 768000 Hz, found 1 channels at 1 Hz"),
        (["-"], "standard input: no samples came; if a program records them, see what it says"),
        (["nan.wav"], "nan.wav: its floats must be within -1 to 1; save it as 16-bit PCM"),
        (["-", "-"], "- must be given once"),
        ([], "MODEL must come either AUDIO, which may be -, or --microphone"),
        (["a.wav", "--microphone"], "MODEL must come either AUDIO, which may be -, or --micr"),
        ([FILES[0], "--window-ms", "1"], "--window-ms must be at least"),
        ([FILES[0], "--beam", "0"], "--beam must be from 1"),
        ([FILES[0], "--threads", "0"], "--threads must be from 1"),
        ([FILES[0], "--tail-padding-ms", "-1"], "--tail-padding-ms must be from 0"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(arguments, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.ogg").write_bytes(b"OggS\0\2" + bytes(99))
    with wave.open("empty.wav", "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    form = np.array([16, 0x00010003, 16000, 64000, 0x00200004], "<u4").tobytes()
    head = b"RIFF\0\0\0\0WAVEfmt " + form + b"data\0\0\0\0"
    slow = head.replace(form, np.array([16, 0x00010003, 1, 4, 0x00200004], "<u4").tobytes())
    (tmp_path / "slow.wav").write_bytes(slow)
    (tmp_path / "nan.wav").write_bytes(head + np.full(99, np.nan, "<f4").tobytes())
    status, output, errors = run(*arguments)
    is_usage = "MODEL" in words or "once" in words
    assert status == 1 + is_usage
    assert not output.strip()  # nothing was computed before the error is known
    assert re.search(words, errors)
    assert errors.count("\n") == 1


def test_a_file_that_was_cut_short_is_told(run, tmp_path):
    (tmp_path / "a.wav").write_bytes(Path(FILES[0]).read_bytes()[:-32000])
    status, _, errors = run(tmp_path / "a.wav")
    assert status == 0
    assert re.search(r"a.wav: ends after 3\.\d+ s; its header promises 4\.02 s\n", errors)


def test_a_model_that_is_not_causal_takes_files_only(run, tmp_path, sounds):
    text = (ROOT / "weights" / "cards-and-commands.yaml").read_text()
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("dynamic_chunk_training: true", "dynamic_chunk_training: false"))
    model = MODEL.replace(".npz", ".pth")
    whole = edgeconv.load_recogniser(model, config).transcribe(16000, sounds[0])
    status, output, _ = run(FILES[0], "--config", config, model=model)
    assert (status, output) == (0, f"{whole.text}\n")
    status, _, errors = run("-", "--config", config, model=model, stdin=raw(sounds[0]))
    assert status == 1
    assert "dynamic_chunk_training" in errors
    assert "transcribe a WAV file" in errors


def on_a_terminal(arguments, stdin=None, until=None, **environment):
    """Return exit status and what a terminal shows; send Ctrl-C when it shows `until`."""
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=ENVIRONMENT | environment,
        stdin=stdin or subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        cwd="/",
    ) as started:
        os.close(writer)
        shown = b""
        for more in read_terminal(reader):
            shown += more
            if until is not None and until in shown:
                started.send_signal(signal.SIGINT)
                until = None
    return started.returncode, shown.decode().replace("\r\n", "\n")


def read_terminal(reader):
    """Yield what is written to a terminal, up to its end."""
    try:
        while more := os.read(reader, 2**16):
            yield more
    except OSError:  # how a terminal ends
        os.close(reader)


def test_a_line_grows_in_place_on_a_terminal(texts):
    status, shown = on_a_terminal(FILES)
    assert status == 0
    *lines, last = re.findall(r".*\n", shown)
    assert re.fullmatch(SUMMARY, last)
    for line, file, text in zip(lines, FILES, texts, strict=True):
        *grown, cleared = line.split("\x1b[K")
        assert len(grown) > 2
        assert all(text.startswith(part.strip()) for part in grown)
        assert grown[-1] == "\r"
        assert cleared == f"{file}: {text}\n"
        assert sorted(grown[:-1], key=len) == grown[:-1]


def test_what_is_longer_than_the_terminal_shows_its_end(texts):
    _, shown = on_a_terminal(FILES[:1], COLUMNS="12")
    grown = re.findall(r"\r([^\r]*)\x1b\[K", shown)
    assert max(map(len, grown)) == 11
    assert any(part.startswith("…") and texts[0].endswith(part[1:]) for part in grown)
    assert f"{texts[0]}\n" in shown  # final lines are whole


@pytest.fixture(params=["stdout", "stderr"])
def slow_terminal(request, monkeypatch, recogniser):
    """Return a function that runs a command; one of its streams is a terminal, a block 0.2 s."""

    def run(*arguments):
        reader, writer = pty.openpty()
        shown = []
        thread = threading.Thread(target=lambda: shown.extend(read_terminal(reader)))
        thread.start()
        clock = itertools.count(0, 0.1)
        with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, request.param, terminal)
            patch.setattr(time, "perf_counter", lambda: next(clock))
            patch.setenv("TERM", "xterm")
            assert cli.main(["transcribe", MODEL, *map(str, arguments)]) == 0
        thread.join()
        return request.param, re.findall(r"\r([^\r\n]*)\x1b\[K", b"".join(shown).decode())

    return run


def test_how_much_of_a_file_was_heard_is_shown_after_a_second(slow_terminal, texts, capsys):
    stream, shown = slow_terminal(FILES[0])
    progress = [re.fullmatch(r" *(?:(\d+)% )?(.*)", line).groups() for line in shown]
    shares = [int(share) for share, _ in progress if share]
    assert len(shares) > 20
    assert shares == sorted(shares)
    assert (shares[0] > 5, shares[-1]) == (True, 100)
    said = [text for share, text in progress if share and text]
    if stream == "stdout":
        assert said[-1] == texts[0]
    else:  # the texts are in a file
        assert said == []
        assert capsys.readouterr().out == f"{texts[0]}\n"
    assert shown[-1] == ""  # it is cleared


def test_the_seconds_of_a_file_of_unknown_length_are_shown(slow_terminal, tmp_path):
    data = bytearray(Path(FILES[0]).read_bytes())
    data[40:44] = bytes(4)
    (tmp_path / "a.wav").write_bytes(data)
    _, shown = slow_terminal(tmp_path / "a.wav")
    seconds = [int(found[1]) for line in shown if (found := re.match(r" +(\d+) s ", line))]
    assert seconds == sorted(seconds)
    assert set(seconds) == {0, 1, 2, 3, 4}


def test_a_dumb_terminal_shows_lines_only(texts):
    status, shown = on_a_terminal(FILES[:1], TERM="dumb")
    assert status == 0
    assert re.fullmatch(re.escape(f"{texts[0]}\n") + SUMMARY, shown)


def test_ctrl_c_waits_for_the_end_of_a_call(run, monkeypatch):
    accept, calls = RecogniserStream.accept_waveform, []

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        calls.append(accept(*arguments))
        return calls[-1]

    monkeypatch.setattr(RecogniserStream, "accept_waveform", interrupted)
    assert run(FILES[0]) == (130, "\n", "")
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_call_that_ends_an_utterance_loses_nothing(run, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)
        return Result("all of it", (), (), True, 0.0)

    monkeypatch.setattr(RecogniserStream, "accept_waveform", interrupted)
    status, output, _ = run(FILES[0])
    assert (status, output.splitlines()[0]) == (130, "all of it")


def test_ctrl_c_prints_what_was_said(sounds, texts):
    first = texts[0].split()[0]
    reader, writer = os.pipe()  # it stays open, as a recorder's does
    os.write(writer, raw(sounds[0][:32000]))
    status, shown = on_a_terminal(["-"], stdin=reader, until=f"\r{first}".encode())
    assert status == 130
    assert shown.endswith("\n")
    assert shown.split("\x1b[K")[-1].startswith(first)
    assert "Traceback" not in shown


@pytest.mark.parametrize("extra", ["audio", "microphone"])
def test_what_is_not_installed_is_named_with_the_remedy(extra, run, tmp_path, monkeypatch, sounds):
    for module in ("soxr", "sounddevice"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(raw(sounds[0]))
    status, _, errors = run(*([path] if extra == "audio" else ["--microphone"]))
    assert (status, errors.count("\n")) == (1, 1)
    assert f"pip install 'edgeconv[{extra}]'" in errors
    assert "8000 Hz must be resampled to 16000 Hz" in errors or extra == "microphone"
