"""The ways to open a file, each as a mapping of names to arrays."""

import numpy as np

from edgeconv.checkpoint import read_checkpoint
from edgeconv.checkpoint.converted import causality
from edgeconv.checkpoint.tensors import weight_and_bias
from edgeconv.configuration import read_configuration
from edgeconv.state import load_state


def tensors(path):
    """Read all tensors, and see that damage is not why others are not listed."""
    checkpoint = read_checkpoint(path)
    for name in checkpoint.unlisted:
        checkpoint.verify(name)
    return dict(checkpoint)


def modules(path):
    """Read the modules of a converted checkpoint, without Numba."""
    checkpoint, found = read_checkpoint(path), {}
    for prefix, causal in causality(checkpoint).items():
        weight, bias = weight_and_bias(checkpoint, prefix)
        found |= {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
        found[f"{prefix}.causal"] = np.array(causal)
    return found


def states(path):
    """Load the saved states of streams."""
    found = load_state(path)
    return {
        f"{prefix}.{field}": np.array(getattr(state, field))
        for prefix, state in (found.items() if isinstance(found, dict) else [("", found)])
        for field in state.__dataclass_fields__
        if getattr(state, field) is not None
    }


READERS = {
    "tensors": tensors,
    "modules": modules,
    "states": states,
    "configuration": lambda path: {"causal": np.array(read_configuration(path).causal)},
}
