"""Depthwise convolutions among named tensors: where they are, and their weights as float32."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeconv.checkpoint import Checkpoint, CheckpointError
from edgeconv.checkpoint.error import naming, shown

FLOATS = ("float16", "float32", "float64", "bfloat16", "float8")

# Where PyTorch keeps a parameter that it computes in each call: one that is pruned or normalised.
_COMPUTED = ("{}_orig", "{}_v", "parametrizations.{}.original", "parametrizations.{}.original1")
_STORED = ("weight", *(place.format("weight") for place in _COMPUTED))
_REMEDY = (
    "make it plain before saving: `torch.nn.utils.prune.remove`, "
    "`torch.nn.utils.remove_weight_norm`, `torch.nn.utils.remove_spectral_norm` or "
    "`torch.nn.utils.parametrize.remove_parametrizations`"
)


class Convolution(NamedTuple):
    """A depthwise convolution: its module's name without ``.conv``, C channels and K taps."""

    prefix: str
    channels: int
    kernel_size: int


def find(state: Mapping[str, Any]) -> dict[str, Convolution]:
    """Find every float weight (C, 1, K), with a bias (C,) or without, by prefix, reading none."""
    return {name: conv for name, conv in _survey(state).items() if isinstance(conv, Convolution)}


def unusable(state: Mapping[str, Any]) -> dict[str, str]:
    """Say by prefix what makes a depthwise convolution none that can be run, and what helps."""
    return {name: reason for name, reason in _survey(state).items() if isinstance(reason, str)}


def parents_of(state: Mapping[str, Any], prefix: str) -> list[str]:
    """Return what precedes ``weight`` in the keys that `prefix` means: one, if all is well."""
    outer = f"{prefix}." if prefix else ""
    candidates = (f"{outer}conv.", outer)
    return [p for p in candidates if _prefix(p) == prefix and _looks_depthwise(state, p)]


def weight_and_bias(
    state: Mapping[str, Any], prefix: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return new arrays: the weight (C, 1, K) and bias (C,) of one convolution. None is zeros."""
    if not isinstance(state, Mapping):
        hint = "its `.state_dict()`" if hasattr(state, "state_dict") else "arrays by name"
        raise TypeError(f"`state` must be a mapping, got {type(state).__name__}; pass {hint}")
    if not isinstance(prefix, str):
        raise TypeError(f"`prefix` must be a str, got {type(prefix).__name__}")
    with naming(state.path if isinstance(state, Checkpoint) else None):
        parents = parents_of(state, prefix)
        found = _examined(state, parents) if parents else ""
        if isinstance(found, str):
            known = find(state)
            choice = shown(difflib.get_close_matches(prefix, known) or list(known)[:3])
            reason, _, remedy = found.partition("; ")
            raise CheckpointError(
                f"{shown(prefix)} must be a depthwise convolution, a float weight (C, 1, K)",
                reason or "none",
                remedy or (f"choose from {choice}" if choice else "is this the right model?"),
            )
        keys = [f"{parents[0]}{name}" for name in ("weight", "bias")]
        arrays = [float32_of(array_of(state, key), key) for key in keys if key in state]
        weight, bias = [*arrays, np.zeros(found.channels, np.float32)][:2]
        return weight, bias


def _prefix(parent: str) -> str:
    """Return a module's name from what precedes ``weight`` in its key."""
    return f".{parent}".removesuffix(".").removesuffix(".conv")[1:]


def _spec(state: Mapping[str, Any], key: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the element type and shape of a tensor, if there is one; it is not read."""
    if isinstance(state, Checkpoint):
        entry = state.entries.get(key)
        return entry and (entry.dtype, entry.shape)
    value: Any = state.get(key)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return None
    return getattr(value.dtype, "name", str(value.dtype).removeprefix("torch.")), tuple(value.shape)


def _looks_depthwise(state: Mapping[str, Any], parent: str) -> bool:
    """Tell whether a weight (C, 1, K), or what stands for one, has this parent."""
    shapes = (spec[1] for stored in _STORED if (spec := _spec(state, parent + stored)))
    return any(len(shape) == 3 and shape[1] == 1 and 0 not in shape for shape in shapes)


def _survey(state: Mapping[str, Any]) -> dict[str, Convolution | str]:
    """Return by prefix what looks like a convolution, or the reason why it is none here."""
    parents: dict[str, dict[str, None]] = {}
    for key in state.entries if isinstance(state, Checkpoint) else state:
        for stored in _STORED:
            if isinstance(key, str) and f".{key}".endswith(f".{stored}"):
                parent = key.removesuffix(stored)
                if _looks_depthwise(state, parent):
                    parents.setdefault(_prefix(parent), {})[parent] = None
    return {prefix: _examined(state, list(found)) for prefix, found in parents.items()}


def _examined(state: Mapping[str, Any], parents: list[str]) -> Convolution | str:
    """Return the convolution of a parent that looks like one, or the reason why it is none."""
    if len(parents) > 1:
        return "two of one name, with '.conv' and without; rename one"
    (parent,) = parents
    weight, bias = _spec(state, f"{parent}weight"), _spec(state, f"{parent}bias")
    biases = (_spec(state, parent + place.format("bias")) for place in _COMPUTED)
    if weight is None or (bias is None and any(biases)):
        return f"a weight or bias that PyTorch computes from others; {_REMEDY}"
    channels, _, kernel_size = weight[1]
    bias = bias or ("float32", (channels,))
    for name, dtype in (("weight", weight[0]), ("bias", bias[0])):
        if not dtype.startswith(FLOATS):
            remedy = "such convolutions are left out"
            if not str(dtype).startswith("complex"):
                remedy = "save the model in float32, without quantization"
            return f"a {name} of {dtype}; {remedy}"
    if bias[1] != (channels,):
        return f"a bias {bias[1]} for {weight[1]}; choose one with a bias (C,)"
    return Convolution(_prefix(parent), channels, kernel_size)


def array_of(state: Mapping[str, Any], name: str) -> NDArray[Any]:
    """Return a tensor as an array."""
    try:
        return np.asarray(state[name])
    except (TypeError, RuntimeError) as error:  # PyTorch's, for a tensor that NumPy cannot view
        expected = f"{shown(name)} must be an array or a tensor that NumPy can view"
        remedy = "pass `tensor.detach().cpu().float()`"
        raise CheckpointError(expected, str(error).splitlines()[0], remedy) from error


def float32_of(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Copy a tensor of floats as float32, which must hold all that is finite in it."""
    if not array.dtype.name.startswith(FLOATS):
        raise CheckpointError(f"{shown(name)} must be floats", str(array.dtype))
    with np.errstate(over="ignore"):
        result = array.astype(np.float32, order="C")
    if array.dtype.itemsize > 4 and (np.isinf(result) & np.isfinite(array)).any():
        raise CheckpointError(f"{shown(name)} must fit float32", "over 3.4e38", "export it again")
    return result
