"""What the laws draw: modules, signals, and ways to cut them."""

import numpy as np
from hypothesis import strategies as st

from edgeconv import DepthwiseConvolution

# Vectors have 8 or 16 channels: below one, exactly one, several, and no multiple.
sizes = st.sampled_from([1, 2, 3, 4, 5, 8, 9, 12, 16, 20, 33, 40])
kernel_sizes = st.sampled_from([1, 3, 5, 7, 9, 15, 31])
seeds = st.integers(0, 2**32 - 1)
either = st.booleans()
few = st.integers(1, 3)

SPECIAL = np.float32(
    [0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 1, -1]
)


@st.composite
def modules(draw, causal=either, sizes=sizes, kernel_sizes=kernel_sizes):
    return DepthwiseConvolution(
        draw(sizes), draw(kernel_sizes), causal=draw(causal), rng=draw(seeds)
    )


@st.composite
def lengths(draw, kernel_size, at_most=200):
    """Lengths around every boundary of a module's window and of the ring's passes."""
    around = [0, 1, 2, kernel_size - 2, kernel_size - 1, kernel_size, kernel_size + 1, 7, 8, 24, 25]
    length = draw(st.sampled_from([n for n in around if n >= 0]) | st.integers(0, at_most))
    return min(length, at_most)


@st.composite
def arrays(draw, shape, special=either):
    """Normally distributed float32; sometimes with subnormals, infinities, NaN and huge values."""
    rng = np.random.default_rng(draw(seeds))
    x = rng.standard_normal(shape, np.float32)
    if draw(special):
        at = rng.random(shape) < draw(st.sampled_from([0.01, 0.3]))
        x[at] = rng.choice(SPECIAL, at.sum())
    return x


@st.composite
def signals(draw, conv, batch_sizes=few, special=either, at_most=200):
    shape = (draw(batch_sizes), draw(lengths(conv.kernel_size, at_most)), conv.channels)
    return draw(arrays(shape, special))


@st.composite
def partitions(draw, n_frames):
    """Numbers of frames that add up to `n_frames`, zeros among them."""
    cuts = sorted(draw(st.lists(st.integers(0, n_frames), max_size=12)))
    return np.diff([0, *cuts, n_frames]).tolist()


def split(x, partition):
    """Cut a signal (..., T, C) into chunks."""
    return np.split(x, np.cumsum(partition)[:-1], axis=-2)
