"""Readers that run what a file says: they show that the payloads are live.

    python -m attacks.unsafe < a list of pairs (loader, path), as JSON

opens each file; what it raises does not matter.
"""

import contextlib
import json
import os
import pickle
import sys
import zipfile

import numpy as np


class Unpickler(pickle.Unpickler):
    """What a reader does that imports PyTorch's classes as inert ones, and everything else."""

    def find_class(self, module, name):
        if module in ("torch", "torch._utils"):
            return lambda *_: None
        return super().find_class(module, name)

    def persistent_load(self, _):
        return None


class Prefixes(Unpickler):
    """What many readers do: allow the modules that weights are thought to need."""

    def find_class(self, module, name):
        if module.partition(".")[0] not in ("torch", "numpy", "collections", "argparse"):
            raise pickle.UnpicklingError(module)
        return super().find_class(module, name)


def unpickled(unpickler):
    def load(path):
        with zipfile.ZipFile(path) as archive, archive.open("archive/data.pkl") as file:
            unpickler(file).load()

    return load


def loaded_by_numpy(path):
    dict(np.load(path, allow_pickle=True))


def evaluated_npy(path):
    with zipfile.ZipFile(path) as archive:
        for record in archive.namelist():
            eval(archive.read(record)[10:].split(b"\n")[0])


def loaded_as_yaml(path):
    import yaml

    with open(path) as file:  # noqa: PTH123 - as its users do
        yaml.unsafe_load(file)


def unpickled_in_turn(path):
    with open(path, "rb") as file:  # noqa: PTH123 - as its users do
        while True:
            Unpickler(file).load()


LOADERS = {
    "pickles": unpickled_in_turn,
    "pickle": unpickled(Unpickler),
    "prefixes": unpickled(Prefixes),
    "torch": unpickled(Prefixes),
    "numpy": loaded_by_numpy,
    "eval": evaluated_npy,
    "yaml": loaded_as_yaml,
}

if __name__ == "__main__":
    for loader, path in json.load(sys.stdin):
        with contextlib.suppress(BaseException):
            LOADERS[loader](path)
    sys.stdout.flush()
    os._exit(0)  # what the payloads left behind cleans up nothing
