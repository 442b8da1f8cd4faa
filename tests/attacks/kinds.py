"""Files of another kind than a checkpoint, and things that are no files."""

import gzip
import io
import os
import pickle
import tarfile

from torch_files import zipped

from attacks.catalogue import W, refused, register
from attacks.payloads import Mkdir
from attacks.pickles import ONE


def tar():
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
    return target.getvalue()


CONTENTS = {
    "an empty file": (b"", "an empty file; download or copy it again"),
    "zeros": (bytes(9999), "zero bytes, as an interrupted copy leaves them"),
    "a web page": (b"<!DOCTYPE html><html>Log in</html>", "a web page; download the file itself"),
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "a git-lfs pointer; run `git lfs pull`",
    ),
    "a text": (b"hello\n", "a text file"),
    "a JSON text": (b'{"error": "not found"}\n', "a JSON text"),
    "a tar archive": (tar(), "a tar archive, such as .nemo; unpack it"),
    "a gzip archive": (gzip.compress(b"x"), "a gzip archive; unpack it"),
    "an ONNX model": (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model; give the PyTorch"),
    "a GGUF model": (b"GGUF\x03\0\0\0", "a GGUF model; give the PyTorch"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n123", "an HDF5 file"),
    "a program": (b"\x7fELF\x02\x01\x01\0\0", "other data, starting with the bytes 7f 45 4c 46"),
    "a TorchScript archive": (
        zipped({**ONE, "archive/constants.pkl": b"\x80\x02)."}),
        "a TorchScript archive; load it in PyTorch",
    ),
    "a torch.export archive": (
        zipped({"archive/models/model.json": b"{}"}),
        "a torch.export archive; load it in PyTorch",
    ),
    "a torch.package archive": (
        zipped({"archive/.data/extern_modules": b"os"}),
        "a torch.package archive; load it in PyTorch",
    ),
}
for kind, (content, found) in CONTENTS.items():
    register(f"a checkpoint must be .* found {found}", kind, lambda content=content: content)


@refused("found a plain pickle, which could run any code", live=("pickles",))
def a_plain_pickle(m):
    return pickle.dumps({"w": W.tolist(), "x": Mkdir(m)})


@refused("the path must lead to a file, found a pipe; give the path of the file")
def a_pipe():
    return os.mkfifo


@refused("the path must lead to a file, found a directory")
def a_directory():
    return os.mkdir


@refused("the path must lead to a file, found a device")
def a_device():
    return lambda path: path.symlink_to("/dev/zero")


@refused("the path must lead to a file, found a device")
def a_terminal():
    return lambda path: path.symlink_to("/dev/tty")
