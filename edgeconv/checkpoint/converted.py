"""The converted checkpoint: a plain `.npz` with one JSON text that says what it holds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint import npz
from edgeconv.checkpoint.error import CheckpointError, damaged, naming, shown
from edgeconv.checkpoint.mapping import Checkpoint
from edgeconv.checkpoint.npz import HEADER
from edgeconv.checkpoint.safetensors import parse_object
from edgeconv.checkpoint.tensors import convolutions

__all__ = ["VERSION", "Source", "causality", "digests", "write"]

VERSION = 1
PREFIX_CHARACTERS = 1024


class Module(Protocol):
    """What is written of a module."""

    @property
    def weight(self) -> NDArray[np.float32]: ...
    @property
    def bias(self) -> NDArray[np.float32]: ...
    @property
    def causal(self) -> bool: ...
    @property
    def channels(self) -> int: ...
    @property
    def kernel_size(self) -> int: ...


class Source(NamedTuple):
    """The file that a converted checkpoint was made from: its name and SHA-256."""

    name: str
    sha256: str


def write(
    path: str | os.PathLike[str],
    modules: Mapping[str, Module],
    digests: Mapping[str, str],
    source: Source | None = None,
) -> None:
    """
    Write a converted checkpoint in one step, under exactly the path given.

    `modules` and the `digests` of their outputs go by prefix. No module, or a prefix that could
    not be read back as it is, is a ValueError. If writing fails, the file is as it was.
    """
    if not modules:
        raise ValueError("`modules` must hold at least one module, got none")
    geometries: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for prefix, module in modules.items():
        check_prefix(prefix)
        geometries[prefix] = {
            "causal": module.causal,
            "channels": module.channels,
            "kernel_size": module.kernel_size,
            "digest": digests[prefix],
        }
        parent = f"{prefix}.conv" if prefix else "conv"
        arrays[f"{parent}.weight"] = module.weight
        arrays[f"{parent}.bias"] = module.bias
    header = {
        "format": HEADER,
        "version": VERSION,
        "modules": geometries,
        "source": None if source is None else source._asdict(),
    }
    arrays = {HEADER: np.array(json.dumps(header)), **arrays}
    npz.write(path, arrays)


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that would come back as another one, or not at all."""
    if not prefix.isprintable() or prefix.endswith(".") or len(prefix) > PREFIX_CHARACTERS:
        raise ValueError(
            f"a prefix must be printable, at most {PREFIX_CHARACTERS} characters long, and must "
            f"not end with '.', got {shown(prefix)}"
        )


def contradiction(prefix: str, stated: bool) -> CheckpointError:
    """Return the error for a caller who says otherwise than the file."""
    return CheckpointError(
        f"{shown(prefix)} must be loaded with `causal={stated}`, as the file states",
        f"`causal={not stated}`",
        f"leave `causal` out, or pass {stated}",
    )


def causality(checkpoint: Checkpoint) -> dict[str, bool]:
    """
    Return by prefix whether each module of a converted checkpoint is causal.

    The answer is empty for another file. A version that is newer than this library is a
    `CheckpointError`, and so is a text that disagrees with the arrays.
    """
    return {prefix: module["causal"] for prefix, module in _modules(checkpoint).items()}


def digests(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return by prefix the digest of each module's outputs; None unless the file records them."""
    modules = _modules(checkpoint)
    if not modules or not all("digest" in module for module in modules.values()):
        return None
    return {prefix: module["digest"] for prefix, module in modules.items()}


def _modules(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return by prefix what a converted checkpoint states of its modules, checked."""
    if checkpoint.header is None:
        return {}
    with naming(checkpoint.path, checkpoint.format):
        what = f"{shown(HEADER)} of a converted checkpoint"
        header = parse_object(checkpoint.header, what)
        version = header.get("version")
        if header.get("format") == "edgeconv state":
            raise CheckpointError(
                "the file must hold weights", "the saved state of streams", "use `load_state`"
            )
        if header.get("format") != HEADER or type(version) is not int or version < 1:
            raise damaged(f"{what} must state its format and version", "others")
        if version > VERSION:
            raise CheckpointError(
                f"a converted checkpoint must be of version {VERSION} or older",
                f"version {version}",
                "upgrade edgeconv, or convert the original file again",
            )
        match header.get("source"):
            case None | {"name": str(), "sha256": str()}:
                pass
            case other:
                expected = f"{what} must state its source by name and sha256, or null"
                raise damaged(expected, shown(str(other)))
        stated = header.get("modules")
        held = {
            prefix: {"channels": convolution.channels, "kernel_size": convolution.kernel_size}
            for prefix, convolution in convolutions(checkpoint).items()
        }
        if not isinstance(stated, dict) or stated.keys() != held.keys():
            raise damaged(f"{what} must name the modules {shown(str(list(held)))}", "others")
        for prefix, module in stated.items():
            fields = module if isinstance(module, dict) else {}
            causal, digest = fields.get("causal"), fields.get("digest", "0" * 64)
            others = {name: fields[name] for name in fields if name not in ("causal", "digest")}
            if (
                not isinstance(causal, bool)
                or others != held[prefix]
                or any(type(number) is not int for number in others.values())
                or not _is_digest(digest)
            ):
                raise damaged(
                    f"{what} must state causal, channels and kernel_size of {shown(prefix)}, and "
                    "may state its digest",
                    shown(str(module)),
                )
    return stated


def _is_digest(value: object) -> bool:
    """Tell whether a JSON value is a SHA-256."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
