"""Modules and the files that hold their weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeconv import digest
from edgeconv.arrays import described
from edgeconv.checkpoint import Checkpoint, CheckpointError, converted, read_checkpoint
from edgeconv.checkpoint.error import naming, shown
from edgeconv.checkpoint.mapping import reading
from edgeconv.checkpoint.tensors import (
    Convolution,
    choice,
    convolutions,
    none_found,
    weight_and_bias,
)
from edgeconv.configuration import read_configuration
from edgeconv.convolution import DepthwiseConvolution, check_target
from edgeconv.files import as_text

__all__ = ["Convolution", "convert", "find_convolutions", "load", "load_all", "save"]

# Views of the same bytes could make the modules of a small file take any amount of memory.
SIZE_RATIO = 64
SIZE_FLOOR = 2**26


def find_convolutions(
    path_or_state: str | os.PathLike[str] | Mapping[str, Any],
) -> list[Convolution]:
    """
    List the depthwise convolutions in a file or a state dict.

    Parameters
    ----------
    path_or_state : str, path-like or mapping of str to array
        A checkpoint's path, what `read_checkpoint` returns, or a state dict.

    Returns
    -------
    list of Convolution
        Named tuples ``(prefix, channels, kernel_size)`` in file order. No tensor is read.

    Raises
    ------
    CheckpointError
        If a depthwise weight has no bias that fits, or if two have the same prefix.
    """
    state = path_or_state if isinstance(path_or_state, Mapping) else read_checkpoint(path_or_state)
    if isinstance(state, Checkpoint):
        converted.causality(state)
    return list(convolutions(state).values())


def load(
    path: str | os.PathLike[str], prefix: str | None = None, causal: bool | None = None
) -> DepthwiseConvolution:
    """
    Load one depthwise convolution from a checkpoint.

    Parameters
    ----------
    path : str or path-like
        A file that `read_checkpoint` can read.
    prefix : str, optional
        Which one; not needed if the file holds only one.
    causal : bool, optional
        Whether it is causal; not needed if the file says so, as a converted checkpoint does.
        ESPnet sets it from its configuration's ``main_conf.dynamic_chunk_training``.

    Returns
    -------
    DepthwiseConvolution
        The module with the file's weights, in float32.

    Raises
    ------
    CheckpointError
        If the file cannot be used, if it leaves open which convolution is meant or whether it is
        causal, or if it says otherwise than `causal`.
    """
    _check_causal(causal)
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"`prefix` must be a str or None, got {described(prefix)}")
    checkpoint = read_checkpoint(path)
    stated = converted.causality(checkpoint)
    with naming(checkpoint.path, checkpoint.format):
        if prefix is None:
            prefix = _only(_found(checkpoint))
        return _load(checkpoint, prefix, stated, causal)


def load_all(
    path: str | os.PathLike[str], causal: bool | None = None
) -> dict[str, DepthwiseConvolution]:
    """
    Load every depthwise convolution of a checkpoint.

    Parameters
    ----------
    path : str or path-like
        A file that `read_checkpoint` can read.
    causal : bool, optional
        As for `load`, for all of them.

    Returns
    -------
    dict of str to DepthwiseConvolution
        By prefix, in file order.

    Raises
    ------
    CheckpointError
        As for `load`, and if the file holds none.
    """
    _check_causal(causal)
    checkpoint = read_checkpoint(path)
    stated = converted.causality(checkpoint)
    with naming(checkpoint.path, checkpoint.format):
        found = _found(checkpoint)
        return {prefix: _load(checkpoint, prefix, stated, causal) for prefix in found}


def save(path: str | os.PathLike[str], modules: Mapping[str, DepthwiseConvolution]) -> None:
    """
    Write modules as a converted checkpoint: an `.npz` that states whether they are causal.

    Parameters
    ----------
    path : str or path-like
        The file, under exactly this path, replaced in one step.
    modules : mapping of str to DepthwiseConvolution
        At least one module, by prefix.

    Raises
    ------
    TypeError, ValueError
        If `modules` is anything else, if a prefix could not be read back as it is, or if the file
        is one that a module was loaded from.
    OSError
        If the file cannot be written; it is then as it was.

    Notes
    -----
    Each module runs once, for the digest of its output that `verify` compares with. The first time
    on a machine, Numba compiles for some seconds.
    """
    if not isinstance(modules, Mapping):
        raise TypeError(f"`modules` must be a mapping, got {described(modules)}")
    for prefix, module in modules.items():
        if not isinstance(prefix, str):
            raise TypeError(f"the keys of `modules` must be str, got {described(prefix)}")
        if not isinstance(module, DepthwiseConvolution):
            raise TypeError(
                f"`modules[{prefix!r}]` must be a DepthwiseConvolution, got {described(module)}"
            )
    _write(path, modules)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    prefixes: Iterable[str] | None = None,
    causal: bool | None = None,
    config: str | os.PathLike[str] | None = None,
) -> list[Convolution]:
    """
    Write depthwise convolutions of a checkpoint as a converted checkpoint.

    Parameters
    ----------
    source : str or path-like
        A file that `read_checkpoint` can read.
    target : str or path-like
        The file to write, under exactly this path; neither `source` nor `config`.
    prefixes : iterable of str, optional
        Which ones, in this order; by default all of them.
    causal : bool, optional
        As for `load`, for all of them.
    config : str or path-like, optional
        The ``config.yaml`` that ESPnet wrote beside the checkpoint. It states `causal`, and the
        kernel sizes must be those that it states. This needs PyYAML.

    Returns
    -------
    list of Convolution
        What was written.

    Raises
    ------
    CheckpointError
        As for `load_all`, and if `config` cannot be used or disagrees.
    ImportError
        If `config` is given and PyYAML is missing.
    TypeError, ValueError
        If `prefixes` is not an iterable of different prefixes, or if `target` is an input.
    OSError
        If the target cannot be written; it is then as it was.

    Notes
    -----
    As `save`, this runs each module once.
    """
    _check_causal(causal)
    wanted = None if prefixes is None else _wanted(prefixes)
    source, target = as_text("source", source), as_text("target", target)
    checkpoint = read_checkpoint(source)
    configuration = None if config is None else read_configuration(config)
    for name, path in (("the source", source), ("`config`", config)):
        if path is not None and Path(target).exists() and Path(target).samefile(path):
            raise ValueError(f"`target` must be another file than {name}, got {target!r}")
    if configuration is not None:
        configuration.check_causal(causal)
        causal = configuration.causal
    stated = converted.causality(checkpoint)
    with naming(checkpoint.path, checkpoint.format):
        names = _found(checkpoint) if wanted is None else wanted
        modules = {prefix: _load(checkpoint, prefix, stated, causal) for prefix in names}
        source_digest = checkpoint.sha256()
    if configuration is not None:
        for prefix, conv in modules.items():
            configuration.check_kernel_size(prefix, conv.kernel_size)
    _write(target, modules, converted.Source(Path(checkpoint.path).name, source_digest))
    return [Convolution(name, conv.channels, conv.kernel_size) for name, conv in modules.items()]


def _write(
    path: str | os.PathLike[str],
    modules: Mapping[str, DepthwiseConvolution],
    source: converted.Source | None = None,
) -> None:
    """Write modules with the digests of their outputs."""
    check_target(path, modules.values())
    digests = {prefix: digest.of_module(conv) for prefix, conv in modules.items()}
    converted.write(path, modules, digests, source)


def _load(
    checkpoint: Checkpoint, prefix: str, stated: Mapping[str, bool], causal: bool | None
) -> DepthwiseConvolution:
    """Load one module, causal as the file or the caller states."""
    answer = stated.get(prefix) if causal is None else causal
    if answer is None:
        weight_and_bias(checkpoint, prefix)  # that there is none is the better thing to say
        raise CheckpointError(
            f"{shown(prefix)} must be known to be causal or not",
            "nothing about it in the file",
            "pass `causal=True` if it was trained with dynamic_chunk_training, else `causal=False`",
        )
    with reading(checkpoint.path, checkpoint.format):
        return DepthwiseConvolution.from_state_dict(checkpoint, prefix, causal=answer)


def _found(checkpoint: Checkpoint) -> list[str]:
    """Return the prefixes of all convolutions, of which there must be one at least."""
    found = convolutions(checkpoint)
    if not found:
        raise CheckpointError(
            "the file must hold a depthwise convolution, P.weight (C, 1, K) and P.bias (C,)",
            "none",
            none_found(checkpoint),
        )
    size = sum(4 * conv.channels * (conv.kernel_size + 1) for conv in found.values())
    if size > max(SIZE_FLOOR, SIZE_RATIO * checkpoint.size):
        raise CheckpointError(
            f"the convolutions must take at most {SIZE_RATIO} times the file's size",
            f"{len(found)} that overlap and take {size} bytes",
            "load one by its prefix",
        )
    return list(found)


def _only(prefixes: list[str]) -> str:
    """Return the prefix, of which there must be only one."""
    if len(prefixes) > 1:
        raise CheckpointError(
            "`prefix` must say which convolution to load",
            f"{len(prefixes)} in the file",
            choice(prefixes),
        )
    return prefixes[0]


def _wanted(prefixes: Iterable[str]) -> list[str]:
    """Check the `prefixes` of `convert`."""
    if isinstance(prefixes, str) or not isinstance(prefixes, Iterable):
        raise TypeError(f"`prefixes` must be an iterable of str, got {described(prefixes)}")
    wanted = list(prefixes)
    for prefix in wanted:
        if not isinstance(prefix, str):
            raise TypeError(f"`prefixes` must hold str, got {described(prefix)}")
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"`prefixes` must be one or more different prefixes, got {wanted!r}")
    return wanted


def _check_causal(causal: object) -> None:
    """Refuse what is neither a Boolean nor None."""
    if causal is not None and not isinstance(causal, bool | np.bool_):
        raise TypeError(f"`causal` must be a bool or None, got {described(causal)}")
