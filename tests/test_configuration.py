"""ESPnet's configuration: what it states is used, what contradicts it is refused."""

import os
import pathlib
import sys

import numpy as np
import pytest

from edgeconv import CheckpointError, DepthwiseConvolution, convert, load_all
from edgeconv.configuration import DEPTH, EVENTS, SCALAR, SIZE, read_configuration

# ESPnet 202511 wrote this file: `python -m espnet2.bin.asr_transducer_train --dry_run true` on an
# encoder of two E-Branchformers of 31 and 15 taps, a Conformer of 7, and an E-Branchformer of 9.
WRITTEN = pathlib.Path(__file__).parent / "data" / "espnet-config.yaml"
FOUND = {
    "0.depthwise_conv_mod": 31,
    "0.conv_mod": 15,
    "1.depthwise_conv_mod": 31,
    "1.conv_mod": 15,
    "2.conv_mod.depthwise_conv": 7,
    "3.depthwise_conv_mod": 9,
    "3.conv_mod": 9,
}
REMEDY = "give the config.yaml that ESPnet wrote beside the checkpoint"
BLOCK = "{block_type: ebranchformer, conv_mod_kernel_size: 3}"


@pytest.fixture
def config(tmp_path):
    """Return where to write a configuration."""
    return tmp_path / "config.yaml"


@pytest.fixture
def source(tmp_path):
    """Return a function that writes a checkpoint with convolutions of given kernel sizes."""
    path = tmp_path / "source.npz"

    def write(kernel_sizes, parent="encoder.encoders.blocks."):
        state = {}
        for name, taps in kernel_sizes.items():
            for key, array in DepthwiseConvolution(2, taps).state_dict().items():
                # A Conformer has no `.conv` of its own.
                key = key.removeprefix("conv.") if name.endswith("depthwise_conv") else key
                state[f"{parent}{name}.{key}"] = array
        np.savez(path, **state)
        return path

    return write


def transducer(body=f"[{BLOCK}]", main="{}"):
    return f"encoder_conf: {{main_conf: {main}, body_conf: {body}}}"


@pytest.mark.parametrize(
    "parent", ["encoder.encoders.blocks.", "encoders.blocks.", "model.module.encoders.blocks."]
)
def test_what_espnet_writes(parent, source, tmp_path):
    path = source(FOUND, parent)
    assert len(convert(path, tmp_path / "all.npz", config=WRITTEN)) == len(FOUND)
    assert all(conv.causal for conv in load_all(tmp_path / "all.npz").values())
    convert(path, tmp_path / "all.npz", causal=True, config=str(WRITTEN))
    one = f"{parent}3.conv_mod"
    convert(path, tmp_path / "one.npz", prefixes=[one], config=WRITTEN)
    assert len(load_all(tmp_path / "one.npz")) == 1


@pytest.mark.parametrize(
    ("main", "causal"),
    [
        ("{}", False),
        ("{dynamic_chunk_training: false}", False),
        ("{dynamic_chunk_training: true}", True),
    ],
)
def test_causal(main, causal, source, config, tmp_path):
    path = source({"0.conv_mod": 3})
    config.write_text(transducer(main=main))
    convert(path, tmp_path / "w.npz", config=config)
    (conv,) = load_all(tmp_path / "w.npz").values()
    assert conv.causal is causal
    convert(path, tmp_path / "w.npz", config=config, causal=np.bool_(causal))
    with pytest.raises(CheckpointError) as caught:
        convert(path, tmp_path / "w.npz", config=config, causal=not causal)
    assert str(caught.value) == (
        f"{config}: `causal` must be {causal}, as dynamic_chunk_training in the configuration, "
        f"found `causal={not causal}`; leave `causal` out"
    )
    convert(path, tmp_path / "other.npz", causal=not causal)
    with pytest.raises(CheckpointError, match=f"as the file states, found `causal={causal}`"):
        convert(tmp_path / "other.npz", tmp_path / "w.npz", config=config)


def test_without_main_conf(config):
    config.write_text(f"encoder_conf: {{body_conf: [{BLOCK}]}}")
    assert read_configuration(config).causal is False


BLOCKS = "encoder.encoders.blocks"
MISFITS = {
    "own key": (
        FOUND | {"1.depthwise_conv_mod": 15},
        f"block 1 must have the depth_conv_kernel_size 15 of '{BLOCKS}.1.depthwise_conv_mod', "
        "found 31",
    ),
    "default key": (
        FOUND | {"3.depthwise_conv_mod": 31},
        f"block 3 must have the conv_mod_kernel_size 31 of '{BLOCKS}.3.depthwise_conv_mod', "
        "found 9",
    ),
    "gating unit": (
        FOUND | {"0.conv_mod": 31},
        f"block 0 must have the conv_mod_kernel_size 31 of '{BLOCKS}.0.conv_mod', found 15",
    ),
    "Conformer": (
        FOUND | {"2.conv_mod.depthwise_conv": 9},
        f"block 2 must have the conv_mod_kernel_size 9 of '{BLOCKS}.2.conv_mod.depthwise_conv', "
        "found 7",
    ),
    "block": (FOUND | {"4.conv_mod": 9}, "body_conf must describe block 4, found 4 blocks"),
    "type": (
        {"2.depthwise_conv_mod": 7},
        "block 2 must have a block_type with the convolution "
        f"'{BLOCKS}.2.depthwise_conv_mod', found 'conformer'",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_another_checkpoint(misfit, source, tmp_path):
    kernel_sizes, message = MISFITS[misfit]
    with pytest.raises(CheckpointError) as caught:
        convert(source(kernel_sizes), tmp_path / "w.npz", config=WRITTEN)
    assert str(caught.value) == f"{WRITTEN}: {message}; {REMEDY}"
    assert not (tmp_path / "w.npz").exists()


def test_a_convolution_elsewhere(source, tmp_path):
    message = "'decoder.0.conv_mod' must be in a block of the encoder, .*, found it elsewhere; choo"
    with pytest.raises(CheckpointError, match=message):
        convert(source({"0.conv_mod": 15}, "decoder."), tmp_path / "w.npz", config=WRITTEN)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("[{block_type: ebranchformer}]", "'None'"),
        ("[{block_type: ebranchformer, conv_mod_kernel_size: true}]", "'True'"),
        ("[{block_type: ebranchformer, conv_mod_kernel_size: [3]}]", "list"),
        (f"[{{block_type: ebranchformer, conv_mod_kernel_size: 0x{'f' * 9999}}}]", "int"),
    ],
)
def test_kernel_sizes_that_are_no_numbers(body, found, source, config, tmp_path):
    config.write_text(transducer(body))
    with pytest.raises(CheckpointError, match=f"the conv_mod_kernel_size 1 of .*, found {found};"):
        convert(source({"0.conv_mod": 1}), tmp_path / "w.npz", config=config)


def test_a_type_that_is_no_text(source, config, tmp_path):
    config.write_text(transducer(f"[{{block_type: 0x{'f' * 9999}, conv_mod_kernel_size: 3}}]"))
    with pytest.raises(CheckpointError, match=r"must have a block_type with .*, found int;"):
        convert(source({"0.conv_mod": 3}), tmp_path / "w.npz", config=config)


def test_a_number_of_blocks_takes_no_memory(source, config, tmp_path):
    config.write_text(transducer("[{block_type: branchformer, conv_mod_kernel_size: 5, "
                                 "num_blocks: 1000000000000}]"))  # fmt: skip
    convert(source({"999999999.conv_mod": 5}), tmp_path / "w.npz", config=config)
    with pytest.raises(CheckpointError, match="block 0 must have the conv_mod_kernel_size 3"):
        convert(source({"0.conv_mod": 3}), tmp_path / "w.npz", config=config)


WRONG = {
    "empty": ("", "a configuration must be a mapping, found 'None'"),
    "a list": ("[1]", "a configuration must be a mapping, found list"),
    "another task": ("lm_conf: {}", "encoder_conf must be a mapping, found 'None'"),
    "another encoder": (
        "encoder: conformer\nencoder_conf: {output_size: 256}",
        "encoder_conf.body_conf must be a transducer's blocks, found 'None'",
    ),
    "no blocks": (
        transducer("[]"),
        "encoder_conf.body_conf must be a transducer's blocks, found list",
    ),
    "a block": (transducer("[3]"), "body_conf[0] must be a mapping, found 3"),
    "num_blocks": (
        transducer(f"[{BLOCK}, {{num_blocks: 0}}]"),
        "body_conf[1].num_blocks must be positive, found 0",
    ),
    "num_blocks as text": (
        transducer("[{num_blocks: '2'}]"),
        "body_conf[0].num_blocks must be positive, found '2'",
    ),
    "main_conf": (
        transducer(main="null"),
        "encoder_conf.main_conf must be a mapping, found 'None'",
    ),
    "causal as text": (
        transducer(main="{dynamic_chunk_training: 'true'}"),
        "dynamic_chunk_training must be true or false, found 'true'",
    ),
    "long text": (
        transducer(main=f"{{dynamic_chunk_training: {'x' * 999}}}"),
        f"dynamic_chunk_training must be true or false, found '{'x' * 60}...{'x' * 60}'",
    ),
    "no YAML": ("a: b: c", "a configuration must be plain YAML, found 'mapping values are not al"),
    "two documents": ("a\n---\nb", "a configuration must be plain YAML, found 'expected a single"),
    "binary": ("\0", "a configuration must be plain YAML, found 'unacceptable character"),
    "a date": ("a: 2020-99-99", "a configuration must be plain YAML, found 'month must be in"),
    "code": (
        "!!python/object/apply:os.system [exit 1]",
        "a configuration must be plain YAML, found 'could not determine a constructor",
    ),
    "aliases": ("a: &a [1]\nb: [*a, *a]", "a configuration must not use aliases, found one"),
    "merged aliases": ("a: &a {x: 1}\nb: {<<: *a}", "a configuration must not use aliases"),
    "deep": ("[" * 100_000, f"a configuration must be at most {DEPTH} levels deep, found more"),
    "deep blocks": ("- " * 100_000, f"a configuration must be at most {DEPTH} levels deep"),
    "many values": (
        "[" + "1," * EVENTS + "]",
        f"a configuration must have at most {EVENTS} values, found more",
    ),
    "a long number": (
        "1" + ":1" * SCALAR,
        f"a text must have at most {SCALAR} characters, found 32",
    ),
    "long": ("a" * (SIZE + 1), f"a configuration must have at most {SIZE} bytes, found more"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_no_configuration_of_a_transducer(wrong, config, source, tmp_path):
    text, message = WRONG[wrong]
    config.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        convert(source({"0.conv_mod": 3}), tmp_path / "w.npz", config=config)
    assert str(caught.value).startswith(f"{config}: {message}")
    assert str(caught.value).endswith(f"; {REMEDY}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(config, source, tmp_path):
    path = source({"0.conv_mod": 3})
    with pytest.raises(FileNotFoundError):
        convert(path, tmp_path / "w.npz", config=config)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .* a file, found a directory; give"):
        convert(path, tmp_path / "w.npz", config=tmp_path)
    os.mkfifo(config)
    with pytest.raises(CheckpointError, match=f"{config}: .* a file, found a pipe; give the path"):
        convert(path, tmp_path / "w.npz", config=config)
    with pytest.raises(ValueError, match=r"^`config` must be a path without null characters, got"):
        convert(path, tmp_path / "w.npz", config="a\0b")


def test_a_configuration_with_many_tokens(config):
    tokens = [chr(0x4E00 + index) for index in range(20_000)]
    config.write_text("\n- ".join(["token_list:", *tokens]) + "\n" + transducer())
    assert read_configuration(config).causal is False


def test_without_pyyaml(config, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(
        ImportError, match=r"^.*: reading it needs PyYAML; run `pip install pyyaml`$"
    ):
        convert(source({"0.conv_mod": 3}), tmp_path / "w.npz", config=config)


def test_a_configuration_is_a_path(source, tmp_path):
    with pytest.raises(TypeError, match="`config` must be a str or path-like, got int"):
        convert(source({"0.conv_mod": 3}), tmp_path / "w.npz", config=3)
