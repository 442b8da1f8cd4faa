"""Replacing a file: the old one or the new one, and no temporary file left."""

import errno
import os
import stat

import pytest

from edgeconv import files
from edgeconv.files import replacing


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    path, other = tmp_path / "new", tmp_path / "other"
    other.touch()
    with replacing(path) as file:
        file.write(b"abc")
        file.seek(0)
        assert file.read() == b"abc"
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert mode(path) == mode(other)
    assert sorted(os.listdir(tmp_path)) == ["new", "other"]  # noqa: PTH208 - names are what is compared


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with replacing(str(path)) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_target_alone(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with replacing(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_stays_one(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to(path)
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_a_full_disk_is_reported_with_the_target(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space left on device: ") as caught, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match="another"), replacing(path):
        (tmp_path / "another").open()
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_replaced(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="nowhere/file'"),
        replacing(tmp_path / "nowhere/file"),
    ):
        pass
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="Not a regular file"), replacing(fifo):
        pass


def test_a_directory_that_cannot_be_opened_is_not_synced(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with replacing(tmp_path / "file") as file:
        file.write(b"abc")
        monkeypatch.setattr(os, "open", refuse)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_file_system_that_cannot_sync_a_directory(tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "file") as file:
        file.write(b"abc")
    assert len(calls) == 2
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_link_that_leads_nowhere_is_no_part_of_the_package(tmp_path, monkeypatch):
    """Emacs makes such links while a file is edited."""
    (tmp_path / "files.py").touch()
    (tmp_path / ".#files.py").symlink_to("somebody@somewhere.1")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    assert [name for name, _, _ in files.package_stamp()] == ["files.py"]
