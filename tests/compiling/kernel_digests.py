"""Print a digest of what every kernel of an encoder computes; `--other-lanes` sets the other width.

It runs in a process of its own, with the vector width or the processor's features of another one.
"""

import hashlib
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
from numba import config

if "--other-lanes" in sys.argv:
    features = config.CPU_FEATURES  # for which Numba compiles all the same
    is_wide = llvm.get_host_cpu_features().get("avx512f")
    config.CPU_FEATURES = "" if is_wide else "+avx512f"
    import edgeconv.kernels.vectors  # noqa: F401 - which reads it

    config.CPU_FEATURES = features

from edgeconv.kernels import attention, dense, pointwise
from edgeconv.kernels.vectors import BLOCK, LANES


def outputs():
    """Yield arrays that every kernel wrote, from inputs that are the same everywhere."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    one = np.float32(1)
    wide = rng.integers(0, 2**32, (20, 1000), np.uint32).view(np.float32)
    for kind in range(len(pointwise.ACTIVATIONS)):
        for x in (wide.copy(), 5 * normal(30, 77)):
            pointwise.kernel(pointwise.activate)(x, kind, one, 2 * one)
            yield x
    x, y = normal(9, 118), np.empty((9, 59), np.float32)
    pointwise.kernel(pointwise.gate)(x, y)
    yield y.copy()
    affine = normal(2, 59)
    for kind in range(len(pointwise.NORMS)):
        pointwise.kernel(pointwise.normalise)(x, y, affine, kind, np.float32(1e-5), 59)
        yield y.copy()
    logarithms = np.empty_like(x)
    pointwise.kernel(pointwise.log_softmax_rows)(x, logarithms)
    yield logarithms
    if "--pointwise" in sys.argv:
        return
    nothing, steps = np.empty((0, 0), np.float32), np.zeros(1, dense.STEPS)
    steps["taps"] = steps["stride"] = 1
    alone = nothing, nothing, steps
    for n_frames, n_inputs, n_outputs in ((1, 70, 150), (13, 33, 70), (7, 64, 5)):
        x, bias = normal(1, n_frames, n_inputs), normal(n_outputs)
        weight = normal(n_outputs, n_inputs)
        y = np.empty((1, n_frames, n_outputs), np.float32)
        dense.kernel(False)(x, y, dense.pack(weight, bias), *alone)
        yield y.copy()
        integers = rng.integers(-127, 128, weight.shape, np.int8)
        packed = dense.pack(integers, bias, normal(n_outputs))
        dense.kernel(True)(x, y, packed, *alone)
        yield y
    values = np.zeros((60, 2, -(-20 // BLOCK) * BLOCK), np.float32)
    values[..., :20] = normal(60, 2, 20)
    keys, positions = normal(2, 20, 100), normal(2, 20, 150)
    projected, biases = normal(13, 120), normal(2, 40)
    attention.kernel()(projected, biases, keys, values, positions, np.array([3, 41, 60]))
    yield projected[:, :40]


if __name__ == "__main__":
    digest = hashlib.sha256()
    for array in outputs():
        digest.update(np.where(np.isnan(array), np.float32(0), array).astype("<f4").tobytes())
    if "--pointwise" not in sys.argv:
        sys.path.append(str(Path(__file__).parents[1]))
        import test_encoder

        digest.update(repr(test_encoder.digests()).encode())
    print(LANES, digest.hexdigest())
