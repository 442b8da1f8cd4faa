"""Signal handlers that raise, at every place where they can."""

import gc
import sys


class TickError(Exception):
    """What the handler raises."""


def interrupted_at(number, call, raised=TickError, within="edgeconv."):
    """Call, but raise before the library's bytecode of that number; return whether there was one.

    A handler runs between two bytecodes: these are all places at which it can raise. Those of other
    modules count where `within` is empty.
    """
    left = number

    def count(frame, kind, _):
        nonlocal left
        frame.f_trace_opcodes = frame.f_globals["__name__"].startswith(within)
        if kind == "opcode":
            left -= 1
            if left == 0:
                raise raised
        return count

    tracer = sys.gettrace()  # that of coverage, it may be
    gc.disable()  # nothing that its callbacks raise comes out
    sys.settrace(count)
    try:
        call()
    except raised:
        return True
    finally:
        sys.settrace(tracer)
        gc.enable()
    return False
