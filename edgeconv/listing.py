"""`edgeconv inspect`: what a checkpoint holds, and what to do with it."""

from __future__ import annotations

import contextlib
import math
import shlex
from pathlib import Path

from edgeconv.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from edgeconv.checkpoint.converted import causality
from edgeconv.checkpoint.elements import item_size
from edgeconv.checkpoint.tensors import Convolution, convolutions, none_found
from edgeconv.terminal import CommandError, printable, table

ANSWERS = {True: "yes", False: "no", None: "not stated"}


def inspect(path: str, all_tensors: bool) -> None:
    """Print the convolutions in a file, before them every tensor if wanted, and the next command.

    An incomplete convolution is an error only after those that are complete have been listed.
    """
    checkpoint = read_checkpoint(path)
    print(f"{printable(path)}: {summary(checkpoint)}\n")
    if all_tensors:
        specs = [(name, *checkpoint.spec(name)) for name in checkpoint]
        print(table([("tensor", "dtype", "shape"), *specs]) + "\n")
    stated = causality(checkpoint)
    complete = _complete(checkpoint)
    if complete:
        rows = [
            (prefix or "''", C, C // 2, K, dtype, ANSWERS[stated.get(prefix)])
            for (prefix, C, K), dtype in complete.items()
        ]
        header = ("convolution", "channels", "size", "kernel size", "dtype", "causal")
        print(table([header, *rows]) + "\n")
    if not convolutions(checkpoint):
        raise CommandError(
            f"{path}: must hold a depthwise convolution, P.weight (C, 1, K) with even C and odd K "
            f"and P.bias (C,), found none; {none_found(checkpoint)}"
        )
    print(_next_step(path, [convolution.prefix for convolution in complete], bool(stated)))


def summary(checkpoint: Checkpoint) -> str:
    """Say in a few words what a file is."""
    specs = [checkpoint.spec(name) for name in checkpoint]
    size = sum(math.prod(spec.shape) * item_size(spec.dtype) for spec in specs)
    return f"{checkpoint.format}, {len(specs)} tensors, {size / 1e6:.2f} MB"


def _complete(checkpoint: Checkpoint) -> dict[Convolution, str]:
    """Return the convolutions that can be loaded, and their weights' element types."""
    found: dict[Convolution, str] = {}
    for name in checkpoint:
        if ("." + name).endswith(".weight"):
            bias = name.removesuffix("weight") + "bias"
            # Each pair by itself, so that one without a bias does not hide the others.
            pair = {key: checkpoint.spec(key) for key in (name, bias) if key in checkpoint}
            with contextlib.suppress(CheckpointError):
                found |= dict.fromkeys(convolutions(pair).values(), pair[name].dtype)
    return found


def _next_step(path: str, prefixes: list[str], converted: bool) -> str:
    """Return the command to type next."""
    file = printable(shlex.quote(path))
    if converted:
        prefix = f" --prefix {printable(shlex.quote(prefixes[-1]))}" if len(prefixes) > 1 else ""
        return f"next: edgeconv run {file} INPUT.npy -o OUTPUT.npy{prefix}"
    target = printable(shlex.quote(f"{Path(path).stem}.converted.npz"))
    return (
        f"next: edgeconv convert {file} {target} --causal\n"
        "      (--no-causal unless ESPnet's configuration says dynamic_chunk_training: true;\n"
        "      --config config.yaml looks there)"
    )
