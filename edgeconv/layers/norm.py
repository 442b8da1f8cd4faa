"""Normalisation of a frame by its own mean and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeconv.layers.layer import Array, Layer
from edgeconv.layers.parameters import tensor

# ESPnet's, where the configuration is silent; that of `basic_norm` is in the checkpoint.
_EPS = {"layer_norm": 1e-12, "basic_norm": 0.0, "rms_norm": 1e-5, "scale_norm": 1e-5}
NORMS = tuple(_EPS)


class Norm(Layer):
    """
    The four norms of ESPnet's transducers, over the D numbers of a frame.

    * ``layer_norm``: ``(x - mean) / sqrt(variance + eps) * weight + bias``
    * ``basic_norm``: ``x / sqrt(mean of x**2 + exp(eps))``, with `eps` from the checkpoint
    * ``rms_norm``: ``x / (sqrt(mean of x**2) + eps) * scale``; the mean may be of the first
      ``int(D * partial)`` numbers
    * ``scale_norm``: ``x * scale / max(sqrt(sum of x**2), eps)``

    Parameters
    ----------
    state : mapping of str to array
        With those parameters that `kind` has.
    prefix : str
        The layer's name.
    kind : str
        One of the four names above.
    size : int
        Width D of a frame, which not every kind's parameters tell.
    eps, partial : float, optional
        ESPnet's defaults: 1e-12 for ``layer_norm``, else 1e-5; all numbers.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        prefix: str,
        kind: str = "layer_norm",
        *,
        size: int,
        eps: float | None = None,
        partial: float | None = None,
    ) -> None:
        from edgeconv.kernels import pointwise

        if kind not in NORMS:
            raise ValueError(f"`kind` must be one of {', '.join(NORMS)}, got {kind!r}")
        affine = np.stack([np.ones(size, np.float32), np.zeros(size, np.float32)])
        eps = _EPS[kind] if eps is None else eps
        if kind == "layer_norm":
            affine[0] = tensor(state, f"{prefix}.weight", (size,))
            affine[1] = tensor(state, f"{prefix}.bias", (size,))
        elif kind == "basic_norm":
            from edgeconv.layers.activation import Activation

            logarithm = tensor(state, f"{prefix}.eps", ()).reshape(1, 1)
            eps = float(Activation("exp")(logarithm)[0, 0])
        else:
            affine[0] = tensor(state, f"{prefix}.scale", (size,) if kind == "rms_norm" else ())
        is_partial = kind == "rms_norm" and partial is not None and 0 < partial < 1
        n = int(size * (partial or 0)) if is_partial else size
        self.input_size = self.output_size = size
        self.affine = affine
        # What `pointwise.norm` takes.
        self.arguments = pointwise.NORMS.index(kind), np.float32(eps), n
        self._kernel = pointwise.kernel(pointwise.normalise)

    def _run(self, x: Array, memory: dict[str, Any]) -> Array:
        """Return the norms of the last D columns of x."""
        y = np.empty((len(x), self.output_size), np.float32)
        self._kernel(x, y, self.affine, *self.arguments)
        return y
