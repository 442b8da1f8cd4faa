"""Converted checkpoints, saved states and configurations that contradict themselves."""

import io
import json

import numpy as np

from attacks.catalogue import loads, refused
from attacks.payloads import python

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
BIAS = np.float32([1, 2, 3, 4])
MODULE = {"causal": True, "channels": 4, "kernel_size": 3}
MODULES = {"m.weight": WEIGHT, "m.bias": BIAS, "m.causal": np.array(True)}
STATES = "must state causal, channels and kernel_size of 'm', and may state its digest"

FRAMES = np.ones((1, 4, 2), np.float32)
GEOMETRY = {**MODULE, "batch_size": None, "weights": "0" * 64}
STREAM = "'' must have the geometry of a stream"


def npz(header, **arrays):
    target = io.BytesIO()
    text = header if isinstance(header, str) else json.dumps(header)
    np.savez(target, edgeconv=np.array(text), **arrays)
    return target.getvalue()


def converted(module=None, weight=WEIGHT, bias=BIAS, **header):
    modules = {"m": MODULE if module is None else module}
    header = {"format": "edgeconv", "version": 1, "modules": modules, "source": None, **header}
    return npz(header, **{"m.conv.weight": weight, "m.conv.bias": bias})


def state(geometry=None, frames=FRAMES, frames_in=(5,), dtype=np.int64, **header):
    states = {"": GEOMETRY if geometry is None else geometry}
    header = {"format": "edgeconv state", "version": 1, "single": True, "states": states, **header}
    return npz(header, frames=frames, frames_in=np.array(frames_in, dtype))


def of_module(match):
    return refused(match, read="modules")


def of_state(match):
    return refused(match, read="states")


@loads(MODULES, read="modules")
def a_module_as_it_should_be():
    return converted()


@of_module("must be of version 1 or older, found version 2; upgrade edgeconv")
def a_version_that_is_newer():
    return converted(version=2)


@of_module("must state its format and version, found others")
def a_version_that_is_a_Boolean():
    return converted(version=True)


@of_module("must state its format and version")
def a_version_that_is_infinite():
    text = json.dumps({"format": "edgeconv", "version": 5, "modules": {"m": MODULE}})
    return npz(text.replace("5", "1e999"), **{"m.conv.weight": WEIGHT, "m.conv.bias": BIAS})


@of_module("must state its format and version")
def another_format():
    return converted(format="edgeconv 2")


@of_module("must name the modules")
def a_module_that_is_not_there():
    return converted(modules={"m": MODULE, "n": MODULE})


@of_module("must name the modules")
def a_module_that_is_not_named():
    return converted(modules={})


@of_module("must name the modules")
def modules_that_are_a_list():
    return converted(modules=[MODULE])


@of_module(STATES)
def a_module_that_is_a_text():
    return converted("causal")


@of_module(STATES)
def a_causality_that_is_a_number():
    return converted({**MODULE, "causal": 1})


@of_module(STATES)
def a_causality_that_is_a_text():
    return converted({**MODULE, "causal": "false"})


@of_module(STATES)
def a_causality_that_is_missing():
    return converted({"channels": 4, "kernel_size": 3})


@of_module(STATES)
def other_channels_than_the_weight():
    return converted({**MODULE, "channels": 2})


@of_module(STATES)
def channels_that_are_a_float():
    return converted({**MODULE, "channels": 4.0})


@of_module(STATES)
def a_kernel_size_that_is_a_Boolean():
    return converted({**MODULE, "kernel_size": True}, weight=WEIGHT[:, :, :1])


@of_module(STATES)
def a_field_too_many():
    return converted({**MODULE, "dilation": 2})


@of_module(STATES)
def a_digest_that_is_short():
    return converted({**MODULE, "digest": "0" * 63})


@of_module("must state its source by name and sha256, or null, found '5'")
def a_source_that_is_a_number():
    return converted(source=5)


@of_module("names in a JSON object must differ")
def a_causality_that_is_stated_twice():
    text = '{"format": "edgeconv", "version": 1, "modules": {"m": {"causal": true, '
    text += '"channels": 4, "kernel_size": 3, "causal": false}}}'
    return npz(text, **{"m.conv.weight": WEIGHT, "m.conv.bias": BIAS})


@of_module("must be a JSON object in UTF-8, found other bytes")
def a_header_that_is_no_JSON():
    return npz(python("/tmp"), **{"m.conv.weight": WEIGHT, "m.conv.bias": BIAS})


@of_module("must be a JSON object in UTF-8, found other bytes")
def a_header_a_hundred_thousand_levels_deep():
    return npz("[" * 100_000, **{"m.conv.weight": WEIGHT, "m.conv.bias": BIAS})


@of_module("'m.conv.bias' must have the shape \\(4,\\) of its weight's channels, found \\(3,\\)")
def a_bias_of_other_channels():
    return converted(bias=BIAS[:3])


@of_module("must name the modules")
def an_odd_number_of_channels():
    return converted(weight=WEIGHT[:3], bias=BIAS[:3])


@of_module("'m.conv.weight' must fit float32")
def a_weight_beyond_float32():
    return converted(weight=WEIGHT.astype(np.float64) * 1e300)


@of_module("the file must hold weights, found the saved state of streams; use `load_state`")
def a_state_in_place_of_weights():
    return state()


STATE = {
    ".frames": FRAMES,
    ".frames_in": np.int64([5]),
    ".channels": np.array(4),
    ".kernel_size": np.array(3),
    ".causal": np.array(True),
    ".weights": np.array("0" * 64),
}


@loads(STATE, read="states")
def a_state_as_it_should_be():
    return state()


@of_state("the file must be what `save_state` wrote, found NumPy npz of another kind")
def weights_in_place_of_a_state():
    return converted()


@of_state("a state must be of version 1 or older, found version 2; upgrade edgeconv")
def a_state_that_is_newer():
    return state(version=2)


@of_state("the header of a state must state its version and streams")
def a_state_whose_version_is_a_Boolean():
    return state(version=True)


@of_state(r"states must go by prefix, a single one by none, found '\[\]'")
def a_state_of_no_streams():
    return state(states={})


@of_state(r"states must go by prefix, a single one by none, found '\['m'\]'")
def a_single_state_with_a_prefix():
    return npz(
        {"format": "edgeconv state", "version": 1, "single": True, "states": {"m": GEOMETRY}},
        **{"m.frames": FRAMES, "m.frames_in": np.int64([5])},
    )


@of_state(STREAM)
def a_channel_that_is_a_Boolean():
    return state({**GEOMETRY, "channels": True}, frames=FRAMES[:, :1])


@of_state(STREAM)
def a_batch_that_is_a_Boolean():
    return state({**GEOMETRY, "batch_size": True})


@of_state(STREAM)
def a_kernel_size_that_is_a_text():
    return state({**GEOMETRY, "kernel_size": "3"})


@of_state(STREAM)
def a_state_with_a_field_too_many():
    return state({**GEOMETRY, "dilation": 1})


@of_state("'' must be the state of a stream, found")
def a_state_of_another_shape():
    return state({**GEOMETRY, "channels": 6})


@of_state("a JSON number must have at most 32 digits, found more")
def channels_of_four_thousand_digits():
    return state({**GEOMETRY, "channels": int("9" * 4000)})


@of_state("'' must be the state of a stream, found")
def a_batch_that_is_negative():
    return state({**GEOMETRY, "batch_size": -1})


@of_state("'' must be the state of a stream, found .*`frames_in` must be from 0 to 2")
def a_counter_below_zero():
    return state(frames_in=(-1,))


@of_state("'' must be the state of a stream, found .*`frames_in` must be from 0 to 2")
def a_counter_beyond_62_bits():
    return state(frames_in=(2**62 + 1,))


@of_state("'' must be the state of a stream, found")
def a_counter_that_is_a_float():
    return state(dtype=np.float64)


@of_state("'' must be the state of a stream, found")
def frames_in_float64():
    return state(frames=FRAMES.astype(np.float64))


@of_state("'' must be the state of a stream, found")
def a_kernel_size_of_zero():
    return state({**GEOMETRY, "kernel_size": 0}, frames=FRAMES[:, :, :0])


@refused("a configuration must be plain YAML", read="configuration", live=("yaml",))
def a_configuration_that_calls(m):
    return f"encoder_conf: !!python/object/apply:os.mkdir [{json.dumps(m)}]\n".encode()


@refused("a configuration must not use aliases, found one", read="configuration")
def a_configuration_of_a_billion_laughs():
    lines = [b"a0: &a0 [x, x]\n"]
    lines += [b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40)]
    return b"".join(lines)


@refused("a configuration must be at most 50 levels deep, found more", read="configuration")
def a_configuration_a_hundred_thousand_levels_deep():
    return b"[" * 100_000


@refused("a configuration must be plain YAML|must be a mapping", read="configuration")
def a_configuration_that_is_a_checkpoint():
    return converted()
