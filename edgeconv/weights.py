"""Modules and the files that hold their weights: load, save, convert, verify."""

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from edgeconv.arguments import described, is_integer
from edgeconv.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from edgeconv.checkpoint.error import damaged, naming, shown
from edgeconv.configuration import read_causal
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.digest import digest
from edgeconv.state_dict import Convolution, find, unusable, weight_and_bias

FORMAT, VERSION = "edgeconv", 1
WHEN = "pass `causal=True` if it was trained with dynamic_chunk_training, else `causal=False`"
NONE = "a file must hold a depthwise convolution, a float weight (C, 1, K)"

File: TypeAlias = str | os.PathLike[str]
Modules: TypeAlias = dict[str, DepthwiseConvolution]


class Opened(NamedTuple):
    """A checkpoint, its convolutions by prefix, and what a converted one states of each."""

    checkpoint: Checkpoint
    found: dict[str, Convolution]
    stated: dict[str, dict[str, Any]]


def find_convolutions(path_or_state: Any) -> list[Convolution]:
    """
    List every float ``P.weight`` (C, 1, K) in a file or a state dict.

    Stride 1, dilation 1 and C groups are assumed, and ``Conv1d(1, C, K)`` looks alike.
    """
    is_state = isinstance(path_or_state, Mapping)
    return list((find(path_or_state) if is_state else opened(path_or_state).found).values())


def load(path: File, prefix: str | None = None, causal: bool | None = None) -> DepthwiseConvolution:
    """
    Load a depthwise convolution from a file that `read_checkpoint` reads.

    `prefix` says which one, unless there is only one. `causal` is what ESPnet's configuration says
    in ``main_conf.dynamic_chunk_training``; a converted checkpoint says it itself. A
    CheckpointError says if the file cannot be used, leaves one of these open, or contradicts.
    """
    file = opened(path)
    if prefix is None and len(file.found) > 1:
        with naming(file.checkpoint.path):
            choice = f"choose from {shown(list(file.found))}"
            raise CheckpointError("`prefix` must say which", f"{len(file.found)}", choice)
    prefixes = list(file.found) if prefix is None else [prefix]
    (conv,) = select(file, causal, prefixes)[0].values()
    return conv


def load_all(path: File, causal: bool | None = None) -> Modules:
    """Load, as `load` does, all that `edgeconv inspect` does not list as left out, by prefix."""
    return select(opened(path), causal)[0]


def save(
    path: File, modules: Mapping[str, DepthwiseConvolution], *, source: Checkpoint | None = None
) -> None:
    """
    Write modules, by prefix, as a converted checkpoint, which also says whether they are causal.

    It replaces the file in one step or not at all. Each module runs, for the digest of `verify`.
    """
    if not isinstance(modules, Mapping) or not modules:
        raise TypeError(f"`modules` must be a mapping with a module, got {described(modules)}")
    arrays: dict[str, Any] = {
        f"{prefix}.{name}" if prefix else name: array
        for prefix, conv in modules.items()
        for name, array in conv.state_dict().items()
    }
    if not all(name.isprintable() and len(name) <= 1024 for name in arrays):
        raise ValueError(f"prefixes must be printable and short, got {list(modules)}")
    names = ("causal", "channels", "kernel_size")
    fields: dict[str, dict[str, Any]] = {}
    for prefix, conv in modules.items():
        fields[prefix] = {name: getattr(conv, name) for name in names} | {"digest": digest(conv)}
    origin = source and {"name": Path(source.path).name, "sha256": source.sha256()}
    header = {"format": FORMAT, "version": VERSION, "modules": fields, "source": origin}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in {FORMAT: np.array(json.dumps(header)), **arrays}.items():
            record = io.BytesIO()
            np.lib.format.write_array(record, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), record.getvalue())  # without a date
    _replace(path, content.getvalue())


def convert(
    source: File,
    target: File,
    *,
    prefixes: Iterable[str] | None = None,
    causal: bool | None = None,
    config: File | None = None,
) -> list[Convolution]:
    """
    Copy convolutions of a checkpoint to a converted one, as `save` writes it; return which.

    `prefixes` are the ones to copy, in this order; by default all that `load_all` loads. `config`
    is ESPnet's ``config.yaml``, which states `causal` for all of them; reading it needs PyYAML.
    """
    return copy(source, target, prefixes, causal, config)[0]


def copy(
    source: File, target: File, prefixes: Any, causal: bool | None, config: File | None
) -> tuple[list[Convolution], dict[str, str]]:
    """Do what `convert` does; say by prefix as well why the rest is left out."""
    wanted = [] if prefixes is None else list(prefixes)
    is_empty = prefixes is not None and not wanted
    if isinstance(prefixes, str) or is_empty or len(set(wanted)) != len(wanted):
        raise ValueError(f"`prefixes` must be one or more different prefixes, got {prefixes!r}")
    for name, path in (("source", source), ("config", config)):
        if path is not None and Path(target).exists() and Path(target).samefile(path):
            raise ValueError(f"`target` must be another file than `{name}`, got {target!r}")
    file = opened(source)
    modules, left_out = select(file, causal, wanted, config)
    save(target, modules, source=file.checkpoint)
    return [file.found[prefix] for prefix in modules], left_out


def verify(
    conv_or_path: DepthwiseConvolution | File, prefix: str | None = None, *, seed: int = 0
) -> dict[str, str]:
    """
    Check that this machine computes the right bits, offline and streamed; return their digests.

    Outputs of a converted checkpoint's modules, or of that of `prefix`, must have the digests that
    it records: those of the machine that wrote it. Outputs of a module in memory must be the same
    in all ways to run it. A VerificationError says which are not. `seed` decides where signals are
    cut into chunks.
    """
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"`seed` must be a non-negative integer, got {described(seed)}")
    if isinstance(conv_or_path, DepthwiseConvolution):
        if prefix is not None:
            raise ValueError(f"`prefix` must be None for a module in memory, got {prefix!r}")
        return {"": digest(conv_or_path, seed)}
    file = opened(conv_or_path)
    if not file.stated or not all("digest" in fields for fields in file.stated.values()):
        expected = "a file to verify must record digests of what its modules compute"
        with naming(file.checkpoint.path):
            raise CheckpointError(expected, "none", "write it with `edgeconv convert`")
    modules, _ = select(file, None, [] if prefix is None else [prefix])
    recorded = {name: file.stated[name]["digest"] for name in modules}
    for name, conv in modules.items():
        digest(conv, seed, recorded[name], "that the file records")
    return recorded


def opened(path: File) -> Opened:
    """Open a checkpoint; find its convolutions, and what it states of them."""
    if isinstance(path, Mapping) or hasattr(path, "state_dict"):
        remedy = "`DepthwiseConvolution.from_state_dict` takes `model.state_dict()`"
        raise TypeError(f"`path` must be a str or path-like, got {described(path)}; {remedy}")
    checkpoint = read_checkpoint(path)
    with naming(checkpoint.path):
        found = find(checkpoint)
        return Opened(checkpoint, found, _stated(checkpoint.header, found))


def _stated(text: str | None, found: dict[str, Convolution]) -> dict[str, dict[str, Any]]:
    """Parse the description in a converted checkpoint, which must fit the arrays."""
    if text is None:
        return {}
    version, stated, fits = 0, {}, False
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        header = json.loads(text)
        version, stated = header["version"] * (header["format"] == FORMAT), header["modules"]
        fits = {(*conv, bool, str) for conv in found.values()} == {
            (prefix, m["channels"], m["kernel_size"], type(m["causal"]), type(m.get("digest", "")))
            for prefix, m in stated.items()
        }
    if is_integer(version) and version > VERSION:
        remedy = "upgrade edgeconv, or convert the original file again"
        raise CheckpointError(f"the file must be of version {VERSION}", f"{version}", remedy)
    if version != VERSION or not fits:
        expected = f"the text {FORMAT!r} must be JSON that describes {shown(list(found))}"
        raise damaged(expected, shown(text))
    return stated


def select(
    file: Opened, causal: bool | None, prefixes: Sequence[str] = (), config: File | None = None
) -> tuple[Modules, dict[str, str]]:
    """Load modules, those of `prefixes` or else all that can be; say why others cannot be."""
    if causal is not None and not isinstance(causal, bool | np.bool_):
        raise TypeError(f"`causal` must be a bool or None, got {described(causal)}")
    configured = None if config is None else read_causal(config)
    modules: Modules = {}
    left_out = {} if prefixes else unusable(file.checkpoint)
    with naming(file.checkpoint.path):
        for prefix in prefixes or file.found:
            if prefix not in file.found:
                weight_and_bias(file.checkpoint, prefix)  # raises what is wrong with it
            stated = file.stated.get(prefix, {}).get("causal")
            who = {"`causal`": causal, "the file": stated, "`config`": configured}
            said = {name: bool(what) for name, what in who.items() if what is not None}
            if len(set(said.values())) != 1:
                expected = f"{shown(prefix)} must be known to be causal or not"
                texts = ", ".join(f"{what} by {name}" for name, what in said.items())
                raise CheckpointError(expected, texts or "neither", WHEN)
            is_causal = True in said.values()
            if not prefixes and file.found[prefix].kernel_size % 2 == 0 and not is_causal:
                left_out[prefix] = "an even number of taps, which only a causal one can have"
            else:
                make = DepthwiseConvolution.from_state_dict
                modules[prefix] = make(file.checkpoint, prefix, causal=is_causal)
        if not modules:
            reasons = ", ".join(f"{shown(name)}: {why}" for name, why in left_out.items())
            raise CheckpointError(NONE, "none", reasons or "is this the right file?")
    return modules, left_out


def _replace(path: File, content: bytes) -> None:
    """Put a file in another one's place in one step; links stay, and permissions if they can."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".edgeconv-{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "Not a regular file")
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there is no such file, or permissions are not kept
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:  # the user never chose the temporary name
        mounted = "a file mounted by itself cannot be replaced; mount its directory"
        text = mounted if error.errno == errno.EBUSY else error.strerror
        raise OSError(error.errno, text, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
