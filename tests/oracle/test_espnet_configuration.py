"""Configurations that ESPnet writes, beside the checkpoints of the encoders that it builds."""

from pathlib import Path

import pytest
import torch
import yaml
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.encoder.modules.convolution import DepthwiseConvolution
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

import edgeconv

WRITTEN = Path(__file__).parents[1] / "data" / "espnet-config.yaml"
SHAPE = {"hidden_size": 8, "linear_size": 16, "heads": 2}
BODIES = [
    [
        {"block_type": "ebranchformer", "conv_mod_kernel_size": 3, **SHAPE, "num_blocks": 2},
        {"block_type": "branchformer", "conv_mod_kernel_size": 5, **SHAPE},
        {"block_type": "conformer", "conv_mod_kernel_size": 7, **SHAPE, "num_blocks": None},
    ],
    [
        {"block_type": "conformer", "conv_mod_kernel_size": 31, **SHAPE, "num_blocks": 11},
        {
            "block_type": "ebranchformer",
            "conv_mod_kernel_size": 9,
            "depth_conv_kernel_size": 15,
            **SHAPE,
        },
    ],
]
MAINS = [{"dynamic_chunk_training": True}, {"dynamic_chunk_training": False}, {}]


def trained(directory, options):
    """Build the encoder and write its files as ESPnet does: the configuration comes last."""
    encoder = Encoder(80, **options["encoder_conf"])
    directory.mkdir()
    state = {f"encoder.{name}": values for name, values in encoder.state_dict().items()}
    torch.save(state, directory / "valid.loss.ave.pth")
    with (directory / "config.yaml").open("w", encoding="utf-8") as file:
        yaml_no_alias_safe_dump(options, file, indent=4, sort_keys=False)
    return encoder


def check(encoder, directory):
    """Convert every convolution; each must have the kernel size and causality of ESPnet's."""
    target = directory / "model.npz"
    config = directory / "config.yaml"
    edgeconv.convert(directory / "valid.loss.ave.pth", target, config=config)
    convs = edgeconv.load_all(target)
    names = [n for n, m in encoder.named_modules() if isinstance(m, DepthwiseConvolution)]
    assert {f"encoder.{name}" for name in names} <= set(convs)
    for prefix, conv in convs.items():
        # A Conformer's `Conv1d` lies in the module that knows whether it is causal.
        name = prefix.removeprefix("encoder.").removesuffix(".depthwise_conv")
        module = encoder.get_submodule(name)
        assert (conv.kernel_size, conv.lorder) == (module.kernel_size, module.lorder)
    edgeconv.verify(target)


def test_a_whole_configuration(tmp_path):
    """`asr_transducer_train` wrote this one; written again it says the same."""
    options = yaml.safe_load(WRITTEN.read_text(encoding="utf-8"))
    check(trained(tmp_path / "exp", options), tmp_path / "exp")
    assert (tmp_path / "exp" / "config.yaml").read_text(encoding="utf-8") == WRITTEN.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("main", MAINS, ids=str)
@pytest.mark.parametrize("body", BODIES, ids=["small", "deep"])
def test_encoders(body, main, tmp_path):
    options = {"encoder_conf": {"main_conf": main, "body_conf": body}, "token_list": ["<blank>"]}
    check(trained(tmp_path / "exp", options), tmp_path / "exp")
