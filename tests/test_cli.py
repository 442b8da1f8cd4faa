"""The command line: what it prints, its errors of one line, its exit statuses."""

import io
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgeconv
from edgeconv import cli, demo, kernels, machine, parallel, terminal
from edgeconv.checkpoint import converted, read_checkpoint
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.stream import Stream
from edgeconv.weights import load, load_all, save

ROOT = Path(__file__).parents[1]
PATHS = filter(None, [os.environ.get("PYTHONPATH")])  # where the caller has NumPy, it may be
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *PATHS])}
SHIPPED = ROOT / "weights" / "espnet-streaming-encoder.pth"
FIRST = "encoders.blocks.0.depthwise_conv_mod"
CAUSAL = DepthwiseConvolution(4, 5, causal=True, rng=0)
CENTRED = DepthwiseConvolution(4, 5, causal=False, rng=0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty directory that holds `small.npz`, with CAUSAL in it."""
    monkeypatch.chdir(tmp_path)
    CAUSAL.save("small.npz")
    return tmp_path


def on_terminal(monkeypatch):
    """Make stderr a terminal, and time pass by a second whenever it is read; return the output."""
    written = []
    screen = SimpleNamespace(isatty=lambda: True, write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "monotonic", count(step=1.0).__next__)
    return written


def process(*arguments, code=None, **options):
    command = ["-m", "edgeconv"] if code is None else ["-c", code]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT} | options
    return subprocess.Popen([sys.executable, *command, *arguments], text=True, **options)


def finished(*arguments, **options):
    """Return the exit status, standard output and standard error of a process."""
    with process(*arguments, **options) as started:
        output, errors = started.communicate()
    return started.returncode, output, errors


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


# --- Words and statuses ---


def test_version():
    assert finished("--version") == (0, f"edgeconv {edgeconv.__version__}\n", "")


def test_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["anything", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("edgeconv", run_name="__main__")
    text = capsys.readouterr().out
    assert text.startswith("usage: edgeconv [-h]")
    assert "--prefix encoder.encoders.blocks.0.depthwise_conv_mod" in text


@pytest.mark.parametrize(
    "command", ["inspect", "convert", "verify", "run", "demo", "bench", "doctor"]
)
def test_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([command, "--help"])
    assert f"example:\n  edgeconv {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["inspect"], "the following arguments are required: FILE"),
        (["run", "w", "x"], "the following arguments are required: -o/--output"),
        (["run", "w", "x", "-o", "y", "--chunk", "0"], "a positive number of frames, got '0'"),
        (["run", "w", "x", "-o", "y", "--chunk", "-3"], "a positive number of frames, got '-3'"),
        (["verify", "w", "--seed", "-1"], "must be 0 or a positive number, got '-1'"),
        (["convert", "a", "b", "--causal", "--weird"], "unrecognized arguments: --weird"),
        (
            ["convert", str(SHIPPED), "b"],
            f"edgeconv convert: error: {SHIPPED} does not say: give --config config.yaml, "
            "--causal or --no-causal",
        ),
        (
            ["run", str(SHIPPED), "x", "-o", "y"],
            f"edgeconv run: error: {SHIPPED} does not say: give --causal or --no-causal",
        ),
    ],
)
def test_wrong_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(arguments)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["inspect", str(SHIPPED)],
    ],
    ids=lambda arguments: arguments[0],
)
def test_numba_is_not_imported(arguments, tmp_path):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('numba' in sys.modules))\n"
        "from edgeconv.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    status, output, errors = finished(*arguments, code=code, cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert output.endswith("\nFalse\n")


def test_closed_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    assert finished("inspect", str(SHIPPED), stdout=writer) == (0, None, "")
    os.close(writer)


def test_closed_pipe_in_process(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert cli.main(["inspect", str(SHIPPED)]) == 0


@pytest.mark.parametrize("in_process", [True, False])
def test_output_on_a_full_disk(in_process, monkeypatch, capsys):
    line = "output: No space left on device; free some space, or write to another disk"
    with Path("/dev/full").open("w") as full:
        if in_process:
            monkeypatch.setattr(sys, "stdout", full)
            assert error_of(capsys, "inspect", str(SHIPPED)) == line
        else:
            status = finished("inspect", str(SHIPPED), stdout=full)
            assert status == (1, None, f"edgeconv: error: {line}\n")


def test_bug_shows_its_traceback(here, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["run", "small.npz", "x.npy", "-o", "y.npy"])


# --- inspect ---


def test_inspect_checkpoint(capsys, monkeypatch):
    monkeypatch.chdir(SHIPPED.parent)
    assert output_of(capsys, "inspect", SHIPPED.name) == (
        "espnet-streaming-encoder.pth: PyTorch zip, 90 tensors, 0.51 MB\n"
        "\n"
        "convolution                           channels  size  kernel size    dtype      causal\n"
        "encoders.blocks.0.conv_mod                  32    16           31  float32  not stated\n"
        "encoders.blocks.0.depthwise_conv_mod       128    64           31  float32  not stated\n"
        "encoders.blocks.1.conv_mod                  32    16           31  float32  not stated\n"
        "encoders.blocks.1.depthwise_conv_mod       128    64           31  float32  not stated\n"
        "\n"
        "next: edgeconv convert espnet-streaming-encoder.pth espnet-streaming-encoder.converted.npz"
        " --causal\n"
        "      (--no-causal unless ESPnet's configuration says dynamic_chunk_training: true;\n"
        "      --config config.yaml looks there)\n"
    )


def test_inspect_converted(here, capsys):
    output = output_of(capsys, "inspect", "small.npz")
    assert "\n''                  8     4            5  float32     yes\n" in output
    assert output.endswith("\nnext: edgeconv run small.npz INPUT.npy -o OUTPUT.npy\n")
    save("two of them.npz", {"a": CAUSAL, "b": CENTRED})
    output = output_of(capsys, "inspect", "two of them.npz")
    assert "\nb                   8     4            5  float32      no\n" in output
    assert output.endswith("\nnext: edgeconv run 'two of them.npz' INPUT.npy -o OUTPUT.npy "
                           "--prefix b\n")  # fmt: skip


def test_inspect_lists_every_tensor(capsys):
    output = output_of(capsys, "inspect", "--tensors", str(SHIPPED))
    for name in read_checkpoint(SHIPPED):
        assert f"\n{name} " in output
    assert f"{FIRST}.conv.weight" in output
    assert "float32  (128, 1, 31)\n" in output


def test_inspect_shows_what_is_complete(here, capsys):
    arrays = {f"good.{name}": values for name, values in CAUSAL.state_dict().items()}
    np.savez("half.npz", **{"bad.conv.weight": CAUSAL.weight}, **arrays)
    assert cli.main(["inspect", "half.npz"]) == 1
    captured = capsys.readouterr()
    assert "\ngood                8     4            5  float32  not stated\n" in captured.out
    assert captured.err == (
        "edgeconv: error: half.npz: NumPy npz: 'bad.conv.bias' must be there, as the convolution "
        "has a bias, found no such key; choose another convolution by its prefix, or give this one "
        "a bias of zeros\n"
    )


def test_inspect_without_convolutions(here, capsys):
    np.savez("other.npz", **{"linear.weight": np.ones((3, 3), np.float16)})
    assert error_of(capsys, "inspect", "other.npz") == (
        "other.npz: must hold a depthwise convolution, P.weight (C, 1, K) with even C and odd K "
        "and P.bias (C,), found none; is this the right file?"
    )
    assert cli.main(["inspect", "--tensors", "other.npz"]) == 1
    assert "\nlinear.weight  float16  (3, 3)\n" in capsys.readouterr().out


def test_inspect_keeps_names_on_their_line(here, capsys):
    np.savez("a\nb.npz", **{f"x\n\x1b[2J.{name}": v for name, v in CAUSAL.state_dict().items()})
    output = output_of(capsys, "inspect", "a\nb.npz")
    assert output.startswith("a\\nb.npz: NumPy npz, 2 tensors")
    assert "\nx\\n\\x1b[2J " in output
    assert "\x1b" not in output
    not_text = os.fsdecode(b"\xff.npz")
    CAUSAL.save(not_text)
    assert "next: edgeconv run '\\udcff.npz' INPUT" in output_of(capsys, "inspect", not_text)


@pytest.mark.parametrize("command", ["inspect", "convert", "verify", "run"])
def test_unreadable_weights(command, here, capsys):
    options = {
        "inspect": [],
        "verify": [],
        "convert": ["t.npz", "--causal"],
        "run": ["x.npy", "-o", "y.npy"],
    }
    assert error_of(capsys, command, "missing.pth", *options[command]) == (
        "missing.pth: No such file or directory; check the path; its directory must exist"
    )
    Path("page.pth").write_text("<!DOCTYPE html>")
    assert error_of(capsys, command, "page.pth", *options[command]).startswith(
        "page.pth: a checkpoint must be a PyTorch, a safetensors or an .npz file, "
        "found a web page; "
    )


# --- convert ---


def test_convert_everything(here, capsys):
    output = output_of(capsys, "convert", str(SHIPPED), "all.npz", "--no-causal")
    assert output.endswith(
        "encoders.blocks.1.depthwise_conv_mod       128           31\n\nwritten to all.npz\n"
    )
    modules = load_all("all.npz")
    assert len(modules) == 4
    assert not any(conv.causal for conv in modules.values())


def test_convert_some(here, capsys):
    prefixes = [f"encoders.blocks.{block}.depthwise_conv_mod" for block in (1, 0)]
    options = [f"--prefix={prefix}" for prefix in prefixes]
    output_of(capsys, "convert", str(SHIPPED), "some.npz", "--causal", *options)
    modules = load_all("some.npz")
    assert list(modules) == prefixes
    assert all(conv.causal for conv in modules.values())
    output_of(capsys, "convert", "some.npz", "one.npz", options[0])  # the file states the rest
    assert load("one.npz").causal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.npz", "small.npz"], "`target` must be another file than the source, got "
         "'small.npz'"),
        (["small.npz", "t.npz", "--prefix", "a", "--prefix", "a"],
         "`prefixes` must be one or more different prefixes, got ['a', 'a']"),
        (["small.npz", "t.npz", "--no-causal"],
         "small.npz: NumPy npz: '' must be loaded with `causal=True`, as the file states, "
         "found `causal=False`; leave `causal` out, or pass True"),
        (["small.npz", "none/t.npz"],
         "none/t.npz: No such file or directory; check the path; its directory must exist"),
    ],
)  # fmt: skip
def test_convert_errors(arguments, message, here, capsys):
    before = Path("small.npz").read_bytes()
    assert error_of(capsys, "convert", *arguments) == message
    assert [path.name for path in here.iterdir()] == ["small.npz"]
    assert Path("small.npz").read_bytes() == before


def test_unknown_prefix(here, capsys):
    line = error_of(capsys, "convert", str(SHIPPED), "t.npz", "--causal", "--prefix", "decoder")
    assert line.startswith(f"{SHIPPED}: PyTorch zip: prefix 'decoder' must have the key 'decoder.c")
    assert f"choose from 'encoders.blocks.0.conv_mod', '{FIRST}'" in line


def test_output_is_a_directory(here, capsys):
    np.save("x.npy", np.ones((3, 8)))
    for command in (["convert", "small.npz", "."], ["run", "small.npz", "x.npy", "-o", "."]):
        line = error_of(capsys, *command)
        assert line.endswith(": Is a directory; give the path of a file")


def test_convert_with_a_configuration(here, capsys):
    Path("config.yaml").write_text(
        "encoder_conf:\n"
        "  main_conf: {dynamic_chunk_training: true}\n"
        "  body_conf:\n"
        "  - {block_type: ebranchformer, conv_mod_kernel_size: 31, num_blocks: 2}\n"
    )
    output_of(capsys, "convert", str(SHIPPED), "all.npz", "--config", "config.yaml")
    assert all(conv.causal for conv in load_all("all.npz").values())
    line = error_of(
        capsys, "convert", str(SHIPPED), "x.npz", "--config", "config.yaml", "--no-causal"
    )
    assert line == (
        "config.yaml: `causal` must be True, as dynamic_chunk_training in the configuration, "
        "found `causal=False`; leave `causal` out"
    )


def test_convert_with_a_configuration_but_without_yaml(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    line = error_of(capsys, "convert", str(SHIPPED), "x.npz", "--config", "config.yaml")
    assert line == "config.yaml: reading it needs PyYAML; run `pip install pyyaml`"


# --- verify ---


def test_verify(here, capsys):
    save("two.npz", {"a": CAUSAL, "": CENTRED})
    digests = edgeconv.verify("two.npz")
    assert output_of(capsys, "verify", "two.npz", "--seed", "12") == (
        f"convolution  {'digest of its outputs, as recorded':>64}\n"
        f"a            {digests['a']}\n"
        f"''           {digests['']}\n"
        "\n"
        "The same bits here, offline and streamed in all ways (--seed 12).\n"
    )
    output = output_of(capsys, "verify", "two.npz", "--prefix", "a")
    assert digests["a"] in output
    assert digests[""] not in output
    assert output_of(capsys, "verify", "two.npz") != output_of(capsys, "verify", "two.npz")


def test_verify_fails_in_one_line(here, capsys):
    converted.write("wrong.npz", {"a": CAUSAL}, {"a": "0" * 64})
    line = error_of(capsys, "verify", "wrong.npz")
    assert line.startswith(
        "DepthwiseConvolution(size=4, kernel_size=5, causal=True) from wrong.npz, prefix 'a': the "
        f"outputs must have the digest {'0' * 64} that the file records, got "
    )
    line = error_of(capsys, "verify", str(SHIPPED))
    assert line.startswith(f"{SHIPPED}: PyTorch zip: a file to verify must record digests")


# --- run ---


def assert_runs(capsys, conv, x, *options):
    """Assert that `run` makes of the array `x` what the module makes of it."""
    np.save("x.npy", x)
    causal = "--causal" if conv.causal else "--no-causal"
    assert output_of(capsys, "run", "w.npz", "x.npy", "-o", "y.npy", causal, *options) == (
        f"y.npy: float32 {x.shape}\n"
    )
    y = np.load("y.npy")
    assert y.dtype == np.float32
    assert y.shape == x.shape
    whole, _ = conv(x if x.ndim == 3 else x[np.newaxis])
    assert y.tobytes() == whole.tobytes()


@pytest.mark.parametrize("conv", [CAUSAL, CENTRED], ids=["causal", "centred"])
@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (20, 8), (0, 9, 8), (2, 0, 8), (3, 11, 8)])
@pytest.mark.parametrize("options", [[], ["--chunk", "1"], ["--chunk", "7"]], ids=str)
def test_run(conv, shape, options, here, capsys):
    np.savez("w.npz", **conv.state_dict())
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    assert_runs(capsys, conv, x, *options)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
def test_run_every_float(dtype, here, capsys):
    np.savez("w.npz", **CAUSAL.state_dict())
    assert_runs(capsys, CAUSAL, np.random.default_rng(1).standard_normal((30, 8)).astype(dtype))


def test_run_fortran_order(here, capsys):
    np.savez("w.npz", **CAUSAL.state_dict())
    x = np.asfortranarray(np.random.default_rng(1).standard_normal((30, 8)))
    assert_runs(capsys, CAUSAL, x, "--chunk", "4")


def test_run_one_of_several(here, capsys):
    save("two.npz", {"a": CAUSAL, "b": CENTRED})
    x = np.random.default_rng(1).standard_normal((9, 8))
    np.save("x.npy", x)
    assert "choose from 'a', 'b'" in error_of(capsys, "run", "two.npz", "x.npy", "-o", "y.npy")
    output_of(capsys, "run", "two.npz", "x.npy", "-o", "y.npy", "--prefix", "b")
    assert np.load("y.npy").tobytes() == CENTRED(x[np.newaxis])[0].tobytes()


FLOATS = "must be a .npy file of floats, found"
WRITE = "write it with `numpy.save`"
ORIGIN = "DepthwiseConvolution(size=4, kernel_size=5, causal=True) from small.npz, prefix ''"
SHAPE = "must have shape (T, 8) or (B, T, 8), found"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None,
         "No such file or directory; check the path; its directory must exist"),
        (Path.mkdir, "must be a file, found a directory or a device; give a .npy file"),
        (os.mkfifo, "must be a file, found a directory or a device; give a .npy file"),
        (lambda path: path.write_text("0.5 1.5 2.5"), f"{FLOATS} the magic string is not correct; "
         f"expected b'\\x93NUMPY', got b'0.5 1.'; {WRITE}"),
        (Path.touch, f"{FLOATS} EOF: reading magic string, expected 8 bytes got 0; {WRITE}"),
        (CAUSAL.save, f"{FLOATS} an .npz archive; {WRITE}"),
        (lambda path: (np.save(path, np.ones((99, 8))), os.truncate(path, 900)),
         f"{FLOATS} mmap length is greater than file size; {WRITE}"),
        (lambda path: np.save(path, np.array([[None] * 8])),
         f"{FLOATS} Array can't be memory-mapped: Python objects in dtype.; {WRITE}"),
        (lambda path: np.save(path, np.ones((3, 8), np.int16)), "must hold floats, found int16; "
         "convert it with the scale that your features have"),
        (lambda path: np.save(path, np.ones((3, 8), np.complex64)), "must hold floats, found "
         "complex64; convert it with the scale that your features have"),
        (lambda path: np.save(path, np.ones((5, 3))), f"{SHAPE} (5, 3); expected by {ORIGIN}"),
        (lambda path: np.save(path, np.ones(8)), f"{SHAPE} (8,); expected by {ORIGIN}"),
        (lambda path: np.save(path, np.ones((1, 1, 1, 8))),
         f"{SHAPE} (1, 1, 1, 8); expected by {ORIGIN}"),
    ],
    ids=["missing", "directory", "pipe", "text", "empty", "npz", "truncated", "objects", "integers",
         "complex", "channels", "one dimension", "four dimensions"],
)  # fmt: skip
def test_run_wrong_input(make, message, here, capsys):
    make(here / "x.npy")
    before = sorted(here.iterdir())
    assert error_of(capsys, "run", "small.npz", "x.npy", "-o", "y.npy") == f"x.npy: {message}"
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("x.npy", "x.npy: is also an input; write to another file"),
        ("./small.npz", "./small.npz: is also an input; write to another file"),
        ("link.npy", "link.npy: is also an input; write to another file"),
        ("none/y.npy", "none/y.npy: No such file or directory; check the path; its directory must "
         "exist"),
        ("/dev/null", "/dev/null: Not a regular file; check the path and the disk"),
    ],
)  # fmt: skip
def test_run_wrong_output(target, message, here, capsys):
    np.save("x.npy", np.ones((3, 8)))
    Path("link.npy").symlink_to("x.npy")
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert error_of(capsys, "run", "small.npz", "x.npy", "-o", target) == message
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_run_on_a_full_disk(here, capsys):
    np.save("x.npy", np.ones((1000, 8), np.float32))
    Path("y.npy").write_text("old")
    CAUSAL.stream()  # what is compiled must not count
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        line = error_of(capsys, "run", "small.npz", "x.npy", "-o", "y.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    remedy = "raise the limit on file sizes, or write to another disk"
    assert line == f"y.npy: File too large; {remedy}"
    assert Path("y.npy").read_text() == "old"
    assert {path.name for path in here.iterdir()} == {"small.npz", "x.npy", "y.npy"}


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the caller ignores
from edgeconv.cli import main
from edgeconv.stream import Stream

process, calls = Stream.process, []

def waiting_in_the_middle(stream, chunk):
    calls.append(len(chunk))
    if len(calls) == 3:
        print("in the middle", flush=True)
        sys.stdin.read()
    return process(stream, chunk)

Stream.process = waiting_in_the_middle
sys.exit(main(["run", "small.npz", "x.npy", "-o", "y.npy"]))
"""


def test_interrupt_leaves_the_old_output(here):
    np.save("x.npy", np.ones((5000, 8), np.float32))
    Path("y.npy").write_text("old")
    with process(code=INTERRUPTED, stdin=subprocess.PIPE) as started:
        assert started.stdout.readline() == "in the middle\n"
        assert len(list(here.iterdir())) == 4  # one of them temporary
        started.send_signal(signal.SIGINT)
        assert started.communicate() == ("", "")
    assert started.returncode == 130
    assert Path("y.npy").read_text() == "old"
    assert {path.name for path in here.iterdir()} == {"small.npz", "x.npy", "y.npy"}


def test_interrupt_in_process(here, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    np.save("x.npy", np.ones((5, 8)))
    monkeypatch.setattr(Stream, "process", interrupted)
    assert cli.main(["run", "small.npz", "x.npy", "-o", "y.npy"]) == 130
    assert capsys.readouterr() == ("", "")
    assert {path.name for path in here.iterdir()} == {"small.npz", "x.npy"}


LIMITED = """
import resource, sys
import numpy as np
from edgeconv.cli import main

for name, frames in (("short", 1000), ("long", 2**20)):  # holes, not zeros, fill the files
    np.lib.format.open_memmap(f"{name}.npy", "w+", np.float32, (frames, 8))
assert main(["run", "small.npz", "short.npy", "-o", "y.npy"]) == 0
with open("/proc/self/status") as status:
    held = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + 2**23, resource.RLIM_INFINITY))
try:
    np.load("long.npy")
except MemoryError:
    print("the long one does not fit")
sys.exit(main(["run", "small.npz", "long.npy", "-o", "y.npy"]))
"""


def test_memory_does_not_depend_on_the_length(here):
    assert finished(code=LIMITED) == (
        0,
        "y.npy: float32 (1000, 8)\nthe long one does not fit\ny.npy: float32 (1048576, 8)\n",
        "",
    )


# --- demo ---


@pytest.fixture
def quick_demo(monkeypatch):
    monkeypatch.setattr(demo, "SECONDS", 0)


def test_demo_in_a_process():
    status, output, errors = finished("demo")
    assert (status, errors) == (0, "")
    assert "it is NOT TRAINED" in output


def test_demo(quick_demo, capsys):
    output = output_of(capsys, "demo")
    assert all(len(line) <= 90 for line in output.splitlines())
    assert "\nread          espnet-streaming-encoder.pth: PyTorch zip, 90 tensors" in output
    assert f"\nfound         {FIRST}   128 channels, 31 taps\n" in output
    assert "\n              all 13,824 outputs within their bounds: yes\n" in output
    assert "times, and offline: yes\n" in output
    assert "times faster, at 25 frames per second\n" in output


def test_demo_notices_a_difference_from_pytorch(quick_demo, tmp_path, monkeypatch, capsys):
    shutil.copy(SHIPPED, tmp_path)
    with np.load(SHIPPED.with_name("recording.npz")) as archive:
        recording = dict(archive)
    recording["outputs"][50, 7] += 1e-4
    np.savez(tmp_path / "recording.npz", **recording)
    monkeypatch.setattr(demo, "shipped_files", lambda: tmp_path)
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert "largest difference 0.0001, bound" in captured.out
    assert "outputs within their bounds: NO\n" in captured.out
    assert captured.err == (
        "edgeconv: error: demo: outputs are not what they must be; run `edgeconv doctor`\n"
    )


def test_demo_notices_different_bits(quick_demo, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_chunked", lambda conv, x, cuts: np.nextafter(x, 1))
    assert cli.main(["demo"]) == 1
    assert "times, and offline: NO\n" in capsys.readouterr().out


def test_shipped_files(tmp_path, monkeypatch, capsys):
    assert demo.shipped_files() == SHIPPED.parent
    package = tmp_path / "site-packages" / "edgeconv"
    (package / "shipped").mkdir(parents=True)
    monkeypatch.setattr(demo, "__file__", str(package / "demo.py"))
    assert error_of(capsys, "demo") == (
        f"recording.npz: is neither in {package} nor beside it; reinstall edgeconv"
    )
    (package / "shipped" / "recording.npz").touch()
    assert demo.shipped_files() == package / "shipped"


# --- bench and doctor ---


def test_bench(monkeypatch, capsys):
    monkeypatch.setattr(machine, "SECONDS", 0)
    monkeypatch.setattr(machine, "SIZES", ((8, 5), (6, 3)))
    output = output_of(capsys, "bench")
    assert f"\nPython          {sys.version.split()[0]}\n" in output
    table = output[output.index("channels") :].splitlines()
    assert len(table) == 1 + 2 * 4
    assert table[4].split()[:5] == ["8", "5", "1000", "offline", "20"]

    result = json.loads(output_of(capsys, "bench", "--json"))
    assert {"edgeconv", "numba", "CPU", "threads", "date"} <= result["machine"].keys()
    assert len(result["results"]) == 8
    for row in result["results"]:
        assert 0 < row["median_us"] <= row["percentile_99_us"]
        assert row["times_real_time"] == pytest.approx(1e6 / 25 / row["median_us"])


def test_doctor_in_a_process(tmp_path):
    """With a cache of its own, the first one compiles and the second one does not."""
    environment = ENVIRONMENT | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for origin in ("compiled", "from the cache"):
        status, output, errors = finished("doctor", env=environment)
        assert (status, errors) == (0, "")
        assert f" s, {origin}\nother kernels   " in output
        assert output.endswith(
            " s, for batches and whole signals\n\nedgeconv works on this machine.\n"
        )
        assert f"\ncache           {tmp_path}" in output
        assert "\ncache writable  yes\n" in output
    assert not list(tmp_path.rglob("edgeconv-*"))


@pytest.mark.parametrize("misses", [{}, {"a signature": 1}])
@pytest.mark.parametrize(
    ("cache", "writable"),
    [(".", "yes"), ("missing", "no: No such file or directory"), (None, "no: there is none")],
)
def test_doctor_tries_the_cache(cache, writable, misses, here, monkeypatch, capsys):
    stats = SimpleNamespace(cache_misses=misses, cache_path=cache)
    kernel = SimpleNamespace(stats=stats, entry_point=None)
    monkeypatch.setattr(kernels, "step", lambda dimensions: kernel)
    monkeypatch.setattr(kernels, "process", lambda dimensions: kernel)
    output = output_of(capsys, "doctor")
    assert f"\ncache           {cache or 'none'}\ncache writable  {writable}\n" in output
    is_slow = bool(misses) and writable != "yes"
    assert ("Every process compiles anew: set NUMBA_CACHE_DIR" in output) == is_slow
    assert [path.name for path in here.iterdir()] == ["small.npz"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "small.npz", "x.npy", "-o", "y.npy"],
        ["convert", "small.npz", "new.npz"],
        ["verify", "small.npz"],
        ["bench"],
        ["demo"],
        ["doctor"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_its_compiler_numba_is_no_use(arguments, here, monkeypatch, capsys):
    np.save("x.npy", np.ones((3, 8)))
    for kernel in (kernels.step, kernels.process, kernels.process_in_parallel):
        kernel.cache_clear()
    parallel.for_frames.forget()
    parallel._in_parallel.forget()
    monkeypatch.setattr(kernels.numba.config, "DISABLE_JIT", 1)
    assert error_of(capsys, *arguments) == ("unset NUMBA_DISABLE_JIT: nothing here runs uncompiled")
    assert not Path("new.npz").exists()


def test_a_bug_is_not_taken_for_a_compiler_that_is_switched_off():
    with pytest.raises(RuntimeError, match="inconsistent"), terminal.explaining_compilation():
        raise RuntimeError("edgeconv is inconsistent")


def test_doctor_with_broken_numba(monkeypatch, capsys):
    def broken(dimensions):
        raise EOFError("Ran out of input")

    monkeypatch.setattr(kernels, "step", broken)
    assert error_of(capsys, "doctor") == (
        "Numba must compile a stream, found EOFError('Ran out of input'); install it again"
    )


def test_doctor_on_32_bits(monkeypatch, capsys):
    monkeypatch.setattr(machine, "POINTER_BITS", 32)
    assert error_of(capsys, "doctor") == (
        "Python must be a 64-bit one, found 32 bits; install a 64-bit system"
    )


# --- Signs of life ---


def test_progress_on_a_terminal(monkeypatch):
    written = on_terminal(monkeypatch)
    with terminal.progress("run", 4) as show:
        for done in range(4):
            show(done)
    bars = "".join(written).split("\r")
    assert bars == [
        "",
        "run [..............................]   0%",
        "run [#######.......................]  25%",
        "run [###############...............]  50%",
        "run [######################........]  75%",
        "\033[K",
    ]


def test_progress_of_what_is_quick(monkeypatch):
    written = on_terminal(monkeypatch)
    monkeypatch.setattr(terminal, "PATIENCE", 100)
    with terminal.progress("run", 1) as show:
        show(0)
    assert written == []


def test_compilation_is_explained_on_a_terminal(monkeypatch):
    written = on_terminal(monkeypatch)

    class ExpiredTimer:
        def __init__(self, seconds, function):
            self.start = function

        def cancel(self):
            pass

    monkeypatch.setattr(terminal.threading, "Timer", ExpiredTimer)
    with terminal.explaining_compilation():
        pass
    assert "".join(written) == f"{terminal.ERASE}{terminal.COMPILING}\n"


# --- Where it prints to, and what it says first ---


def test_any_stream_will_do_for_the_output(here, monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    assert cli.main(["inspect", "small.npz"]) == 0
    assert "NumPy npz" in printed.getvalue()


def test_an_unknown_prefix_is_named_before_causality_is_asked_for(here, capsys):
    for prefixes in (["--prefix", "nowhere"], ["--prefix", "nowhere", "--prefix", "elsewhere"]):
        message = error_of(capsys, "convert", str(SHIPPED), "new.npz", *prefixes)
        assert "prefix 'nowhere' must have the key" in message
    np.save("x.npy", np.ones((5, 128)))
    message = error_of(capsys, "run", str(SHIPPED), "x.npy", "-o", "y.npy", "--prefix", "nowhere")
    assert "prefix 'nowhere' must have the key" in message
