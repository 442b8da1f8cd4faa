"""Writing: the old file or the new one, whatever happens; inputs are never written."""

import errno
import os
from pathlib import Path

import pytest
from processes import passes

from edgeconv import DepthwiseConvolution, cli, convert, load, load_all, save

MODULE = DepthwiseConvolution(9, 31, causal=True, rng=0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a directory with a checkpoint, and a target that holds `old`."""
    monkeypatch.chdir(tmp_path)
    save("source.npz", {"": MODULE})
    Path("target").write_bytes(b"old")
    return tmp_path


@pytest.mark.parametrize("form", ["{}", "./{}", "below/../{}", "hard-{}", "soft-{}"])
@pytest.mark.parametrize("name", ["source.npz", "config.yaml"])
def test_no_input_is_written_whatever_it_is_called(form, name, here, capsys):
    Path("config.yaml").write_text("encoder_conf: {body_conf: []}")
    Path("below").mkdir()
    Path(f"hard-{name}").hardlink_to(name)
    Path(f"soft-{name}").symlink_to(name)
    content, before = Path(name).read_bytes(), sorted(here.rglob("*"))
    target = form.format(name)
    with pytest.raises(ValueError, match=r"`target` must be another file than `(source|config)`"):
        convert("source.npz", target, config="config.yaml")
    assert cli.main(["convert", "source.npz", target, "--config", "config.yaml"]) == 1
    assert "DST must be another file than" in capsys.readouterr().err
    assert Path(name).read_bytes() == content
    assert sorted(here.rglob("*")) == before


def test_permissions_and_links_stay(here):
    Path("other").touch()
    save("new", {"": MODULE})
    assert Path("new").stat().st_mode == Path("other").stat().st_mode
    Path("new").chmod(0o640)
    Path("link").symlink_to("new")
    save("link", {"a": MODULE})
    assert Path("link").is_symlink()
    assert Path("new").stat().st_mode & 0o777 == 0o640
    assert list(load_all("new")) == ["a"]


def failing(error):
    def fail(*_, **__):
        raise OSError(error, os.strerror(error))

    return fail


def test_where_chmod_is_refused_a_file_is_replaced_all_the_same(here, monkeypatch):
    """On mounts of SMB, S3 and others."""
    for module in (os, Path):
        monkeypatch.setattr(module, "chmod", failing(errno.EPERM))
    for _ in range(2):
        save("target", {"": MODULE})
        assert load("target").causal


@pytest.mark.parametrize("where", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EBUSY, errno.EIO])
def test_a_failure_leaves_the_old_file_and_names_it(where, error, here, monkeypatch, capsys):
    before = sorted(here.iterdir())
    monkeypatch.setattr(*where, failing(error))
    with pytest.raises(OSError, match="'target'") as caught:
        save("target", {"": MODULE})
    assert caught.value.errno == error
    assert cli.main(["convert", "source.npz", "target"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("edgeconv: error: target: ")
    for text in (str(caught.value), line):
        assert ("mount its directory" in text) == (error == errno.EBUSY)
    assert Path("target").read_bytes() == b"old"
    assert sorted(here.iterdir()) == before


def test_an_interrupt_leaves_the_old_file(here, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    before = sorted(here.iterdir())
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save("target", {"": MODULE})
    assert cli.main(["convert", "source.npz", "target"]) == 130
    assert capsys.readouterr() == ("", "")
    assert Path("target").read_bytes() == b"old"
    assert sorted(here.iterdir()) == before


def test_what_is_no_file_is_not_replaced(here):
    os.mkfifo("fifo")
    for target in (".", "fifo", "/dev/null"):
        with pytest.raises(OSError, match="Not a regular file"):
            save(target, {"": MODULE})
    with pytest.raises(FileNotFoundError, match="'nowhere/x'"):
        save("nowhere/x", {"": MODULE})
    assert not Path("/dev/null").is_file()


KILLED = """
import itertools, os, random, signal, sys, time
from pathlib import Path
import edgeconv
from edgeconv import weights

def forked(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child

def killed_before(number):
    "Save; be killed before the system or file call of that number."
    calls = itertools.count(1)

    def profile(frame, kind, argument):
        if kind == "c_call":
            owner = getattr(argument, "__self__", None)
            where = getattr(owner, "__name__", type(owner).__module__)
            if where in ("posix", "io", "_io") and next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    edgeconv.save(target, {"": conv})
    sys.setprofile(None)

target = Path(sys.argv[1])
conv = edgeconv.DepthwiseConvolution(2, 3, causal=True, rng=0)
weights.digest = lambda conv: "0" * 64  # without Numba, processes are forked in no time
edgeconv.save(target, {"": conv})
new = target.read_bytes()

# Before every call: first the old file is found, then the new one.
found = []
for number in itertools.count(1):
    target.write_bytes(b"old")
    _, status = os.waitpid(forked(lambda: killed_before(number)), 0)
    content = target.read_bytes()
    assert content in (b"old", new), number
    if not os.WIFSIGNALED(status):
        break
    found.append(content == new)
assert status == 0 and content == new
assert len(found) > 20 and found == sorted(found) and not found[0] and found[-1]
"""


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    passes("-W", "ignore", "-c", KILLED, tmp_path / "target")
