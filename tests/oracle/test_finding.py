"""The remedy for each kind of convolution that PyTorch computes anew is the one that works."""

import re
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, prune

from edgeconv import DepthwiseConvolution, find_convolutions
from edgeconv.state_dict import unusable


def convolution(channels=4, taps=3, **options):
    return torch.nn.Conv1d(channels, channels, taps, groups=channels, **options)


def old(reparametrize):
    def apply(module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return reparametrize(module)

    return apply


KINDS = {
    "pruned": lambda module: prune.random_unstructured(module, "weight", 4),
    "pruned bias": lambda module: prune.random_unstructured(module, "bias", 2),
    "both pruned": lambda module: [prune.identity(module, n) for n in ("weight", "bias")][-1],
    "weight norm": old(torch.nn.utils.weight_norm),
    "spectral norm": old(torch.nn.utils.spectral_norm),
    "new weight norm": parametrizations.weight_norm,
    "new spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_pytorch_computes_anew_is_left_out(kind):
    module = KINDS[kind](convolution())
    assert find_convolutions(module.state_dict()) == []
    (reason,) = unusable(module.state_dict()).values()
    for remedy in re.findall("`(.*?)`", reason):
        assert callable(eval(remedy, {"torch": torch}))


@pytest.mark.parametrize("module", [convolution(bias=False), convolution(taps=8), convolution(1)])
def test_plain_convolutions_are_found(module):
    ((prefix, channels, taps),) = find_convolutions(module.state_dict())
    assert (prefix, channels, (taps,)) == ("", module.out_channels, module.kernel_size)
    conv = DepthwiseConvolution.from_state_dict(module.half().state_dict(), causal=True)
    assert conv.weight.tolist() == module.weight.tolist()


def test_what_no_state_dict_tells():
    assert find_convolutions(torch.nn.Conv1d(1, 64, 25).state_dict()) == [("", 64, 25)]
    strided = convolution(stride=2, dilation=3)
    assert len(find_convolutions(strided.state_dict())) == 1


def test_frames_of_bfloat16_are_told_how_to_become_float32():
    conv = DepthwiseConvolution(3, 5, causal=True)
    with pytest.raises(TypeError, match=r"bfloat16; pass `x.astype\(np.float32\)`"):
        conv(np.zeros((1, 9, 6), ml_dtypes.bfloat16))
