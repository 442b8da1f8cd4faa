"""Signal handlers that raise: a call has happened or has not, and `frames_in` says which."""

import gc
import sys

import numpy as np
import pytest
from reference import same_bits

from edgeconv import DepthwiseConvolution


class TickError(Exception):
    """What the handler raises."""


def interrupted_at(number, call):
    """Call, but raise before the library's bytecode of that number; return whether there was one.

    A handler runs between two bytecodes: these are all places at which it can raise.
    """
    left = number

    def count(frame, kind, _):
        nonlocal left
        frame.f_trace_opcodes = frame.f_globals["__name__"].startswith("edgeconv.")
        if kind == "opcode":
            left -= 1
            if left == 0:
                raise TickError
        return count

    tracer = sys.gettrace()  # that of coverage, it may be
    gc.disable()  # nothing that its callbacks raise comes out
    sys.settrace(count)
    try:
        call()
    except TickError:
        return True
    finally:
        sys.settrace(tracer)
        gc.enable()
    return False


CALLS = {
    "step": lambda stream, x: stream.step(x[:, 0]),
    "process": lambda stream, x: stream.process(x),
    "process with lengths": lambda stream, x: stream.process(x, lengths=[40, 2]),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_happens_wholly_or_not_at_all(name, causal):
    conv = DepthwiseConvolution(12, 7, causal=causal, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 40, 24), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x[:, 5:30])
    begin = stream.snapshot()
    CALLS[name](stream, x)
    after = stream.snapshot()
    happened = []
    while True:
        stream.restore(begin)
        if not interrupted_at(len(happened) + 1, lambda: CALLS[name](stream, x)):
            break
        state = stream.snapshot()
        happened.append((state["frames_in"] != begin["frames_in"]).all())
        expected = after if happened[-1] else begin
        assert same_bits(state["frames"], expected["frames"])
        assert state["frames_in"].tolist() == expected["frames_in"].tolist()
    assert 0 < sum(happened) < len(happened)
    assert sorted(happened) == happened
