"""How far are the outputs from the exact sums? Prints the README's accuracy table.

    python benchmarks/accuracy.py

Signals and weights are standard normal, weights divided by sqrt(K). The exact sums are computed
in float64, whose error is smaller by nine decimal digits.
"""

import numpy as np

from edgeconv import DepthwiseConvolution

ROUNDING = 2.0**-24
CHANNELS, FRAMES = 512, 2000

print("| taps | largest error | in units of the last place of max abs(y) | of the bound |")
print("|---|---|---|---|")
for kernel_size in (7, 15, 31, 63):
    rng = np.random.default_rng(kernel_size)
    weight = rng.standard_normal((CHANNELS, 1, kernel_size), np.float32) / np.sqrt(kernel_size)
    state = {
        "conv.weight": weight.astype(np.float32),
        "conv.bias": rng.standard_normal(CHANNELS, np.float32),
    }
    conv = DepthwiseConvolution.from_state_dict(state, causal=True)
    x = rng.standard_normal((FRAMES, CHANNELS), np.float32)
    y = conv(x[None])[0][0]
    heard = np.pad(x.astype(np.float64), ((kernel_size - 1, 0), (0, 0)))
    taps = conv.weight[:, 0].astype(np.float64)
    exact = conv.bias + sum(heard[k : k + FRAMES] * taps[:, k] for k in range(kernel_size))
    size = abs(conv.bias) + sum(abs(heard[k : k + FRAMES] * taps[:, k]) for k in range(kernel_size))
    gamma = (kernel_size + 1) * ROUNDING / (1 - (kernel_size + 1) * ROUNDING)
    error = abs(y - exact)
    ulp = np.spacing(abs(y).max())
    relative = (error / (gamma * size + kernel_size * 2.0**-150)).max()
    print(f"| {kernel_size} | {error.max():.1e} | {error.max() / ulp:.2f} | {relative:.0%} |")
