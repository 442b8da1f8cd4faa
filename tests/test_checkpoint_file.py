"""One file: threads, forks, what happens to it in the meantime, and wrong kinds."""

import gzip
import os
import pickle
import socket

import numpy as np
import pytest
import torch_files
from processes import in_threads
from torch_files import records, saved, tensor, zipped

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.error import naming, shown

W = np.arange(1000, dtype=np.float32)
FIELDS = {"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}
KINDS = {
    "PyTorch zip": lambda w: saved({"w": tensor(w)}),
    "PyTorch zip, deflated": lambda w: saved({"w": tensor(w)}, deflated=True),
    "safetensors": lambda w: torch_files.safetensors(FIELDS, w.tobytes()),
    "NumPy npz": lambda w: zipped({"w.npy": torch_files.npy(w)}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_a_file_that_is_replaced_is_still_the_one_that_was_opened(tmp_path, kind):
    path, other = tmp_path / "x", tmp_path / "y"
    path.write_bytes(KINDS[kind](W))
    checkpoint = read_checkpoint(path)
    other.write_bytes(KINDS[kind](-W))
    other.replace(path)
    assert np.array_equal(checkpoint["w"], W)
    assert np.array_equal(read_checkpoint(path)["w"], -W)
    path.unlink()
    assert np.array_equal(checkpoint["w"], W)


def test_a_relative_path_stays_the_same_file(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(KINDS[kind](W))
    checkpoint = read_checkpoint("x")
    monkeypatch.chdir("/")
    assert (checkpoint.path, checkpoint.format) == ("x", kind.removesuffix(", deflated"))
    assert np.array_equal(checkpoint["w"], W)
    with pytest.raises(KeyError):
        checkpoint["v"]
    assert "v" not in checkpoint
    assert 5 not in checkpoint


def many(kind):
    """Return a file of many tensors, each of its own number."""
    arrays = {f"{i}": np.full(999, i, np.float32) for i in range(20)}
    if kind == "safetensors":
        fields = {
            n: {"dtype": "F32", "shape": [999], "data_offsets": [3996 * i, 3996 * i + 3996]}
            for i, n in enumerate(arrays)
        }
        return torch_files.safetensors(fields, b"".join(a.tobytes() for a in arrays.values()))
    if kind == "NumPy npz":
        return zipped({f"{n}.npy": torch_files.npy(a) for n, a in arrays.items()})
    return saved({n: tensor(a) for n, a in arrays.items()}, deflated="deflated" in kind)


def mistaken(checkpoint, times):
    """Return the names under which other numbers came."""
    return [
        name
        for _ in range(times)
        for name, array in checkpoint.items()
        if not np.array_equal(array, np.full(999, int(name), np.float32))
    ]


def test_threads_and_forks_share_a_checkpoint(tmp_path, kind):
    path = tmp_path / "x"
    path.write_bytes(many(kind))
    checkpoint, wrong = read_checkpoint(path), []
    child = os.fork()
    if child == 0:
        os._exit(len(mistaken(checkpoint, 40)))
    in_threads(*[lambda: wrong.extend(mistaken(checkpoint, 20))] * 4)
    assert wrong == []
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_every_truncation_is_refused(tmp_path, kind):
    path, data = tmp_path / "x", KINDS[kind](W)
    for length in [*range(600), *range(600, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert str(caught.value).startswith(f"{path}: ")


MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
PACK = {"meta.yaml": b"", "exp/asr/config.yaml": b"", "exp/asr/valid.acc.ave.pth": saved({})}
SAVE = r"load it in PyTorch and save `model\.state_dict\(\)` with `torch.save`"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "found nothing, or zero bytes as an interrupted copy leaves them; download"),
        (bytes(9999), "found nothing, or zero bytes as an interrupted copy leaves them; download"),
        (b"<!DOCTYPE html><html>Log in</html>", "found a web page; download the file itself"),
        (b"\n<html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer; run `git lfs pull`"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model; give the PyTorch checkpoint"),
        (b"GGUF\x03\0\0\0", "a GGUF model; give the PyTorch checkpoint that it was made from"),
        (pickle.dumps({"w": 1}), f"a plain pickle, which could run any code; {SAVE}"),
        (pickle.dumps([1], 2), "a plain pickle"),
        (MAGIC, r"PyTorch's format before 1\.6; load it and `torch\.save` it again"),
        (gzip.compress(b"abc"), "a gzip or similar file; unpack it"),
        (b"BZh9", "unpack it"),
        (b"\xfd7zXZ\0", "unpack it"),
        (b"\x28\xb5\x2f\xfd", "unpack it"),
        (torch_files.npy(W), r"a single array \(.npy\); save weight and bias by name with `numpy"),
        (b'{"error": "not found"}\n', "a JSON text; download"),
        (b"hello\nworld\n", "something else, starting .*hello"),
        (b"\x7fELF\x02\x01\x01\0\0", "something else, starting .*ELF"),
        (zipped({}), "a zip archive of other files"),
        (zipped({"a/b.txt": b""}), r"zip archive of other files \('a/b.txt'\); unpack it"),
        (zipped(PACK), "a model pack of ESPnet; unzip it, and give the `.pth` inside"),
        (
            zipped({"m/constants.pkl": b"", "m/data.pkl": b""}),
            r"a TorchScript archive; save `torch\.jit\.load\(path\)\.state_dict\(\)`",
        ),
        (
            zipped({"m/models/encoder.json": b"", "m/archive_format": b"pt2"}),
            r"a torch.export archive; save `torch\.export\.load\(path\)\.state_dict`",
        ),
        (
            zipped({"m/data/aotinductor/model/x.so": b"", "m/archive_format": b"pt2"}),
            r"that AOTInductor compiled \(\.pt2\); give the PyTorch checkpoint that it was made",
        ),
        (zipped({"a/data.pkl": b"", "b/data.pkl": b""}), "must have one data.pkl"),
        (saved({})[:50], "zip archive must be complete.* download"),
        (b"PK\7\x08spanned", "a zip archive that was cut short; download"),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else None,  # some hold the time
)
def test_a_file_of_another_kind(tmp_path, content, match):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_what_is_not_a_file(tmp_path):
    fifo, sock = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sock))
        for path in (tmp_path, fifo, sock, "/dev/null", "/dev/zero"):
            with pytest.raises(CheckpointError, match=f"^{path}: the path must lead to a file, fo"):
                read_checkpoint(path)
    with pytest.raises(CheckpointError, match="found nothing"):
        read_checkpoint("/proc/self/status")  # others in /proc keep the reader waiting


def test_missing_files_and_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere")
    for wrong in (5, None, object()):
        with pytest.raises(TypeError):
            read_checkpoint(wrong)


def test_errors_are_one_printable_line_and_survive_pickling(tmp_path):
    path = tmp_path / "line\nbreak"
    path.write_bytes(zipped({"\x1b[31m" + "x" * 900: b""}))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert line.isprintable()
    assert r"'\x1b[31mxxx" in line
    assert len(line) < 500
    assert str(pickle.loads(pickle.dumps(caught.value))) == line


def test_the_parts_of_an_error():
    assert str(CheckpointError("a", "b", "c")) == "a, found b; c"
    assert str(CheckpointError("a")) == "a"
    assert str(CheckpointError("a", remedy="c")) == "a; c"
    for outer in ("y", None):
        with pytest.raises(CheckpointError, match=r"^x: a$"), naming(outer), naming("x"):
            raise CheckpointError("a")
    with pytest.raises(CheckpointError, match=r"^a$"), naming(None):
        raise CheckpointError("a")
    assert shown("a\nb") == r"'a\nb'"
    assert shown((1, 2)) == "(1, 2)"
    assert shown(["a", "b"]) == "'a', 'b'"
    assert shown([str(n) for n in range(20)]).endswith("'11' and 8 more")
    assert len(shown("x" * 10**6)) < 200


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_process_without_room_refuses_the_file(error):
    match = f"^x: the process must have the memory and the stack .* found {error.__name__}; give"
    with pytest.raises(CheckpointError, match=match), naming("x"):
        raise error


def test_an_archive_of_any_packer(tmp_path):
    files = records({"w": tensor(W)}, stem="x/y")
    data = zipped({"x/": b"", **dict(reversed(files.items()))}, deflated=True)
    (tmp_path / "x").write_bytes(data)
    assert np.array_equal(read_checkpoint(tmp_path / "x")["w"], W)


def test_every_single_wrong_byte_is_refused_or_harmless(tmp_path):
    path, expected = tmp_path / "x", {"w": [1.0, 2.0]}
    for data in (
        saved({"w": tensor(np.float32([1, 2]))}),
        saved({"w": tensor(np.float32([1, 2]))}, deflated=True),
        zipped({"w.npy": torch_files.npy(np.float32([1, 2]))}),
    ):
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            try:
                found = {name: array.tolist() for name, array in read_checkpoint(path).items()}
            except CheckpointError:
                continue
            assert found == expected, at
