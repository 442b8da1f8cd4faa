"""Activation functions, by ESPnet's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeconv.layers.layer import Array

# Name: the parameters that it takes, as ESPnet's configuration calls them, and their defaults.
_PARAMETERS: dict[str, dict[str, float]] = {
    "identity": {},
    "relu": {},
    "swish": {"swish_beta": 1.0},
    "tanh": {},
    "hardtanh": {"hardtanh_min_val": -1.0, "hardtanh_max_val": 1.0},
    "leaky_relu": {"leakyrelu_neg_slope": 0.01},
    "gelu": {},
    "sigmoid": {},
    "exp": {},
    "log": {},
}
ACTIVATIONS = tuple(_PARAMETERS)[:6]  # what a configuration may ask for


class Activation:
    """A function of every number of an array, in place."""

    def __init__(self, kind: str, parameters: Mapping[str, Any] | None = None) -> None:
        from edgeconv.kernels import pointwise

        if kind not in _PARAMETERS:
            raise ValueError(f"`kind` must be one of {', '.join(_PARAMETERS)}, got {kind!r}")
        values = [float((parameters or {}).get(name, v)) for name, v in _PARAMETERS[kind].items()]
        if kind == "swish":
            values = [max(1.0, *values)]
        low, high = (np.float32(v) for v in [*values, 0.0, 0.0][:2])
        # What `pointwise.apply` takes.
        self.arguments = pointwise.ACTIVATIONS.index(kind), low, high
        self._kernel = pointwise.kernel(pointwise.activate)

    def __call__(self, x: Array) -> Array:
        """Apply it to x (T, D); return x."""
        self._kernel(x, *self.arguments)
        return x
