"""ESPnet's configuration: what it says about the convolutions in a checkpoint."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from edgeconv.arrays import is_integer
from edgeconv.checkpoint.error import CheckpointError, naming, shown
from edgeconv.checkpoint.mapping import open_regular
from edgeconv.files import as_text

__all__ = ["Configuration", "read_configuration"]

SIZE = 2**20  # of the file, in bytes; with 20,000 tokens it takes a third
EVENTS = 2**16  # of the parser: one for each token; each may take 40 microseconds
SCALAR = 2**14  # characters of a text or a number
DEPTH = 50
REMEDY = "give the config.yaml that ESPnet wrote beside the checkpoint"

# Where ESPnet's builders look up the kernel size of a module of a block: the first key that is
# there. `Conv1d` blocks are missing: what they compute is another thing.
KERNEL_SIZE_KEYS = {
    ("ebranchformer", "depthwise_conv_mod"): ("depth_conv_kernel_size", "conv_mod_kernel_size"),
    ("ebranchformer", "conv_mod"): ("conv_mod_kernel_size",),
    ("branchformer", "conv_mod"): ("conv_mod_kernel_size",),
    ("conformer", "conv_mod.depthwise_conv"): ("conv_mod_kernel_size",),
}
_MODULE = re.compile(r"(?:.*\.)?encoders\.blocks\.(?P<block>\d{1,9})\.(?P<name>.+)", re.DOTALL)


class Configuration(NamedTuple):
    """
    The part of a transducer's configuration that is about convolutions.

    Attributes
    ----------
    path : str
        The file.
    causal : bool
        ``dynamic_chunk_training``, which makes every convolution of the encoder causal.
    blocks : list of (int, dict)
        ``body_conf``: how many blocks in a row are as the dictionary says.
    """

    path: str
    causal: bool
    blocks: list[tuple[int, dict[Any, Any]]]

    def check_causal(self, causal: bool | None) -> None:
        """Raise a CheckpointError if the caller states something else."""
        if causal is not None and causal != self.causal:
            raise CheckpointError(
                f"`causal` must be {self.causal}, as dynamic_chunk_training in the configuration",
                f"`causal={causal}`",
                "leave `causal` out",
                self.path,
            )

    def check_kernel_size(self, prefix: str, kernel_size: int) -> None:
        """Raise a CheckpointError if a module of the checkpoint is not of this configuration."""
        with naming(self.path):
            match = _MODULE.fullmatch(prefix)
            if match is None:
                raise CheckpointError(
                    f"{shown(prefix)} must be in a block of the encoder, which is what the "
                    "configuration describes",
                    "it elsewhere",
                    "choose other convolutions by their prefixes",
                )
            number = int(match["block"])
            block = self._block(number)
            kind = block.get("block_type")
            keys = KERNEL_SIZE_KEYS.get((kind if isinstance(kind, str) else "", match["name"]))
            if keys is None:
                raise _wrong(
                    f"block {number} must have a block_type with the convolution {shown(prefix)}",
                    _shown(kind),
                )
            key = next((key for key in keys if key in block), keys[-1])
            found = block.get(key)
            if not is_integer(found) or found != kernel_size:
                raise _wrong(
                    f"block {number} must have the {key} {kernel_size} of {shown(prefix)}",
                    _shown(found),
                )

    def _block(self, number: int) -> dict[Any, Any]:
        """Return the configuration of one block; nothing is expanded, whatever the file claims."""
        end = 0
        for count, block in self.blocks:
            end += count
            if number < end:
                return block
        raise _wrong(f"body_conf must describe block {number}", f"{end} blocks")


def read_configuration(path: str | os.PathLike[str]) -> Configuration:
    """
    Read the configuration of an ESPnet transducer (`espnet2.asr_transducer`).

    Parameters
    ----------
    path : str or path-like
        The ``config.yaml`` that ESPnet wrote beside a checkpoint.

    Returns
    -------
    Configuration
        With ESPnet's defaults for what is left out.

    Raises
    ------
    CheckpointError
        If the file is no such configuration, or is a directory, a pipe or a device.
    ImportError
        If PyYAML is missing.
    OSError
        If the file is missing, or may not be read.
    """
    file = as_text("config", path)
    with naming(file):
        options = _mapping(_parsed(file), "a configuration")
        encoder = _mapping(options.get("encoder_conf"), "encoder_conf")
        main = _mapping(encoder.get("main_conf", {}), "encoder_conf.main_conf")
        causal = main.get("dynamic_chunk_training", False)
        if not isinstance(causal, bool):
            raise _wrong("dynamic_chunk_training must be true or false", _shown(causal))
        body = encoder.get("body_conf")
        if not isinstance(body, list) or not body:
            raise _wrong("encoder_conf.body_conf must be a transducer's blocks", _shown(body))
        blocks = []
        for index, block in enumerate(body):
            block = _mapping(block, f"body_conf[{index}]")
            count = 1 if block.get("num_blocks") is None else block["num_blocks"]
            if not is_integer(count) or count < 1:
                raise _wrong(f"body_conf[{index}].num_blocks must be positive", _shown(count))
            blocks.append((count, block))
    return Configuration(os.fspath(path), causal, blocks)


def _parsed(path: str) -> object:
    """Return what a YAML file holds: plain numbers, texts, lists and dictionaries."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs PyYAML; run `pip install pyyaml`") from error
    with open_regular(path) as (file, _):
        text = file.read(SIZE + 1)
    if len(text) > SIZE:
        raise _wrong(f"a configuration must have at most {SIZE} bytes", "more")
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
            if count >= EVENTS:
                raise _wrong(f"a configuration must have at most {EVENTS} values", "more")
            # PyYAML's time grows with the square of the length of a number to base 60.
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > SCALAR:
                raise _wrong(f"a text must have at most {SCALAR} characters", str(len(event.value)))
            # ESPnet writes none, and a few of them can stand for more than any memory holds.
            if isinstance(event, yaml.AliasEvent):
                raise _wrong("a configuration must not use aliases", "one")
            # PyYAML's time grows with the square of the depth.
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise _wrong(f"a configuration must be at most {DEPTH} levels deep", "more")
        return yaml.safe_load(text)
    except CheckpointError:
        raise
    except Exception as error:  # PyYAML's constructors fail in many ways on what is no such value
        raise _wrong("a configuration must be plain YAML", shown(str(error))) from error


def _mapping(value: object, name: str) -> dict[Any, Any]:
    """Return a value that must be a mapping."""
    if not isinstance(value, dict):
        raise _wrong(f"{name} must be a mapping", _shown(value))
    return value


def _wrong(expected: str, found: str) -> CheckpointError:
    """Return the error for a file that is no configuration, or another checkpoint's."""
    return CheckpointError(expected, found, REMEDY)


def _shown(value: object) -> str:
    """Show a value that YAML gave, unless it could be long."""
    if value is None or isinstance(value, str | bool | float):
        return shown(str(value))
    if is_integer(value) and value.bit_length() < 64:
        return str(value)
    return type(value).__name__
