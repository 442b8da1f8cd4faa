"""The ways to open a file, each as a mapping of names to arrays."""

import numpy as np

import edgeconv
from edgeconv.configuration import read_configuration


def modules(path):
    """Load every module of a converted checkpoint."""
    found = {}
    for prefix, conv in edgeconv.load_all(path).items():
        found |= {f"{prefix}.weight": conv.weight, f"{prefix}.bias": conv.bias}
        found[f"{prefix}.causal"] = np.array(conv.causal)
    return found


def states(path):
    """Load the saved states of streams."""
    found = edgeconv.load_state(path)
    return {
        f"{prefix}.{field}": np.array(getattr(state, field))
        for prefix, state in (found.items() if isinstance(found, dict) else [("", found)])
        for field in state.__dataclass_fields__
    }


READERS = {
    "tensors": lambda path: dict(edgeconv.read_checkpoint(path)),
    "modules": modules,
    "states": states,
    "configuration": lambda path: {"causal": np.array(read_configuration(path).causal)},
}
