"""Make golden.npz: signals, and the definition's outputs with the C library's fmaf; state.npz.

Run it where edgeconv is installed: python tests/data/make_golden.py
"""

import pathlib
import sys

import numpy as np

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here.parent))

from reference import convolve  # noqa: E402  # found through the line above

import edgeconv  # noqa: E402  # sorted after the line above

MODULES = {  # name: channels, taps, causal, frames
    "causal_31": (36, 31, True, 64),
    "causal_7_narrow": (6, 7, True, 40),
    "centred_15": (20, 15, False, 40),
    "centred_31": (32, 31, False, 33),
    "causal_1": (2, 1, True, 9),
}
SPECIAL = np.float32([0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan])


def integers(n, seed):
    """Return n numbers below 2**32 from a linear congruential generator."""
    state = (seed + np.arange(n, dtype=np.uint64)) * np.uint64(2654435761) % 2**32
    for _ in range(4):
        state = (state * np.uint64(1664525) + np.uint64(1013904223)) % 2**32
        state ^= state >> np.uint64(13)
    return state


def values(shape, seed):
    """Return float32 between -4 and 4 with 20 significant bits, exact on every machine."""
    drawn = integers(int(np.prod(shape)), seed)
    return ((drawn >> np.uint64(12)).astype(np.float32) / 2**17 - 4).reshape(shape)


arrays = {}
for seed, (name, (channels, kernel_size, causal, n_frames)) in enumerate(MODULES.items()):
    weight = values((channels, 1, kernel_size), 1000 * seed + 1)
    bias = values((channels,), 1000 * seed + 2)
    for kind in ("ordinary", "special"):
        x = values((n_frames, channels), 1000 * seed + 3)
        if kind == "special":
            at = integers(x.size, 1000 * seed + 4).reshape(x.shape) % 40 == 0
            x[at] = SPECIAL[integers(int(at.sum()), 1000 * seed + 5) % len(SPECIAL)]
        arrays[f"{name}/{kind}/x"] = x
        arrays[f"{name}/{kind}/y"] = convolve(x, weight, bias, causal)
    arrays |= {f"{name}/weight": weight, f"{name}/bias": bias, f"{name}/causal": np.bool_(causal)}
np.savez_compressed(here / "golden.npz", **arrays)

# The state of a stream after 17 frames: others take it up on other processors.
name = "centred_15"
weights = {f"conv.{key}": arrays[f"{name}/{key}"] for key in ("weight", "bias")}
stream = edgeconv.DepthwiseConvolution.from_state_dict(weights, causal=False).stream()
stream.process(arrays[f"{name}/special/x"][:17])
np.savez(here / "state.npz", **stream.snapshot())
