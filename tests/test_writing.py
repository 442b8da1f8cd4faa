"""Writing: killed at any moment, the old file is there or the new one; inputs are never written."""

import contextlib
import os
import pickle
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeconv
from edgeconv import DepthwiseConvolution, cli, files

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "PYTHONWARNINGS": "ignore::DeprecationWarning",  # of forks, where threads are
}

KILLED = """
import itertools, os, random, signal, sys, time
from pathlib import Path
import numpy as np
import edgeconv
from edgeconv import cli, digest, files

def forked(work):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        os._exit(0)
    return child

def killed_before(number, work):
    "Work; be killed before the system or file call of that number since `replacing` began."
    calls, entered = itertools.count(1), []

    def profile(frame, kind, argument):
        if frame.f_code is files.replacing.__wrapped__.__code__:
            entered.append(True)
        if entered and kind == "c_call":
            owner = getattr(argument, "__self__", None)
            where = getattr(owner, "__name__", type(owner).__module__)
            if where in ("posix", "io", "_io") and next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    work()
    sys.setprofile(None)

target = Path("target.npz")
conv = edgeconv.DepthwiseConvolution(2, 3, causal=True, rng=0)
digest.of_module = lambda module: "0" * 64  # without Numba, processes are forked in no time
conv.save("source.npz")
np.save("x.npy", np.ones((9, 4), np.float32))
frames = np.ones((1, 4, 2), np.float32)
state = edgeconv.StreamState(frames, np.array([3]), None, 4, 3, True, "")
run = ["run", "source.npz", "x.npy", "-o", str(target), "--chunk", "4"]
work = {
    "save": lambda: conv.save(target),
    "save_state": lambda: edgeconv.save_state(target, state),
    "convert": lambda: edgeconv.convert("source.npz", target),
    "run": lambda: cli.main(run),
}[sys.argv[1]]
work()
new = target.read_bytes()

# Before every call: first the old file is found, then the new one.
found = []
for number in itertools.count(1):
    target.write_bytes(b"old")
    _, status = os.waitpid(forked(lambda: killed_before(number, work)), 0)
    content = target.read_bytes()
    assert content in (b"old", new), number
    if not os.WIFSIGNALED(status):
        break
    found.append(content == new)
assert status == 0 and content == new
assert len(found) > 20 and found == sorted(found) and not found[0] and found[-1]

# And in the middle of a call.
rng = random.Random(0)
for _ in range(50):
    target.write_bytes(b"old")
    child = forked(lambda: [work() for _ in itertools.count()])
    time.sleep(rng.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert target.read_bytes() in (b"old", new)
"""


@pytest.mark.parametrize("writer", ["save", "save_state", "convert", "run"])
def test_a_kill_leaves_the_old_file_or_the_new_one(writer, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", KILLED, writer],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_the_content_is_on_the_disk_before_the_name_and_then_the_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    synced = []

    def fsync(descriptor):
        status = os.fstat(descriptor)
        synced.append((stat.S_ISDIR(status.st_mode), status.st_ino, path.read_bytes()))
        if not stat.S_ISDIR(status.st_mode):
            assert status.st_size == 3000

    monkeypatch.setattr(os, "fsync", fsync)
    with files.replacing(path) as file:
        file.write(b"new" * 1000)
    new = path.stat().st_ino, tmp_path.stat().st_ino
    assert synced == [(False, new[0], b"old"), (True, new[1], b"new" * 1000)]


# --- Inputs ---


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a directory with every input, and other names for them."""
    monkeypatch.chdir(tmp_path)
    DepthwiseConvolution(2, 3, causal=True, rng=0).save("source.npz")
    np.save("x.npy", np.ones((9, 4), np.float32))
    Path("config.yaml").write_text(
        "encoder_conf: {main_conf: {dynamic_chunk_training: true}, body_conf: [{block_type: "
        "conformer, depth_conv_kernel_size: 3}]}"
    )
    Path("below").mkdir()
    for name in ("source.npz", "x.npy", "config.yaml"):
        Path(f"hard-{name}").hardlink_to(name)
        Path(f"soft-{name}").symlink_to(name)
        Path(f"below/soft-{name}").symlink_to(f"../soft-{name}")
    Path("around").symlink_to("below")
    return tmp_path


OTHER_NAMES = ("{}", "./{}", "below/../{}", "hard-{}", "soft-{}", "around/soft-{}")


@pytest.mark.parametrize("form", [*OTHER_NAMES, "absolute"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("convert", "source.npz"),
        ("convert", "config.yaml"),
        ("run", "source.npz"),
        ("run", "x.npy"),
    ],
)
def test_no_input_is_written_whatever_it_is_called(command, name, form, here, capsys):
    target = str(here / name) if form == "absolute" else form.format(name)
    content = Path(name).read_bytes()
    before = sorted(str(path) for path in here.rglob("*"))
    arguments = {
        "convert": ["convert", "source.npz", target, "--config", "config.yaml"],
        "run": ["run", "source.npz", "x.npy", "-o", target],
    }
    assert cli.main(arguments[command]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert target in line
    assert "another file" in line
    assert Path(name).read_bytes() == content
    assert sorted(str(path) for path in here.rglob("*")) == before


@pytest.mark.parametrize("form", OTHER_NAMES)
def test_no_module_is_saved_over_the_file_that_it_comes_from(form, here):
    modules = edgeconv.load_all("source.npz")
    content = Path("source.npz").read_bytes()
    target = form.format("source.npz")
    again = pickle.loads(pickle.dumps(modules[""]))
    writes = (
        lambda: edgeconv.save(target, modules),
        lambda: modules[""].save(target),
        lambda: again.save(target),
    )
    for write in writes:
        with pytest.raises(ValueError, match="`path` must be another file than the one that the"):
            write()
    assert Path("source.npz").read_bytes() == content
    edgeconv.save("other.npz", modules)


# --- Full disks ---


CONV = DepthwiseConvolution(9, 31, causal=True, rng=0)
WRITERS = {
    "save": lambda path: CONV.save(path),
    "edgeconv.save": lambda path: edgeconv.save(path, {"a": CONV}),
    "save_state": lambda path: edgeconv.save_state(path, CONV.stream().snapshot()),
    "convert": lambda path: edgeconv.convert("large.npz", path),
}


@pytest.fixture
def nearly_full(here):
    """Return a block in which no file can become longer than 512 bytes."""
    CONV.save("large.npz")  # compiles what would otherwise be cached then
    CONV.stream()
    np.save("long.npy", np.ones((99, 18), np.float32))
    Path("target").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
        try:
            yield
        finally:  # before pytest reports, to a file it may be
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_target(writer, nearly_full, here):
    before = sorted(here.iterdir())
    with nearly_full(), pytest.raises(OSError, match="File too large: 'target'"):
        WRITERS[writer]("target")
    assert Path("target").read_bytes() == b"old"
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("command", ["convert large.npz", "run large.npz long.npy -o"])
def test_a_full_disk_is_one_line_and_status_1(command, nearly_full, here, capsys):
    before = sorted(here.iterdir())
    with nearly_full():
        assert cli.main([*command.split(), "target"]) == 1
    assert capsys.readouterr().err == (
        "edgeconv: error: target: File too large; raise the limit on file sizes, or write to "
        "another disk\n"
    )
    assert Path("target").read_bytes() == b"old"
    assert sorted(here.iterdir()) == before
