"""Depthwise convolutions among named tensors: where they are, and their weights as float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeconv.arrays import ignoring_float_errors, is_array
from edgeconv.checkpoint.error import CheckpointError, naming, shown
from edgeconv.checkpoint.mapping import Checkpoint, TensorSpec, reading

__all__ = [
    "TAPS",
    "Convolution",
    "choice",
    "convolutions",
    "none_found",
    "prefix_of",
    "weight_and_bias",
]

# A view that repeats few stored values, as an expanded tensor does, can claim any size.
REPEATED_ELEMENTS = 2**24
TAPS = 2**12  # of a convolution: proving its outputs takes work as the square of them
PREFIXES_SHOWN = 12
EXPORT = "export it from the trained model again"
FLOATS = ("float", "bfloat")
# What stands for a weight that PyTorch computes anew, and what ends that.
REPARAMETRIZED = {
    "weight_orig": "remove_spectral_norm",
    "weight_v": "remove_weight_norm",
    "parametrizations.weight.original": "remove_parametrizations",
    "parametrizations.weight.original1": "remove_parametrizations",
    "weight_g": "remove_weight_norm",
    "parametrizations.weight.original0": "remove_parametrizations",
}
LENGTHS = ("weight_g", "parametrizations.weight.original0")  # which have another shape


class Convolution(NamedTuple):
    """
    A depthwise convolution in a file.

    Attributes
    ----------
    prefix : str
        The module's name: the key of its weight without ``.weight`` and without ``.conv``.
    channels : int
        Number of channels C, even.
    kernel_size : int
        Number of taps K, odd.
    """

    prefix: str
    channels: int
    kernel_size: int


def weight_and_bias(
    state: Mapping[str, Any], prefix: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Take the weight (C, 1, K) and bias (C,) of one depthwise convolution out of a state dict.

    `state` is a `Checkpoint`, or holds arrays or CPU tensors of PyTorch; `prefix` is the module's
    name, with ``.conv`` or without. Both arrays are C-contiguous float32 copies.

    Raises
    ------
    CheckpointError
        If the pair is missing, ambiguous, or not that of a depthwise convolution, or if a finite
        value is beyond the range of float32.
    TypeError
        If an argument, or a value in `state`, is of the wrong kind.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"`state` must be a mapping of names to arrays, got {_kind(state)}")
    if not isinstance(prefix, str):
        raise TypeError(f"`prefix` must be a str, got {_kind(prefix)}")
    with _naming(state):
        parent = _parent(state, prefix)
        _geometry(state, parent)
        weight = _float32(state, parent + "weight")
        bias = _float32(state, parent + "bias")
    return weight, bias


def convolutions(state: Mapping[str, Any]) -> dict[str, Convolution]:
    """Find every depthwise convolution in the order of `state`, without reading a tensor.

    Damage must not hide one: what cannot be one for its type is read for its checksum.
    """
    found: dict[str, Convolution] = {}
    if isinstance(state, Checkpoint):
        for key in state.unlisted:
            if ("." + key).endswith((".weight", ".bias")):
                state.verify(key)
    with _naming(state):
        for key, name in _reparametrized(state):
            parent = key.removesuffix(name)
            if (
                name not in LENGTHS
                and _looks_depthwise(state, key)
                and not _spec(state, parent + "weight")
            ):
                _refuse_reparametrized(state, [parent])
        for parent in _parents(state):
            prefix = prefix_of(parent)
            if prefix in found:
                raise _ambiguous(prefix)
            found[prefix] = Convolution(prefix, *_geometry(state, parent))
    return found


def prefix_of(parent: str) -> str:
    """Return the module's name from the key of its weight without the last word."""
    name = parent.removesuffix(".")
    return "" if name == "conv" else name.removesuffix(".conv")


def choice(prefixes: Sequence[str]) -> str:
    """Return the remedy that lists prefixes."""
    more = f" and {len(prefixes) - PREFIXES_SHOWN} more" * (len(prefixes) > PREFIXES_SHOWN)
    return f"choose from {', '.join(map(shown, prefixes[:PREFIXES_SHOWN]))}{more}"


def none_found(state: Mapping[str, Any]) -> str:
    """Return the remedy for a state dict without a depthwise convolution."""
    for _, name in _reparametrized(state):
        return _trained(name)
    for key in state:
        spec = _spec(state, key) if isinstance(key, str) else None
        if spec and ("." + key).endswith(".weight") and len(spec.shape) == 3 and spec.shape[1] == 1:
            return f"the nearest is {shown(key)}, {spec.dtype} {spec.shape}"
    if isinstance(state, Checkpoint):
        for key, remedy in state.unlisted.items():
            return f"there is {shown(key)}, {state.spec(key).dtype}: {remedy}"
    return "is this the right file?"


def _parents(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of all depthwise weights without their last word."""
    for key in state:
        if isinstance(key, str) and ("." + key).endswith(".weight"):
            parent = key.removesuffix("weight")
            if _looks_depthwise(state, key):
                yield parent


def _parent(state: Mapping[str, Any], prefix: str) -> str:
    """Return what precedes ``weight`` in the key that `prefix` means."""
    inner = f"{prefix}.conv." if prefix else "conv."
    outer = f"{prefix}." if prefix else ""
    present = [
        parent
        for parent in (inner, outer)
        if prefix_of(parent) == prefix and _spec(state, parent + "weight")
    ]
    # A module may hold a weight of its own beside its convolution, so the shape decides.
    if len(present) == 2:
        present = [
            parent for parent in present if _looks_depthwise(state, parent + "weight")
        ] or present[:1]
    if len(present) == 2:
        raise _ambiguous(prefix)
    if not present:
        _refuse_reparametrized(state, [inner, outer])
        prefixes = [prefix_of(parent) for parent in _parents(state)]
        raise CheckpointError(
            f"prefix {shown(prefix)} must have the key {shown(inner + 'weight')} or "
            f"{shown(outer + 'weight')}",
            "neither",
            choice(prefixes) if prefixes else none_found(state),
        )
    return present[0]


def _reparametrized(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys that stand for a weight, and the last words by which they do."""
    for key in state:
        for name in REPARAMETRIZED:
            if isinstance(key, str) and ("." + key).endswith("." + name):
                yield key, name


def _looks_depthwise(state: Mapping[str, Any], key: str) -> bool:
    """Tell whether a weight is one that this library can run."""
    spec = _spec(state, key)
    if spec is None or len(spec.shape) != 3 or not spec.dtype.startswith(FLOATS):
        return False
    channels, one, kernel_size = spec.shape
    return channels > 0 and channels % 2 == 0 and one == 1 and kernel_size in range(1, TAPS, 2)


def _geometry(state: Mapping[str, Any], parent: str) -> tuple[int, int]:
    """Check the pair's shapes and types; return the number of channels and of taps."""
    weight = _floating(state, parent + "weight")
    if not _looks_depthwise(state, parent + "weight"):
        raise CheckpointError(
            f"{shown(parent + 'weight')} must have the shape (C, 1, K) with even C and odd K below "
            f"{TAPS}",
            str(weight.shape),
            "choose the prefix of a depthwise convolution",
        )
    channels, _, kernel_size = weight.shape
    bias = _floating(state, parent + "bias")
    if bias.shape != (channels,):
        raise CheckpointError(
            f"{shown(parent + 'bias')} must have the shape ({channels},) of its weight's channels",
            str(bias.shape),
            EXPORT,
        )
    return channels, kernel_size


def _floating(state: Mapping[str, Any], key: str) -> TensorSpec:
    """Describe a tensor that must be there and be of a float type."""
    spec = _spec(state, key)
    if spec is None:
        raise CheckpointError(
            f"{shown(key)} must be there, as the convolution has a bias",
            "no such key",
            "choose another convolution by its prefix, or give this one a bias of zeros",
        )
    if not spec.dtype.startswith(FLOATS):
        remedy = "save the model in float32, without quantization"
        raise CheckpointError(f"{shown(key)} must be of a float type", spec.dtype, remedy)
    return spec


def _spec(state: Mapping[str, Any], key: str) -> TensorSpec | None:
    """Describe a tensor, or return None where there is none."""
    if isinstance(state, Checkpoint):
        with contextlib.suppress(KeyError):
            return state.spec(key)
    elif key in state:
        value = state[key]
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            dtype = getattr(value.dtype, "name", str(value.dtype).removeprefix("torch."))
            return TensorSpec(dtype, tuple(value.shape))
    return None


@ignoring_float_errors
def _float32(state: Mapping[str, Any], key: str) -> NDArray[np.float32]:
    """Copy one tensor as float32."""
    array = _as_array(state[key], key)
    extents = zip(array.shape, array.strides, strict=True)
    span = array.itemsize + sum((length - 1) * abs(stride) for length, stride in extents)
    if array.size > REPEATED_ELEMENTS and array.nbytes > span:
        raise CheckpointError(
            f"{shown(key)} must store its {array.size} elements",
            "a view that repeats fewer",
            EXPORT,
        )
    result = np.array(array, np.float32, order="C", copy=True)
    overflows = np.isinf(result) & np.isfinite(array)
    if overflows.any():
        raise CheckpointError(
            f"{shown(key)} must fit float32 (up to 3.4e38)",
            f"{array[overflows][0]!s} as {array.dtype}",
            EXPORT,
        )
    return result


def _as_array(value: Any, key: str) -> NDArray[Any]:
    """View an array or a CPU tensor as a NumPy array."""
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError) as error:
        # What a tensor of PyTorch answers if it is on another device, if it requires a gradient,
        # or if NumPy lacks its element type.
        raise CheckpointError(
            f"{shown(key)} must be an array or a tensor that NumPy can view",
            f"a {_kind(value)} of {value.dtype} ({str(error).splitlines()[0]})",
            "pass `tensor.detach().cpu().float()`",
        ) from error
    if array.dtype == object or (isinstance(value, np.ndarray) and not is_array(value)):
        raise TypeError(f"`state[{key!r}]` must be an array or a CPU tensor, got {_kind(value)}")
    return array


def _refuse_reparametrized(state: Mapping[str, Any], parents: list[str]) -> None:
    """Explain a convolution whose weight PyTorch computes from others, by weight norm say."""
    for parent in parents:
        for name in REPARAMETRIZED:
            if _spec(state, parent + name):
                raise CheckpointError(
                    f"{shown(parent + 'weight')} must be there",
                    f"what it is computed from, {shown(parent + name)}",
                    _trained(name),
                )


def _trained(name: str) -> str:
    """Return the remedy for what stands for a weight."""
    return f"call PyTorch's `{REPARAMETRIZED[name]}` on the module before saving"


def _ambiguous(prefix: str) -> CheckpointError:
    """Return the error for two convolutions of one name."""
    return CheckpointError(
        f"prefix {shown(prefix)} must mean one convolution",
        "one with '.conv' and one without",
        "rename one of the two and save again",
    )


def _naming(state: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Let errors name the file that the tensors come from."""
    return reading(state.path, state.format) if isinstance(state, Checkpoint) else naming()


def _kind(value: object) -> str:
    """Name a value's type."""
    return type(value).__name__
