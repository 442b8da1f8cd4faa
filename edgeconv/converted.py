"""The converted file: an ``.npz`` with a description in it; docs/files.md specifies it."""

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from edgeconv.arguments import described, is_integer
from edgeconv.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from edgeconv.checkpoint.error import ConfigurationError, damaged, naming, shown
from edgeconv.configuration import read_configuration
from edgeconv.state_dict import Convolution, find

FORMAT, CONVOLUTIONS, MODEL = "edgeconv", 1, 2  # and the versions: what they hold
# Of ESPnet's configuration, what decides anything about a model that is trained.
DECISIVE = (
    *("input_size", "encoder_conf", "frontend", "frontend_conf", "normalize", "normalize_conf"),
    *("decoder", "decoder_conf", "joint_network_conf", "token_type", "token_list"),
)
UNWRITABLE = {
    errno.EBUSY: "a file mounted by itself cannot be replaced; mount its directory",
    errno.ENOENT: "the directory that it is written to must exist",
}

File: TypeAlias = str | os.PathLike[str]
Model = TypeVar("Model")


class Opened(NamedTuple):
    """A checkpoint, its convolutions by prefix, and what a converted file states of its content."""

    checkpoint: Checkpoint
    found: dict[str, Convolution]
    modules: dict[str, dict[str, Any]]
    configuration: dict[str, Any] | None
    digests: dict[str, str]


def opened(path: File) -> Opened:
    """Open a checkpoint; find its convolutions, and what it states of them and of the model."""
    if isinstance(path, Mapping) or hasattr(path, "state_dict"):
        remedy = "`DepthwiseConvolution.from_state_dict` takes `model.state_dict()`"
        raise TypeError(f"`path` must be a str or path-like, got {described(path)}; {remedy}")
    checkpoint = read_checkpoint(path)
    with naming(checkpoint.path):
        found = find(checkpoint)
        return Opened(checkpoint, found, *_stated(checkpoint.header, found))


def _stated(text: str | None, found: Mapping[str, Convolution]) -> tuple[Any, Any, Any]:
    """Return modules, configuration and digests in a file's description, which must fit it."""
    if text is None:
        return {}, None, {}
    version, modules, configuration, digests, fits = 0, {}, None, {}, False
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        fields = json.loads(text)
        version, modules = fields["version"] * (fields["format"] == FORMAT), fields["modules"]
        if version == MODEL:
            configuration, digests = dict(fields["configuration"]), dict(fields["digests"])
        is_model = version != MODEL or type(digests["encoder"]) is str
        fits = is_model and {(*conv, bool, str) for conv in found.values()} == {
            (prefix, m["channels"], m["kernel_size"], type(m["causal"]), type(m.get("digest", "")))
            for prefix, m in modules.items()
        }
    if is_integer(version) and version > MODEL:
        remedy = "upgrade edgeconv, or convert the original file again"
        raise CheckpointError(f"the file must be of version 1 to {MODEL}", f"{version}", remedy)
    if version not in (CONVOLUTIONS, MODEL) or not fits:
        expected = f"the text {FORMAT!r} must be JSON that describes {shown(list(found))}"
        raise damaged(expected, shown(text))
    return modules, configuration, digests


def configuration_of(file: Opened, config: File | None) -> dict[str, Any]:
    """Return the configuration of a model: its own if it is a converted file, else ESPnet's."""
    own = file.configuration
    with naming(file.checkpoint.path):
        if own is not None and config is not None:
            raise ValueError("`config` must not be given for a converted model, which has its own")
        if own is None and file.modules:
            remedy = "convert the original checkpoint again, with `config`"
            raise CheckpointError("the file must hold a model", "convolutions alone", remedy)
        if own is None and config is None:
            remedy = "pass `config`, the config.yaml that ESPnet wrote beside the checkpoint"
            raise CheckpointError("a model must come with its configuration", "none", remedy)
    return read_configuration(config) if config is not None else own or {}


def built(
    make: Callable[[Checkpoint, dict[str, Any]], Model], path: File, config: File | None
) -> Model:
    """Make a model of a converted file, or of a checkpoint and its configuration."""
    file = opened(path)
    configuration = configuration_of(file, config)
    with naming(file.checkpoint.path, config):
        return make(file.checkpoint, configuration)


def decisive(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a converted file keeps of a configuration: no paths, nothing of the training."""
    kept = {name: configuration[name] for name in DECISIVE if name in configuration}
    if isinstance(statistics := kept.get("normalize_conf"), Mapping):
        kept["normalize_conf"] = {k: v for k, v in statistics.items() if k != "stats_file"}
    try:
        json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError) as error:  # dates, sets and bytes, which YAML knows as well
        expected = "a configuration must be of texts, numbers, Booleans, lists and mappings"
        raise ConfigurationError(expected, str(error)) from None
    return kept


def write(
    path: File, arrays: Mapping[str, Any], source: Checkpoint | None, **fields: object
) -> None:
    """
    Write a converted file, in one step or not at all; equal content makes equal bytes.

    A link to another one stays a link, and permissions stay if they can.
    """
    version = MODEL if "configuration" in fields else CONVOLUTIONS
    origin = source and {"name": Path(source.path).name, "sha256": source.sha256()}
    header = json.dumps({"format": FORMAT, "version": version, **fields, "source": origin})
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".edgeconv-{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "Not a regular file")
        with temporary.open("xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in {FORMAT: np.array(header), **arrays}.items():
                    record = io.BytesIO()
                    np.lib.format.write_array(record, array, version=(1, 0), allow_pickle=False)
                    # A record's name alone is without a date.
                    archive.writestr(zipfile.ZipInfo(f"{name}.npy"), record.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there is no such file, or permissions are not kept
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:  # the user never chose the temporary name
        text = UNWRITABLE.get(error.errno or 0, error.strerror)
        raise OSError(error.errno, text, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
