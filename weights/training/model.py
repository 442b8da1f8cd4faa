"""The recogniser in ESPnet's own classes: its configuration, construction and files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml

sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # imported, and not used here

from espnet2.asr.frontend.default import DefaultFrontend  # noqa: E402, F401
from espnet2.asr_transducer.espnet_transducer_model import (  # noqa: E402
    ESPnetASRTransducerModel,
)
from espnet2.tasks.asr_transducer import ASRTransducerTask  # noqa: E402
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump  # noqa: E402

HIDDEN = 128
BODY = [
    {
        "block_type": "ebranchformer",
        "hidden_size": HIDDEN,
        "linear_size": 256,
        "heads": 4,
        "conv_mod_kernel_size": 11,
        "num_blocks": 3,
    }
]


def configuration(words: list[str], statistics: str) -> dict[str, Any]:
    """Return the fields of ESPnet's config.yaml, its defaults included.

    Parameters
    ----------
    words : list of str
        The vocabulary; each word is a token.
    statistics : str
        File with the features' count, sum and sum of squares, as `GlobalMVN` reads it.
    """
    return ASRTransducerTask.get_default_config() | {
        "token_list": ["<blank>", "<unk>", *words, "<sos/eos>"],
        "token_type": "word",
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": statistics},
        "encoder_conf": {
            "main_conf": {
                "dynamic_chunk_training": True,
                "short_chunk_size": 25,
                "num_left_chunks": 4,
            },
            "input_conf": {"conv_size": 16, "subsampling_factor": 4},
            "body_conf": [dict(block) for block in BODY],
        },
        "decoder": "stateless",
        "decoder_conf": {"embed_size": HIDDEN, "embed_dropout_rate": 0.1},
        "joint_network_conf": {"joint_space_size": HIDDEN},
        "model_conf": {"auxiliary_ctc_weight": 0.3},
        "optim": "adamw",
        "optim_conf": {"lr": 1.2e-3, "weight_decay": 0.02},
    }


def build(fields: dict[str, Any]) -> ESPnetASRTransducerModel:
    """Build the model as ESPnet does, which completes `fields`."""
    arguments = argparse.Namespace(**fields)
    model = ASRTransducerTask.build_model(arguments)
    fields.update(vars(arguments))
    return model


def save_statistics(features: torch.Tensor, path: Path) -> None:
    """Write what `GlobalMVN` normalises by, from features (..., F)."""
    flat = features.flatten(0, -2).double()
    sums = {"sum": flat.sum(0), "sum_square": flat.square().sum(0)}
    np.savez(path, count=np.float32(len(flat)), **{k: v.float().numpy() for k, v in sums.items()})


def save(state: dict[str, torch.Tensor], fields: dict[str, Any], stem: Path) -> None:
    """Write `stem.pth` and `stem.yaml` as ESPnet's trainer writes them."""
    torch.save({key: value.contiguous() for key, value in state.items()}, stem.with_suffix(".pth"))
    with stem.with_suffix(".yaml").open("w", encoding="utf-8") as file:
        yaml_no_alias_safe_dump(fields, file, indent=4, sort_keys=False)


def load(stem: Path) -> ESPnetASRTransducerModel:
    """Build the model that `stem.yaml` describes, with the weights of `stem.pth`.

    Its statistics are looked for beside it.
    """
    fields = yaml.safe_load(stem.with_suffix(".yaml").read_text(encoding="utf-8"))
    statistics = Path(fields["normalize_conf"]["stats_file"])
    fields["normalize_conf"]["stats_file"] = str(stem.parent / statistics.name)
    model = build(fields)
    model.load_state_dict(torch.load(stem.with_suffix(".pth"), weights_only=True))
    return model.eval()
