"""An encoder as ESPnet's configuration describes it, and its parts as the checkpoint has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgeconv.blocks.block import Block, BlockOptions
from edgeconv.blocks.branchformer import Branchformer
from edgeconv.blocks.conformer import Conformer
from edgeconv.blocks.ebranchformer import EBranchformer
from edgeconv.checkpoint.error import (
    ConfigurationError,
    check_choice,
    misfit,
    section,
    shown,
)
from edgeconv.layers import ConvInput
from edgeconv.layers.activation import ACTIVATIONS, Activation
from edgeconv.layers.norm import NORMS

CAUSAL = "dynamic_chunk_training"
MOST_BLOCKS = 1000
NUMBERS = ("eps", "partial", "_beta", "_val", "_slope")  # ends of names of numbers
BLOCKS = {"conformer": Conformer, "ebranchformer": EBranchformer, "branchformer": Branchformer}


class Description(NamedTuple):
    """What a configuration says; what the tensors say as well is compared with them."""

    input: Mapping[str, Any]
    main: Mapping[str, Any]
    blocks: list[dict[str, Any]]
    n_features: int | None

    @property
    def causal(self) -> bool:
        """Whether an output depends on no frame behind its chunk."""
        return bool(self.main.get(CAUSAL, False))

    def norm(self, options: Mapping[str, Any], start: str, of: str = "") -> dict[str, Any]:
        """Return kind, eps and partial of a norm, whose options' names begin with `start`."""
        own = {name: options.get(f"{start}norm_{name}") for name in ("eps", "partial")}
        return {"kind": self.main.get(f"{of}norm_type", "layer_norm"), **own}

    def build_blocks(self, state: Mapping[str, Any], prefix: str) -> list[Block]:
        """Take all blocks out of a state dict."""
        name = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = {match[1] for match in map(name.match, map(str, state)) if match}
        if len(found) != len(self.blocks):
            expected = f"{prefix} must have {len(self.blocks)} blocks, as body_conf says"
            raise misfit(expected, len(found))
        return [self._block(state, f"{prefix}.{n}", block) for n, block in enumerate(self.blocks)]

    def _block(self, state: Mapping[str, Any], prefix: str, block: dict[str, Any]) -> Block:
        main = self.main
        options = BlockOptions(
            self.causal,
            Activation(main.get("pos_wise_act_type", "swish"), main),
            Activation(main.get("conv_mod_act_type", "swish"), main),
            self.norm(block, ""),
            self.norm(block, "conv_mod_", "conv_mod_"),
        )
        found = kind_of(state, prefix)
        if block["block_type"] != found:
            raise misfit(f"{prefix} must be a {block['block_type']}, as body_conf says", found)
        built = BLOCKS[found](state, prefix, options)
        for name, size in built.sizes.items():
            if block.get(name, size) != size:
                expected = f"{prefix} must have {name} {shown(block[name])}, as body_conf says"
                raise misfit(expected, size)
        return built

    def build_input(self, state: Mapping[str, Any], prefix: str) -> ConvInput:
        """Take the input block out of a state dict."""
        is_vgg = f"{prefix}.conv.5.weight" in state
        if bool(self.input.get("vgg_like", is_vgg)) != is_vgg:
            found = "a VGG block" if is_vgg else "none"
            raise misfit(f"{prefix} must be as vgg_like in input_conf says", found)
        stated, last = self.input.get("conv_size"), f"{prefix}.conv.{7 if is_vgg else 2}"
        sizes = [*stated] if isinstance(stated, list | tuple) else [stated]
        if stated is not None and f"{last}.weight" in state:
            n_channels = len(state[f"{last}.weight"])
            if sizes[-1:] != [n_channels]:
                expected = f"{last} must have conv_size {shown(repr(stated))}, as input_conf says"
                raise misfit(expected, n_channels)
        mels, factor = "frontend.logmel.melmat", self.input.get("subsampling_factor") or 4
        size = self.n_features or (state[mels].shape[1] if mels in state else 80)
        return ConvInput(state, prefix, input_size=size, subsampling_factor=factor)


def describe(configuration: Mapping[str, Any]) -> Description:
    """Read ESPnet's configuration, or its ``encoder_conf``; refuse what is left out."""
    encoder, main = options_of(configuration)
    bodies = encoder["body_conf"]
    if not isinstance(bodies, Sequence) or not all(isinstance(b, Mapping) for b in bodies):
        raise misfit("body_conf must be a list of blocks", bodies)
    if main.get("simplified_att_score"):
        raise ConfigurationError("simplified_att_score must be false: these scores are left out")
    for name in ("pos_wise_act_type", "conv_mod_act_type"):
        check_choice(name, main.get(name, "swish"), ACTIVATIONS)
    source = section(encoder, "input_conf")
    factors = (4,) if source.get("vgg_like") is False else (4, 6)
    check_choice("subsampling_factor", source.get("subsampling_factor") or 4, factors)
    for options in (main, *bodies):
        for name, value in options.items():
            if name.endswith(NUMBERS) and not isinstance(value, int | float | None):
                raise misfit(f"{name} must be a number", value)
    for name in ("norm_type", "conv_mod_norm_type"):
        check_choice(name, main.get(name, "layer_norm"), NORMS)
    blocks = []
    for body in bodies:
        check_choice("block_type", body.get("block_type"), BLOCKS)
        count = body.get("num_blocks") or 1
        if type(count) is not int or not 0 < count <= MOST_BLOCKS:
            raise misfit(f"num_blocks must be an integer from 1 to {MOST_BLOCKS}", count)
        blocks += [_normalised(body)] * count
    n_mels = section(configuration, "frontend_conf").get("n_mels")
    n_features = configuration.get("input_size") or n_mels
    if type(n_features) not in (int, type(None)):
        raise misfit("input_size, or n_mels, must be an integer", n_features)
    return Description(source, main, blocks, n_features)


def options_of(configuration: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return ``encoder_conf`` and its ``main_conf``, if they are those of a transducer."""
    encoder = configuration.get("encoder_conf", configuration)
    if not isinstance(encoder, Mapping) or "body_conf" not in encoder:
        expected = "encoder_conf must have body_conf, as that of espnet2.asr_transducer has"
        found = "that of another task, such as espnet2.asr"
        if (name := configuration.get("encoder")) is not None:
            found = f"{found}: {shown(name)}"
        alone = "leave `config` out and pass `causal=True` or `causal=False`"
        remedy = f"such encoders are left out; for their convolutions alone, {alone}"
        raise ConfigurationError(expected, found, remedy)
    main = section(encoder, "main_conf")
    if not isinstance(main.get(CAUSAL, False), bool):
        raise misfit(f"{CAUSAL} must be true or false", main[CAUSAL])
    return encoder, main


def is_causal(configuration: Mapping[str, Any]) -> bool:
    """Tell whether convolutions see no later frame: if ``dynamic_chunk_training`` is true."""
    return bool(options_of(configuration)[1].get(CAUSAL, False))


def kind_of(state: Mapping[str, Any], prefix: str) -> str:
    """Tell a block's type by the names of its tensors."""
    if f"{prefix}.conv_mod.pointwise_conv1.weight" in state:
        return "conformer"
    merged = f"{prefix}.depthwise_conv_mod.conv.weight" in state
    return "ebranchformer" if merged else "branchformer"


def _normalised(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block's options with ESPnet's defaults, and the names of this version."""
    block = {"heads": 4} | dict(body)
    for name in ("depthwise_conv_kernel_size", "conv_mod_kernel_size"):
        if name in block:
            block.setdefault("depth_conv_kernel_size", block[name])
    return block
