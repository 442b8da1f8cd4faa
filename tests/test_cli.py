"""The command line: what it prints, its errors of one line, its exit statuses."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from processes import COMMAND, ENVIRONMENT, ROOT

import edgeconv
from edgeconv import DepthwiseConvolution, cli, load, load_all, machine, save
from edgeconv.recogniser import RecogniserStream
from edgeconv.recogniser.audio import open_wav

SHIPPED = ROOT / "weights" / "espnet-streaming-encoder.pth"
RECOGNISER = ROOT / "weights" / "cards-and-commands.npz"
RECORDINGS = ROOT / "weights" / "recordings"
FIRST = "encoders.blocks.0.depthwise_conv_mod"
CAUSAL = DepthwiseConvolution(4, 5, causal=True, rng=0)
CENTRED = DepthwiseConvolution(4, 5, causal=False, rng=0)
COMMANDS = {
    "inspect": ["inspect", "small.npz"],
    "convert": ["convert", "small.npz", "new.npz"],
    "verify": ["verify", "small.npz", "--seed", "1"],
    "transcribe": [
        "transcribe",
        str(RECOGNISER),
        str(RECOGNISER.parent / "recordings/numbers.wav"),
    ],
    "demo": ["demo"],
    "bench": ["bench"],
    "doctor": ["doctor"],
}
COMPUTING = ["convert", "verify", "transcribe", "demo", "doctor"]


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Compile what the tests do not expect to be announced."""
    edgeconv.verify(CAUSAL)
    edgeconv.load_recogniser(RECOGNISER).stream()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty directory that holds `small.npz`, with CAUSAL in it."""
    monkeypatch.chdir(tmp_path)
    save("small.npz", {"": CAUSAL})
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Let nothing be timed for long."""
    monkeypatch.setattr(machine, "WINDOWS", 1)


def finished(*command, **options):
    """Return the exit status, standard output and standard error of a process."""
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE} | options
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def error_of(capsys, *arguments):
    """Run a command that must fail with one line; return the line without its start."""
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err
    assert line.startswith("edgeconv: error: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    return line.removeprefix("edgeconv: error: ").strip()


def output_of(capsys, *arguments):
    """Run a command that must succeed in silence on stderr; return what it prints."""
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_version():
    assert finished(*COMMAND, "--version") == (0, f"edgeconv {edgeconv.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([command, "--help"])
    assert f"example:\n  edgeconv {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["inspect"], "the following arguments are required: FILE"),
        (["verify", "w", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["convert", "a", "b", "--weird"], "unrecognized arguments: --weird"),
    ],
)
def test_wrong_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(arguments)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect", str(SHIPPED)]])
def test_numba_is_not_imported(arguments):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('numba' in sys.modules))\n"
        "from edgeconv.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    status, output, errors = finished(sys.executable, "-c", code, *arguments)
    assert (status, errors) == (0, "")
    assert output.endswith("\nFalse\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", str(SHIPPED), "t.npz"], "pass --config, .*, or --causal if .* --no-causal"),
        (["convert", str(SHIPPED), "t.npz", "--causal", "--prefix", "decoder"], "choose from '"),
        (["convert", "small.npz", "t.npz", "--prefix", "a", "--prefix", "a"], "--prefix must be"),
        (["convert", "small.npz", "small.npz"], "DST must be another file than SRC"),
        (["convert", "small.npz", "t.npz", "--no-causal"], "False by --.*, True by the file"),
        (["convert", "small.npz", "no/t.npz"], "no/t.npz: the directory .* must exist; check"),
        (["verify", "small.npz", "--prefix", "a"], "'a' must be .*; choose from ''"),
        (["verify", "small.npz", "--seed", "-1"], "seed.* must be a non-negative integer, got -1"),
        (["verify", "missing.pth"], "missing.pth: No such file or directory; check the path$"),
        (["inspect", "page.pth"], "page.pth: .* a web page; "),
    ],
)  # fmt: skip
def test_errors_are_one_line_in_the_words_of_the_command_line(arguments, words, here, capsys):
    Path("page.pth").write_text("<!DOCTYPE html>")
    before = {path: path.read_bytes() for path in here.iterdir()}
    line = error_of(capsys, *arguments)
    assert re.search(words, line)
    for word in ("`prefix", "`causal", "`config", "`source", "`target"):
        assert word not in line
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_inspect_a_checkpoint(capsys, monkeypatch):
    monkeypatch.chdir(SHIPPED.parent)
    output = output_of(capsys, "inspect", SHIPPED.name)
    assert output.startswith("espnet-streaming-encoder.pth: PyTorch zip, 90 tensors, 0.54 MB\n\n")
    assert f"\n{FIRST}       128           31  float32   yes       ?\n" in output
    assert "stride 1, dilation 1" in output
    assert "Conv1d(1, 64, 25)" in output
    for name in ("Conformer", "Branchformer", "E-Branchformer", "conv_mod.depthwise_conv"):
        assert name in output
    assert (
        "\nnext: edgeconv convert espnet-streaming-encoder.pth "
        "espnet-streaming-encoder.converted.npz --config config.yaml\n" in output
    )
    assert "not read" not in output
    assert "left out" not in output
    output = output_of(capsys, "inspect", "--tensors", SHIPPED.name)
    assert all(f"\n{name} " in output for name in edgeconv.read_checkpoint(SHIPPED))


def test_inspect_a_converted_file(here, capsys):
    output = output_of(capsys, "inspect", "small.npz")
    assert "\n''                  8            5  float32   yes     yes\n" in output
    assert "not read" not in output
    assert output.endswith("\nnext: edgeconv verify small.npz\n")
    save("two of them.npz", {"a": CAUSAL, "b": CENTRED})
    output = output_of(capsys, "inspect", "two of them.npz")
    assert "\nb                   8            5  float32   yes      no\n" in output
    assert output.endswith("\nnext: edgeconv verify 'two of them.npz'\n")


def test_inspect_says_what_it_leaves_out(here, capsys):
    arrays = {f"good.{name}": values for name, values in CAUSAL.state_dict().items()}
    arrays["unbiased.weight"] = CAUSAL.weight
    arrays |= {f"pruned.weight_{name}": CAUSAL.weight for name in ("orig", "mask")}
    arrays |= {"z": np.ones(100, np.complex128), "y": np.ones(9, "U4")}
    np.savez("some.npz", **arrays)
    output = output_of(capsys, "inspect", "some.npz")
    assert "\ngood                8            5  float32    yes       ?\n" in output
    assert "\nunbiased            8            5  float32  zeros       ?\n" in output
    assert "\n  pruned: a weight or bias that PyTorch computes from others; make it pl" in output
    share = round(100 * (1600 + 9 * 16) / Path("some.npz").stat().st_size)
    assert f"\nnot read: 2 of other types, {share}% of the file: z (complex128), y (" in output
    assert cli.main(["convert", "some.npz", "new.npz", "--causal"]) == 0
    captured = capsys.readouterr()
    assert list(load_all("new.npz")) == ["good", "unbiased"]
    assert "left out pruned: a weight or bias" in captured.err
    np.savez("none.npz", **{name: arrays[name] for name in arrays if "pruned" in name})
    assert cli.main(["inspect", "none.npz"]) == 1
    captured = capsys.readouterr()
    assert "\n  pruned: a weight or bias" in captured.out
    assert "none.npz: a file must hold a depthwise convolution" in captured.err


def test_inspect_keeps_names_on_their_line(here, capsys):
    shutil.copy("small.npz", "a\nb.npz")
    assert output_of(capsys, "inspect", "a\nb.npz").startswith("a\\nb.npz: NumPy npz, 2 tensors")
    not_text = os.fsdecode(b"\xff.npz")
    shutil.copy("small.npz", not_text)
    assert "next: edgeconv verify '\\udcff.npz'" in output_of(capsys, "inspect", not_text)


def test_convert(here, capsys):
    prefixes = [f"encoders.blocks.{block}.depthwise_conv_mod" for block in (1, 0)]
    options = [f"--prefix={prefix}" for prefix in prefixes]
    output = output_of(capsys, "convert", str(SHIPPED), "all.npz", "--no-causal")
    assert f"{prefixes[0]}       128           31\n\nThese are its convolutions" in output
    assert output.endswith("\nwritten to all.npz, 0.05 MB\n")
    assert [conv.causal for conv in load_all("all.npz").values()] == [False] * 4
    output_of(capsys, "convert", str(SHIPPED), "some.npz", "--causal", *options)
    assert list(load_all("some.npz")) == prefixes
    output_of(capsys, "convert", "some.npz", "one.npz", options[0])  # the file states the rest
    assert load("one.npz").causal


def test_verify(here, capsys):
    save("two.npz", {"a": CAUSAL, "": CENTRED})
    digests = edgeconv.verify("two.npz")
    assert output_of(capsys, "verify", "two.npz", "--seed", "12") == (
        f"module  {'digest of its outputs, as recorded':>64}\n"
        f"a       {digests['a']}\n"
        f"''      {digests['']}\n"
        "\n"
        "The same bits here, offline and streamed in all ways (--seed 12).\n"
    )
    output = output_of(capsys, "verify", "two.npz", "--prefix", "a")
    assert digests["a"] in output
    assert digests[""] not in output
    assert output_of(capsys, "verify", "two.npz") != output_of(capsys, "verify", "two.npz")
    with np.load("two.npz") as archive:
        arrays = dict(archive)
    np.savez("two.npz", **arrays | {"a.conv.bias": arrays["a.conv.bias"] + 1})
    assert "must have the digest" in error_of(capsys, "verify", "two.npz")


def test_demo(quick, capsys):
    output = output_of(capsys, "demo")
    assert all(len(line) <= 100 for line in output.splitlines())
    assert "on synthetic speech only" in output
    model = edgeconv.load_recogniser(RECOGNISER)
    for path in (ROOT / "weights" / "recordings").glob("*.wav"):
        text = model.transcribe(16000, open_wav(path).samples()).text
        assert f"\n{path.name:<17}{text}\n" in output
    assert "the same texts, times and scores: yes\n" in output


@pytest.mark.parametrize("place", ["edgeconv/shipped", "weights"])
def test_demo_finds_its_files_and_notices_different_bits(place, tmp_path, monkeypatch, capsys):
    """They are in the package where it is installed, and beside it in a checkout."""
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "edgeconv" / "machine.py"))
    assert "reinstall edgeconv" in error_of(capsys, "demo")
    target = tmp_path / place
    (target / "recordings").mkdir(parents=True)
    for name in ("cards-and-commands.npz", "cards-and-commands.json", "recordings/cards-001.wav"):
        shutil.copy(RECOGNISER.parent / name, target / name)
    (target / "recordings" / "transcripts.json").write_text('{"cards-001.wav": "ten of clubs"}')
    output_of(capsys, "demo")
    finished, scores = RecogniserStream.input_finished, itertools.count()
    monkeypatch.setattr(
        RecogniserStream,
        "input_finished",
        lambda stream: dataclasses.replace(finished(stream), score=next(scores)),
    )
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert "the same texts, times and scores: NO\n" in captured.out
    assert "bits are not what they must be; run `edgeconv doctor`" in captured.err


def test_bench_of_a_recogniser(quick, capsys):
    recording = str(RECOGNISER.parent / "recordings" / "numbers.wav")
    options = ["bench", str(RECOGNISER), "--window-ms", "320", recording]  # as one may write it
    output = output_of(capsys, *options)
    assert "\nwindow_ms 320, left_context 32, beam_size 1, threads 1\n" in output
    report = json.loads(output_of(capsys, *options, "--json"))
    assert {"edgeconv", "numba", "CPU"} <= report["machine"].keys()
    options = {"window_ms": 320, "left_context": 32, "beam_size": 1, "threads": 1}
    assert report["options"] == options
    results = report["results"]
    assert all(name in output and value > 0 for name, value in results.items())
    assert results["audio_s"] == pytest.approx(4.02, abs=0.01)
    assert results["window_median_ms"] <= results["window_percentile_99_ms"]
    assert f"\nPython    {sys.version.split()[0]}\n" in output
    shipped = json.loads(output_of(capsys, "bench", "--json"))["results"]
    assert shipped.keys() == results.keys()
    assert results["first_word_median_ms"] > 32  # a model says it when its frame has passed


def test_bench_of_very_short_files(here, capsys):
    for n_samples, name in enumerate(("none.wav", "one.wav")):
        with wave.open(name, "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(2 * n_samples))
    assert "none.wav: no samples came" in error_of(capsys, "bench", str(RECOGNISER), "none.wav")
    report = json.loads(output_of(capsys, "bench", str(RECOGNISER), "one.wav", "--json"))
    assert "window_median_ms" not in report["results"]


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    output = capsys.readouterr().out  # it may be the first to compile the parallel kernel
    assert f"\nPython    {sys.version.split()[0]}\n" in output
    assert re.search(r"\nkernels   ready after [0-9.]+ s, .*\ncache     /", output)
    assert output.endswith("\nedgeconv works on this machine.\n")


@pytest.mark.parametrize("command", COMPUTING)
def test_without_its_compiler_numba_is_no_use(command, here, monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert "unset NUMBA_DISABLE_JIT" in error_of(capsys, *COMMANDS[command])
    assert not Path("new.npz").exists()


FORBIDDEN = """
import ctypes, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
refused = ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0
from edgeconv.cli import main
sys.exit(main(sys.argv[1:]) if refused else 77)
"""


@pytest.mark.parametrize("command", COMPUTING)
def test_where_memory_may_not_be_executable(command, here):
    """As under systemd's MemoryDenyWriteExecute."""
    status, _, errors = finished(sys.executable, "-c", FORBIDDEN, *COMMANDS[command])
    if status == 77:
        pytest.xfail("this kernel is older than 6.3")
    assert status == 1
    assert errors.count("\n") == 1
    for word in ("executable", "MemoryDenyWriteExecute=yes", "SELinux"):
        assert word in errors
    assert not Path("new.npz").exists()


def test_doctor_says_what_is_wrong(monkeypatch, capsys):
    def broken(_):
        raise EOFError("Ran out of input")

    monkeypatch.setattr("edgeconv.kernels.ring.kernel", broken)
    assert "Numba must compile, found EOFError" in error_of(capsys, "doctor")


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        *((closed, "inspect") for closed in (">&-", "<&- >&- 2>&-")),
        ("<&- >&- 2>&-", "convert"),
        (">&-", "verify"),
        ("2>&-", "doctor"),
        (">&-", "--version"),
    ],
)
def test_closed_standard_streams(closed, command, here):
    """As cron and systemd may have them: the work is done, and nothing lands in another file."""
    arguments = COMMANDS.get(command, [command])
    before = Path("small.npz").read_bytes()
    status, output, errors = finished("sh", "-c", f'"$@" {closed}', "sh", *COMMAND, *arguments)
    assert (status, errors) == (0, "")
    assert (output == "") == (closed not in ("<&-", "2>&-"))
    assert Path("small.npz").read_bytes() == before
    if command == "convert":
        assert edgeconv.verify("new.npz")


def test_a_closed_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    assert finished(*COMMAND, "inspect", str(SHIPPED), stdout=writer) == (0, None, "")
    os.close(writer)


def test_output_on_a_full_disk():
    with Path("/dev/full").open("w") as full:
        status, _, errors = finished(*COMMAND, "inspect", str(SHIPPED), stdout=full)
    assert status == 1
    assert errors.startswith("edgeconv: error: output: No space left on device; free some space")
