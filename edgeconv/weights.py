"""Modules and the files that hold their weights: load, save, convert, verify."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeconv.arguments import described, is_integer
from edgeconv.blocks.description import is_causal
from edgeconv.checkpoint import Checkpoint, CheckpointError
from edgeconv.checkpoint.error import naming, shown
from edgeconv.configuration import read_configuration
from edgeconv.converted import File, Opened, configuration_of, decisive, opened, write
from edgeconv.convolution import DepthwiseConvolution
from edgeconv.digest import digest
from edgeconv.encoder import Encoder
from edgeconv.layers.parameters import SCALE, tensor, with_8_bits
from edgeconv.recogniser import Recogniser
from edgeconv.state_dict import FLOATS, Convolution, find, unusable, weight_and_bias

WHEN = "`causal=True` if it was trained with dynamic_chunk_training, else `causal=False`"
NONE = "a file must hold a depthwise convolution, a float weight (C, 1, K)"
# What a transducer computes with; its other tensors served the training.
PARTS = ("encoder.", "decoder.", "joint_network.", "frontend.", "normalize.")


class Written(list[Convolution]):
    """The convolutions that `convert` wrote, and the models; why others were left out."""

    def __init__(self, found: Iterable[Convolution], left_out: Any, *models: Any) -> None:
        super().__init__(found)
        self.left_out, self.models = left_out, models


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
    Assumed: stride 1, dilation 1, C groups.
    """
    file = opened(path)
    if prefix is None and len(file.found) > 1:
        with naming(file.checkpoint.path):
            choice = f"choose from {shown(list(file.found))}"
            raise CheckpointError("`prefix` must say which", f"{len(file.found)}", choice)
    prefixes = list(file.found) if prefix is None else [prefix]
    (conv,) = select(file, causal, prefixes)[0].values()
    return conv


def load_all(path: File, causal: bool | None = None) -> dict[str, DepthwiseConvolution]:
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
    for prefix, conv in modules.items():
        if not isinstance(conv, DepthwiseConvolution):
            remedy = "make one by `DepthwiseConvolution.from_state_dict`"
            raise TypeError(f"`modules` must hold convolutions, got {described(conv)}; {remedy}")
        if not isinstance(prefix, str) or not prefix.isprintable():
            raise ValueError(f"`modules` must have printable names, got {prefix!r}")
    arrays: dict[str, Any] = {
        f"{prefix}.{name}" if prefix else name: array
        for prefix, conv in modules.items()
        for name, array in conv.state_dict().items()
    }
    write(path, arrays, source, modules=_described(modules))


def _described(modules: Mapping[str, DepthwiseConvolution]) -> dict[str, dict[str, Any]]:
    names = ("causal", "channels", "kernel_size")
    return {
        prefix: {name: getattr(conv, name) for name in names} | {"digest": digest(conv)}
        for prefix, conv in modules.items()
    }


def convert(
    source: File,
    target: File,
    *,
    prefixes: Iterable[str] | None = None,
    causal: bool | None = None,
    config: File | None = None,
    weights: str = "float32",
    only_convolutions: bool = False,
) -> Written:
    """
    Copy a model, or convolutions of a checkpoint, to a converted file; return its convolutions.

    With `config`, ESPnet's ``config.yaml`` (reading it needs PyYAML), the whole model is copied:
    what `load_encoder` needs and the rest of the transducer; with ``weights="int8"`` the dense
    weights of encoder and joint network take a quarter of the memory. Without it, with `prefixes`
    or with `only_convolutions`, convolutions are, as `save` writes them: those of `prefixes`, in
    this order, or all that `load_all` loads; `config` then only states `causal` for them.
    Assumed of these: stride 1, dilation 1, C groups.
    """
    wanted = [] if prefixes is None else list(prefixes)
    is_empty = prefixes is not None and not wanted
    if isinstance(prefixes, str) or is_empty or len(set(wanted)) != len(wanted):
        raise ValueError(f"`prefixes` must be one or more different prefixes, got {prefixes!r}")
    for name, path in (("source", source), ("config", config)):
        if path is not None and Path(target).exists() and Path(target).samefile(path):
            raise ValueError(f"`target` must be another file than `{name}`, got {target!r}")
    if weights not in ("float32", "int8"):
        raise ValueError(f"`weights` must be 'float32' or 'int8', got {weights!r}")
    file = opened(source)
    is_configured = config is not None or file.configuration is not None
    if is_configured and not wanted and not only_convolutions:
        return _copy_model(file, target, causal, config, weights)
    if weights != "float32":
        remedy = "pass `config` alone, for a whole model"
        raise ValueError(f"`weights` must be 'float32' for convolutions, got {weights!r}; {remedy}")
    remedy = f"pass `config`, ESPnet's config.yaml, or {WHEN}"
    modules, left_out = select(file, causal, wanted, config, remedy)
    save(target, modules, source=file.checkpoint)
    return Written((file.found[name] for name in modules), left_out)


def _copy_model(
    file: Opened, target: File, causal: bool | None, config: File | None, weights: str
) -> Written:
    """Copy a whole model to a converted file."""
    checkpoint, configuration = file.checkpoint, configuration_of(file, config)
    with naming(checkpoint.path, config):
        if any(name.endswith(f".{SCALE}") for name in checkpoint):
            remedy = "convert the file that this one was made from"
            raise CheckpointError("a model to convert must have weights of floats", "int8", remedy)
        is_whole = any(name.startswith(PARTS) for name in checkpoint)
        arrays: dict[str, Any] = {
            name: tensor(checkpoint, name, entry.shape)
            for name, entry in checkpoint.entries.items()
            if (name.startswith(PARTS) or not is_whole)
            and (entry.dtype.startswith(FLOATS) or name.endswith((".weight", ".bias")))
        }
        arrays = with_8_bits(arrays) if weights == "int8" else arrays
        encoder = Encoder(arrays, configuration)
        configuration = decisive(configuration)
        stated_by = "the file" if config is None else "`config`"
        _agreed("the encoder", {"`causal`": causal, stated_by: encoder.causal})
    found = find(arrays)
    make = DepthwiseConvolution.from_state_dict
    modules = {prefix: make(arrays, prefix, causal=encoder.causal) for prefix in found}
    models: dict[str, Any] = {"encoder": encoder}
    left_out = {}
    try:
        models["recogniser"] = Recogniser(arrays, configuration)
    except CheckpointError as error:  # an encoder alone, or with a decoder that is left out
        left_out["recogniser"] = str(error)
    fields: dict[str, Any] = {"configuration": configuration, "modules": _described(modules)}
    digests = {name: digest(model) for name, model in models.items()}
    write(target, arrays, checkpoint, holds=[*models][-1], **fields, digests=digests)
    return Written(found.values(), left_out, *models.values())


def verify(
    conv_or_path: DepthwiseConvolution | Encoder | File, prefix: str | None = None, *, seed: int = 0
) -> dict[str, str]:
    """
    Check that this machine computes the right bits, offline and streamed; return their digests.

    Outputs of a converted file's modules and of its encoder, or those of the module `prefix`, must
    have the digests that it records: those of the machine that wrote it. Outputs of a module or an
    encoder in memory must be the same in all ways to run it. A VerificationError says which are
    not. `seed` decides where signals are cut into chunks.
    """
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"`seed` must be a non-negative integer, got {described(seed)}")
    if isinstance(conv_or_path, DepthwiseConvolution | Encoder):
        if prefix is not None:
            raise ValueError(f"`prefix` must be None for a module in memory, got {prefix!r}")
        return {"": digest(conv_or_path, seed)}
    file = opened(conv_or_path)
    stated = file.modules
    if not stated or not all("digest" in fields for fields in stated.values()):
        expected = "a file to verify must record digests of what its modules compute"
        with naming(file.checkpoint.path):
            raise CheckpointError(expected, "none", "write it with `edgeconv convert`")
    modules, _ = select(file, None, [] if prefix is None else [prefix])
    recorded = {name: stated[name]["digest"] for name in modules}
    for name, conv in modules.items():
        digest(conv, seed, recorded[name])
    models: dict[str, Any] = {"encoder": Encoder, "recogniser": Recogniser}
    for name, make in models.items():
        if prefix is None and name in file.digests:
            with naming(file.checkpoint.path):
                model = make(file.checkpoint, configuration_of(file, None))
            recorded[name] = digest(model, seed, file.digests[name])
    return recorded


def select(
    file: Opened,
    causal: bool | None,
    prefixes: Sequence[str] = (),
    config: File | None = None,
    remedy: str = f"pass {WHEN}",
) -> tuple[dict[str, DepthwiseConvolution], dict[str, str]]:
    """Load modules, those of `prefixes` or else all that can be; say why others cannot be."""
    configured = None
    if config is not None:
        with naming(config):
            configured = is_causal(read_configuration(config))
    modules: dict[str, DepthwiseConvolution] = {}
    left_out = {} if prefixes else unusable(file.checkpoint)
    with naming(file.checkpoint.path):
        for prefix in prefixes or file.found:
            if prefix not in file.found:
                weight_and_bias(file.checkpoint, prefix)  # raises what is wrong with it
            stated = file.modules.get(prefix, {}).get("causal")
            who = {"`causal`": causal, "the file": stated, "`config`": configured}
            known = _agreed(shown(prefix), who, remedy)
            if not prefixes and file.found[prefix].kernel_size % 2 == 0 and not known:
                left_out[prefix] = "an even number of taps, which only a causal one can have"
            else:
                make = DepthwiseConvolution.from_state_dict
                modules[prefix] = make(file.checkpoint, prefix, causal=known)
        if not modules:
            reasons = ", ".join(f"{shown(name)}: {why}" for name, why in left_out.items())
            raise CheckpointError(NONE, "none", reasons or "is this the right file?")
    return modules, left_out


def _agreed(what: str, who: Mapping[str, bool | None], remedy: str = "") -> bool:
    """Return whether something is causal, of which all must say the same, and somebody must."""
    for name, value in who.items():
        if value is not None and not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be a bool or None, got {described(value)}")
    said = {name: bool(value) for name, value in who.items() if value is not None}
    if len(set(said.values())) != 1:
        texts = ", ".join(f"{value} by {name}" for name, value in said.items())
        remedy = "leave out the one that is wrong" if said else remedy
        expected = f"{what} must be known to be causal or not"
        raise CheckpointError(expected, texts or "neither", remedy)
    return True in said.values()
