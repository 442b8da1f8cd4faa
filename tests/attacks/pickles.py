"""Pickles, written opcode by opcode."""

import struct

from torch_files import Call, named, pickled, records, tensor, zipped

from attacks.catalogue import W

START, END = b"\x80\x02", b"."
ONE = records({"w": tensor(W)})
BODY = pickled(tensor(W))[0][2:-1]
"""What pushes the tensor ``w``; it uses the first dozens of the memo."""


def text(value):
    raw = value.encode(errors="surrogatepass")
    return b"X" + struct.pack("<L", len(raw)) + raw


def name(dotted):
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def file(pickle, start=START, **more):
    """Return a PyTorch file with this pickle beside the storage of ``w``."""
    return zipped({**ONE, "archive/data.pkl": start + pickle + END, **more})


def beside(value, start=START):
    """Return a file with ``w`` and a value, given as opcodes, in a dictionary."""
    return file(b"}(" + text("w") + BODY + text("x") + value + b"u", start)


def call(dotted, *arguments):
    """Return a call for `torch_files.saved`."""
    module, _, attribute = dotted.rpartition(".")
    return Call(named(module, attribute), arguments)
