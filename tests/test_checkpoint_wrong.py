"""Files that are no checkpoints: the error says what they are and what to do."""

import gzip
import io
import os
import pickle
import socket
import tarfile

import numpy as np
import pytest
import torch_files

from edgeconv.checkpoint import CheckpointError, read_checkpoint


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def tar(name="model_weights.ckpt"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "found an empty file; download or copy it again"),
        (bytes(9999), "found zero bytes, as an interrupted copy leaves them; download or copy"),
        (b"<!DOCTYPE html><html>Log in</html>", "found a web page; download the file itself"),
        (b"\n<html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer; run `git lfs pull`"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model; give the PyTorch checkpoint"),
        (b"GGUF\x03\0\0\0", "a GGUF model; give the PyTorch checkpoint that it was made from"),
        (tar("sys_info"), "a tar archive of PyTorch's first releases; load it in PyTorch and save"),
        (pickle.dumps({"w": 1}), "a plain pickle, which could run any code; load it in PyTorch"),
        (pickle.dumps([1], 2), "a plain pickle"),
        (tar(), "a tar archive, such as .nemo; unpack it, and give the path of the checkpoint"),
        (gzip.compress(b"abc"), "a gzip archive; unpack it"),
        (b"BZh9", "a bzip2 archive"),
        (b"\xfd7zXZ\0", "an xz archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (npy(), r"a single array \(.npy\); save weight and bias by name with `numpy.savez`"),
        (b"\x89HDF\r\n\x1a\n123", "an HDF5 file"),
        (b'{"a": 1}\n', "a JSON text"),
        (b"hello\nworld\n", "a text file"),
        (b"\x7fELF\x02\x01\x01\0\0", "other data, starting with the bytes 7f 45 4c"),
        (torch_files.zipped({}), "an empty zip archive"),
        (torch_files.zipped({"a/b.txt": b""}), "zip archive of other files, such as 'a/b.txt'"),
        (torch_files.zipped({"m/constants.pkl": b"", "m/data.pkl": b""}), "a TorchScript archive"),
        (torch_files.zipped({"m/models/model.json": b""}), "a torch.export archive; load it in"),
        (torch_files.zipped({"m/.data/extern_modules": b""}), "a torch.package archive"),
        (torch_files.zipped({"a/data.pkl": b"", "b/data.pkl": b""}), "must have one data.pkl"),
        (torch_files.saved({})[:50], "the end of the archive|directory's end record"),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, match):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.path == str(path)


def test_what_is_not_a_file(tmp_path):
    fifo, sock = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sock))
        for path, found in (
            (tmp_path, "a directory"),
            (fifo, "a pipe"),
            (sock, "a socket"),
            ("/dev/null", "a device"),
        ):
            with pytest.raises(CheckpointError, match=f"{path}: .* found {found}; give the path"):
                read_checkpoint(path)


def test_a_file_without_a_size_is_not_read():
    with pytest.raises(CheckpointError, match="found an empty file"):
        read_checkpoint("/proc/self/status")  # others in /proc keep the reader waiting


def test_a_pipe_that_takes_the_place_of_a_file_does_not_block(tmp_path, monkeypatch):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    file = os.stat(__file__)  # noqa: PTH116 - what is patched below
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda _: file)
        with pytest.raises(CheckpointError, match="found a pipe"):
            read_checkpoint(str(fifo))


def test_missing_files_and_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="`path` must be a str or path-like, got "):
        read_checkpoint(5)
    with pytest.raises(ValueError, match=r"^`path` must be a path without null characters, got 'a"):
        read_checkpoint("a\0b")


def test_a_relative_path_stays_the_same_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.zeros(1))
    monkeypatch.chdir(tmp_path)
    checkpoint = read_checkpoint("a.npz")
    monkeypatch.chdir("/")
    assert checkpoint.path == "a.npz"
    assert checkpoint["x"].tolist() == [0]
    with pytest.raises(KeyError):
        checkpoint.spec("y")


def test_errors_are_one_printable_line_and_survive_pickling(tmp_path):
    path = tmp_path / "line\nbreak"
    path.write_bytes(torch_files.zipped({"\x1b[31m" + "x" * 900: b""}))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    assert r"'\x1b[31mxxx" in str(caught.value)
    assert len(str(caught.value)) < 500
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.remedy) == (str(caught.value), caught.value.remedy)
    assert str(CheckpointError("a", "b", "c")) == "a, found b; c"
