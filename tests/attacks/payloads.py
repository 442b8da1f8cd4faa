"""Pickles that run code where the reader lets them: each makes the directory or file `marker`.

    python tests/attacks/payloads.py < a list of pairs (loader, path), as JSON

opens each file with a reader that runs what it says, to show that the payloads are live.
"""

import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import torch_files as tf


class Mkdir:
    """Pickled by Python itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def python(marker):
    return f"__import__('os').mkdir({marker!r})"


def mapped(function, argument):
    """Call what a call returned."""
    return tf.call("builtins.list", tf.call("builtins.map", function, [argument]))


def torch_saved(marker):
    """Write a file of PyTorch before 1.6: five pickles, the first of which is enough."""
    target = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, Mkdir(marker), []):
        pickle.dump(value, target, 2)
    return target.getvalue()


def by_attribute(attribute, *, end):
    """Set `os.mkdir` as an attribute that the unpickler calls."""
    state = b"}" + tf.text(attribute) + tf.name("os.mkdir") + b"s"
    return lambda m: tf.beside(tf.name("argparse.Namespace") + b")\x81" + state + b"b" + end(m))


def objects(marker):
    """Return an `.npz` of an array of objects beside ``w``."""
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
    content = b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head
    content += tf.pickled(tf.call("os.mkdir", marker), 4)[0]
    return tf.zipped({"w.npy": tf.npy(tf.W), "x.npy": content})


def mkdir(marker):
    """Return the opcodes of the call."""
    return tf.name("os.mkdir") + tf.text(marker) + b"\x85R"


def memmap(marker):
    """Return the arguments with which NumPy's class makes a file."""
    return b"(" + tf.text(marker) + tf.text("u1") + tf.text("w+") + b"K\x00K\x01t"


# What REDUCE calls, by the unsafe readers that then run it: "prefixes" allows NumPy's modules.
CALLED = {
    "os.mkdir": (lambda m: tf.call("os.mkdir", m), "plain"),
    "getattr": (
        lambda m: mapped(
            tf.call("builtins.getattr", tf.call("importlib.import_module", "os"), "mkdir"), m
        ),
        "plain",
    ),
    "NumPy's exec": (lambda m: tf.call("numpy.testing.runstring", python(m), {}), "prefixes"),
    "numpy.memmap": (lambda m: tf.call("numpy.memmap", m, "u1", "w+", 0, 1), "prefixes"),
    "torch.storage": (lambda m: tf.call("torch.storage._load_from_bytes", torch_saved(m)), "torch"),
}
LOADS = {"w": tf.W}
STORED = b"(" + tf.text("storage")
PAYLOADS = {
    f"a call of {called}": (
        lambda m, payload=payload: tf.saved({"w": tf.tensor(tf.W), "x": payload(m)}, protocol=4),
        LOADS,
        loader,
    )
    for called, (payload, loader) in CALLED.items()
}
PAYLOADS |= {
    "eval of Python 2": (
        lambda m: tf.beside(tf.name("__builtin__.eval") + tf.text(python(m)) + b"\x85R"),
        LOADS,
        "plain",
    ),
    "before the weights": (
        lambda m: tf.saved({"x": tf.call("os.mkdir", m), "w": tf.tensor(tf.W)}),
        LOADS,
        "plain",
    ),
    "as a key": (
        lambda m: tf.saved({"w": tf.tensor(tf.W), "x": {tf.call("os.mkdir", m): 1}}),
        LOADS,
        "plain",
    ),
    "as the hooks of a tensor": (
        lambda m: tf.saved(
            {
                "w": tf.call(
                    "torch._utils._rebuild_tensor_v2",
                    *(tf.storage(tf.W), 0, (3,), (1,), False, tf.call("os.mkdir", m)),
                )
            }
        ),
        LOADS,
        "plain",
    ),
    "as the offset of a tensor": (
        lambda m: tf.saved({"w": tf.view(tf.storage(tf.W), tf.call("os.mkdir", m), (3,), (1,))}),
        "must have an offset",
        "plain",
    ),
    "instead of the weights": (
        lambda m: tf.saved(tf.call("os.mkdir", m)),
        "must hold a tensor",
        "plain",
    ),
    "before a pickle breaks off": (
        lambda m: tf.with_pickle(b"}" + mkdir(m) + b"X\xff"),
        "pickle must be complete",
        "plain",
    ),
    "thrown away": (lambda m: tf.beside(mkdir(m) + b"0N"), LOADS, "plain"),
    "in a persistent id": (
        lambda m: tf.beside(STORED + mkdir(m) + tf.text("0") + tf.text("cpu") + b"K\x03tQ"),
        "a storage must have a type",
        "plain",
    ),
    "by INST": (lambda m: tf.beside(b"(" + tf.text(m) + b"ios\nmkdir\n"), "found INST", "plain"),
    "by OBJ": (
        lambda m: tf.beside(b"(" + tf.name("os.mkdir") + tf.text(m) + b"o"),
        "found OBJ",
        "plain",
    ),
    "by EXT": (
        lambda m: tf.beside(
            tf.name("copyreg.add_extension")
            + (tf.text("os") + tf.text("mkdir") + b"K\x01\x87R0\x82\x01" + tf.text(m) + b"\x85R")
        ),
        "found EXT1",
        "plain",
    ),
    "by NEWOBJ": (
        lambda m: tf.beside(tf.name("numpy.memmap") + memmap(m) + b"\x81"),
        LOADS,
        "prefixes",
    ),
    "by NEWOBJ_EX": (
        lambda m: tf.beside(
            tf.name("numpy.memmap")
            + b")}("
            + (
                tf.text("filename")
                + tf.text(m)
                + tf.text("mode")
                + tf.text("w+")
                + tf.text("shape")
            )
            + b"K\x01u\x92"
        ),
        LOADS,
        "prefixes",
    ),
    "by BUILD": (by_attribute("__setstate__", end=lambda m: tf.text(m) + b"b"), LOADS, "plain"),
    "by APPEND": (by_attribute("append", end=lambda m: tf.text(m) + b"a"), LOADS, "plain"),
    "by ADDITEMS": (by_attribute("add", end=lambda m: b"(" + tf.text(m) + b"\x90"), LOADS, "plain"),
    "by a dotted name": (
        lambda m: tf.beside(
            tf.text("numpy.testing._private.utils")
            + tf.text("os.mkdir")
            + b"\x93"
            + tf.text(m)
            + b"\x85R",
            b"\x80\x04",
        ),
        LOADS,
        "prefixes",
    ),
    "in an array of objects": (objects, LOADS, "numpy"),
    "in a plain pickle": (
        lambda m: pickle.dumps({"w": tf.W.tolist(), "x": Mkdir(m)}),
        "a plain pickle, which could run any code",
        "pickle",
    ),
    "in a file before PyTorch 1.6": (torch_saved, "format before 1.6", "pickles"),
}


class Plain(pickle.Unpickler):
    """What a reader does that imports PyTorch's classes as inert ones, and everything else."""

    def find_class(self, module, attribute):
        if module in ("torch", "torch._utils"):
            return lambda *_: None
        return super().find_class(module, attribute)

    def persistent_load(self, _):
        return None


class Prefixes(Plain):
    """What many readers do: allow the modules that weights are thought to need."""

    def find_class(self, module, attribute):
        if module.partition(".")[0] not in ("torch", "numpy", "collections", "argparse"):
            raise pickle.UnpicklingError(module)
        return super().find_class(module, attribute)


def opened(loader, path):
    """Open a file as `loader` does."""
    if loader == "numpy":
        return dict(np.load(path, allow_pickle=True))
    with open(path, "rb") as file:  # noqa: PTH123 - as its users do
        while loader in ("pickle", "pickles"):
            Plain(file).load()
    with zipfile.ZipFile(path) as archive, archive.open("archive/data.pkl") as file:
        return (Plain if loader == "plain" else Prefixes)(file).load()


if __name__ == "__main__":
    for loader, path in json.load(sys.stdin):
        with contextlib.suppress(BaseException):
            opened(loader, path)
    os._exit(0)  # what the payloads left behind cleans up nothing
