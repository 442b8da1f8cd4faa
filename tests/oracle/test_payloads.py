"""Payloads that need PyTorch are live too, and good files mean to PyTorch what they mean here."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from attacks.catalogue import different
from attacks.compare import flat
from attacks.every import ATTACKS
from attacks.unsafe import __file__ as unsafe

LIVE = [attack for attack in ATTACKS if "torch" in attack.live]
GOOD = [
    attack
    for attack in ATTACKS
    if attack.group == "unusual" and "npz" not in attack.name and "safetensors" not in attack.name
]
# PyTorch imports every class that a file names.
MISSING = ("a checkpoint of Lightning",)


@pytest.mark.parametrize("attack", LIVE, ids=[attack.name for attack in LIVE])
def test_the_payload_is_live(attack, tmp_path):
    path, marker = tmp_path / "file", tmp_path / "marker"
    attack.write(path, str(marker))
    subprocess.run(
        [sys.executable, unsafe],
        input=json.dumps([("torch", str(path))]).encode(),
        timeout=300,
        check=True,
        capture_output=True,
    )
    assert marker.exists()


@pytest.mark.parametrize("attack", GOOD, ids=[attack.name for attack in GOOD])
def test_pytorch_reads_the_same(attack, tmp_path):
    path = tmp_path / "file"
    attack.write(path, "")
    if attack.name in MISSING:
        with pytest.raises(ModuleNotFoundError):
            torch.load(path, weights_only=False)
        return
    found = flat(torch.load(path, weights_only=False))
    expected = {name: np.asarray(array) for name, array in attack.outcome.items()}
    assert different(found, expected) is None
