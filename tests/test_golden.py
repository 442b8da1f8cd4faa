"""Outputs of the definition, computed once and compared by equality on every processor."""

import pathlib

import numpy as np
import pytest
from reference import same_bits

from edgeconv import DepthwiseConvolution

DATA = pathlib.Path(__file__).parent / "data"

with np.load(DATA / "golden.npz") as file:
    GOLDEN = dict(file)
MODULES = sorted({name.split("/")[0] for name in GOLDEN})


@pytest.mark.parametrize("kind", ["ordinary", "special"])
@pytest.mark.parametrize("module", MODULES)
def test_every_bit_is_the_golden_one(module, kind):
    state = {f"conv.{name}": GOLDEN[f"{module}/{name}"] for name in ("weight", "bias")}
    conv = DepthwiseConvolution.from_state_dict(state, causal=bool(GOLDEN[f"{module}/causal"]))
    x, y = (GOLDEN[f"{module}/{kind}/{name}"] for name in "xy")
    assert same_bits(conv(x[None])[0][0], y)
    stream = conv.stream()
    outputs = [output[None] for frame in x if (output := stream.step(frame)) is not None]
    assert same_bits(np.concatenate([*outputs, stream.flush()]), y)


def test_the_golden_signals_hold_what_is_hard():
    special = np.concatenate([GOLDEN[f"{module}/special/x"].ravel() for module in MODULES])
    assert np.isnan(special).any()
    assert np.isinf(special).any()
    assert ((special != 0) & (abs(special) < np.finfo(np.float32).tiny)).any()


def test_a_saved_state_goes_on_with_the_golden_bits():
    state = {f"conv.{name}": GOLDEN[f"centred_15/{name}"] for name in ("weight", "bias")}
    stream = DepthwiseConvolution.from_state_dict(state, causal=False).stream()
    x, y = (GOLDEN[f"centred_15/special/{name}"] for name in "xy")
    with np.load(DATA / "state.npz") as saved:
        stream.restore(saved)
        rest = np.concatenate([stream.process(x[17:]), stream.flush()])
        assert same_bits(rest, y[17 - stream.latency :])
        stream.process(x[:17])
        for name, array in stream.snapshot().items():
            np.testing.assert_array_equal(array, saved[name])
