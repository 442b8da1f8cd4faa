"""What an encoder is, as the names and shapes of its tensors tell; nothing is computed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgeconv.blocks.description import BLOCKS, CAUSAL, is_causal, kind_of
from edgeconv.checkpoint.error import listed, section
from edgeconv.layers.parameters import SCALE

Shapes = Mapping[str, tuple[int, ...]]
# What a recogniser needs besides, by a tensor of each.
OTHERS = {
    "decoder": "decoder.embed.weight",
    "joint network": "joint_network.lin_out.weight",
    "frontend": "frontend.logmel.melmat",
    "normalisation": "normalize.mean",
}


def overview(
    shapes: Shapes, configuration: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield lines on the encoder among tensors, each as a title and a text; none without one."""
    found = (re.match(r"(.*?)encoders\.blocks\.", name) for name in shapes)
    outer = next((match[1] for match in found if match), None)
    if outer is None:
        return
    own = {name[len(outer) :]: shape for name, shape in shapes.items() if name.startswith(outer)}
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in own.items():
        if match := re.fullmatch(r"encoders\.blocks\.(\d+)\.(.+)", name):
            blocks.setdefault(int(match[1]), {})[match[2]] = shape
    kinds = {n: kind_of(shapes, f"{outer}encoders.blocks.{n}") for n in blocks}
    texts = (_block(kinds[n], blocks[n]) for n in sorted(blocks))
    title = "encoder"
    for text, same in itertools.groupby(texts):
        yield title, f"{len([*same])} x {text}"
        title = ""
    numbers = [n for n in (0, 2, 5, 7) if f"embed.conv.{n}.weight" in own]
    channels = sorted({own[f"embed.conv.{n}.weight"][0] for n in numbers})
    if numbers:
        kind = "VGG" if len(numbers) > 2 else "conv2d"
        yield "input", f"{kind}, {' and '.join(map(str, channels))} channels"
    title = "parameters"
    for what, names in (("of the encoder", own), ("of all", shapes)):
        counted = (name for name in names if not name.endswith((SCALE, "num_batches_tracked")))
        yield title, f"{sum(math.prod(names[name]) for name in counted):,} {what}"
        title = ""
    yield "streams", _streams(configuration)
    if configuration is not None and configuration.get("token_list"):
        tokens = listed(configuration, "token_list", "tokens")
        kind = configuration.get("token_type", "bpe")
        rate = section(configuration, "frontend_conf").get("fs", 16000)
        yield "recognises", f"{len(tokens)} tokens of type {kind}, speech of {rate} Hz"
    missing = [f"{outer}encoders.blocks.{n}.{name}" for n, name in _gaps(kinds, blocks)]
    needed = "embed.conv.0.", "embed.output.", "encoders.norm_blocks."
    missing += [f"{outer}{n}*" for n in needed if not any(name.startswith(n) for name in own)]
    missing += [name for name, tensor in OTHERS.items() if tensor not in shapes]
    missing += ["configuration"] if configuration is None else []
    if missing:
        yield "missing", ", ".join(missing[:8]) + ", ..." * (len(missing) > 8)


def _block(kind: str, tensors: Shapes) -> str:
    """Describe a block."""
    heads, size = tensors.get("self_att.pos_bias_u", (0, 0))[:2]
    hidden = tensors.get("feed_forward.w_1.weight", tensors.get("channel_proj1.0.weight", (0,)))
    taps = {shape[2] for shape in tensors.values() if len(shape) == 3 and shape[1] == 1}
    kernels = " and ".join(map(str, sorted(taps, reverse=True)))
    return (
        f"{BLOCKS[kind].__name__} of {heads * size}, {heads} heads, linear {hidden[0]}, "
        f"kernel {kernels}"
    )


def _streams(configuration: Mapping[str, Any] | None) -> str:
    """Say whether it can be streamed."""
    if configuration is None:
        return f"if {CAUSAL} is true in its config.yaml (--config)"
    causal = is_causal(configuration)
    return f"{'yes' if causal else 'no'}: {CAUSAL} is {str(causal).lower()}"


def _gaps(kinds: Mapping[int, str], blocks: Mapping[int, Shapes]) -> Iterator[tuple[int, str]]:
    """Yield the tensors that a block lacks and another one of its kind has."""
    for n in range(max(blocks, default=-1) + 1):
        like = [blocks[m] for m, kind in kinds.items() if kind == kinds.get(n)]
        names = dict.fromkeys(itertools.chain(*like)) if n in blocks else ["*"]
        yield from ((n, name) for name in names if name not in blocks.get(n, {}))
