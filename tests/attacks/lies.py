"""Files that contradict themselves, or say what no writer says."""

import json

import numpy as np
import torch_files as tf

LOADS = {"w": tf.W}
OUTSIDE = "a tensor must lie within its 12 bytes"
SHAPE = "must have a shape of 32 sizes"
STEPS = "must have an offset, and a stride for each size"
STORAGE = "a storage must have a type, a key and a record of its size"
FLAGS = "the flags of a real tensor must be 'neg' or nothing"
BROKEN = "the pickle must be complete"
ENDS = "the pickle must end with its value"
NAMES = "the pickle must name classes by short texts"
CHANGES = "the pickle must change a list or an object"
CALLS = "the pickle must call a class or function"
TWICE = "the names of tensors must differ, found .* twice; rename one"
PRINTABLE = "a name must be printable"
JSON = "the header must be a JSON object of tensors by unique names"
ARRAY = "record 'w.npy' must be an array"
BYTES = "record 'w.npy' must have as many bytes as its type and shape"
LONG = b"\x80\x04"
RAW = tf.W.tobytes()


def viewed(offset=0, size=(3,), strides=(1,), *flags):
    """Return a file with a view of three numbers as ``w``."""
    return tf.saved({"w": tf.view(tf.storage(tf.W), offset, size, strides, *flags)})


def stored(raw=RAW, kind="Float", count=3, key=None, size=(3,)):
    """Return a file with a tensor of a storage as it is described."""
    return tf.saved({"w": tf.view(tf.Storage(raw, kind, count, key), 0, size, (1,))})


def rebuilt(function, *arguments):
    return tf.saved({"w": tf.call(f"torch._utils.{function}", *arguments)})


def header(data=RAW, name="w", **fields):
    """Return a safetensors file with other fields of ``w``."""
    return tf.safetensors(
        {name: {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **fields}}, data
    )


def array(descr="'<f4'", order="False", shape="(3,)", data=RAW, magic=b"\x93NUMPY\1\0"):
    """Return an `.npz` with another preamble of ``w``."""
    raw = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return tf.zipped({"w.npy": magic + len(raw).to_bytes(2, "little") + raw + data})


def renamed(old, new):
    """Return a PyTorch file with a record under another name."""
    return tf.zipped(
        {k.replace(old, new): v for k, v in tf.records({"w": tf.tensor(tf.W)}).items()}
    )


def twice():
    """Return an `.npz` with a name that occurs twice."""
    data = tf.zipped({"w.npy": tf.npy(tf.W), "v.npy": tf.npy(-tf.W)})
    return data.replace(b"v.npy", b"w.npy")


def changed(old, new, count=-1):
    """Return an `.npz` in which some bytes are others."""
    data = tf.zipped({"w.npy": tf.npy(tf.W)})
    assert old in data
    return data.replace(old, new, count)


PICKLES = {
    "a memo without a value": (tf.beside(b"j\xff\xff\xff\x7f"), BROKEN),
    "an empty stack": (tf.with_pickle(b""), ENDS),
    "an open mark": (tf.with_pickle(b"(N"), ENDS),
    "a second pickle": (tf.with_pickle(b"}" + tf.text("w") + tf.BODY + b"s.\x80\x02N"), ENDS),
    "no pickle": (tf.with_pickle(b"", b""), ENDS),
    "an out of band buffer": (tf.beside(b"\x97", b"\x80\x05"), "found NEXT_BUFFER"),
    "an unknown opcode": (tf.beside(b"\xff"), BROKEN),
    "a class of numbers": (tf.beside(b"K\x01K\x02\x93", LONG), NAMES),
    "a class of a long name": (tf.beside(tf.text("x" * 257) * 2 + b"\x93", LONG), NAMES),
    "classes with odd names": (
        tf.beside(
            b"("
            + b"".join(
                tf.text(n) * 2 + b"\x93"
                for n in ("", ".", "..", "../../x", "\0", "\n\x1b[2J", "\ud800")
            )
            + b"t",
            LONG,
        ),
        LOADS,
    ),
    "a call of a text": (tf.beside(tf.text("os.system") + b")R"), CALLS),
    "a call of a tensor": (tf.beside(tf.BODY + b")R"), CALLS),
    "an append to a tuple": (tf.beside(b")Na"), CHANGES),
    "a key without a value": (tf.beside(b"}(Nu"), BROKEN),
    "a key twice": (tf.with_pickle(b"}(" + (tf.text("w") + tf.BODY) * 2 + b"u"), TWICE),
    "a name for the terminal": (tf.saved({"\x1b[2J": tf.tensor(tf.W)}), PRINTABLE),
    "a long name": (tf.saved({"x" * 5000: tf.tensor(tf.W)}), PRINTABLE),
}
TENSORS = {
    "an offset beyond the end": (viewed(1), OUTSIDE),
    "an offset beyond 64 bits": (viewed(2**64), STEPS),
    "a negative offset": (viewed(-1), STEPS),
    "a Boolean as offset": (viewed(True, (1,)), STEPS),
    "a size beyond the end": (viewed(0, (4,)), OUTSIDE),
    "a size that overflows": (viewed(0, (2**32, 2**32), (1, 1)), SHAPE),
    "a stride beyond the end": (viewed(0, (2,), (3,)), OUTSIDE),
    "a stride that overflows": (viewed(0, (3,), (2**62,)), OUTSIDE),
    "a negative stride": (viewed(2, (3,), (-1,)), STEPS),
    "fewer strides": (viewed(0, (3,), ()), STEPS),
    "a stride that nobody uses": (viewed(0, (1,), (2**62,)), {"w": tf.W[:1]}),
    "nothing, beyond the end": (viewed(2**40, (0, 5), (2**62, 1)), {"w": tf.W[:0].reshape(0, 5)}),
    "a tensor over itself": (viewed(0, (2, 2), (1, 1)), {"w": np.float32([[1, 2], [2, 3]])}),
    "a flag of another value": (viewed(0, (3,), (1,), {"neg": "x"}), FLAGS),
    "an unknown flag": (viewed(0, (3,), (1,), {"conj": True}), FLAGS),
    "flags that are a number": (viewed(0, (3,), (1,), 5), FLAGS),
    "fewer bytes": (stored(count=4), STORAGE),
    "more bytes": (stored(count=2, size=(2,)), STORAGE),
    "a count that overflows": (stored(count=2**62), STORAGE),
    "another type": (stored(kind="Double"), STORAGE),
    "an unknown element type": (
        tf.saved({"w": tf.untyped_view(RAW, "x\x1b\ny", 0, (3,), (1,))}, protocol=4),
        r"found x\\x1b\\ny; convert",
    ),
    "a storage without a record": (renamed("data/0", "data/1"), STORAGE),
    "an unknown byte order": (
        tf.saved({"w": tf.tensor(tf.W)}, byte_order="middle"),
        "the byte order must be little or big",
    ),
}
ARCHIVES = {
    "two pickles": (
        tf.zipped(
            {
                **tf.records({"w": tf.tensor(tf.W)}),
                **tf.records({"w": tf.tensor(-tf.W)}, stem="other"),
            }
        ),
        "must have one data.pkl",
    ),
    "a name twice": (twice(), "names in an archive must differ"),
    "another name in front of the data": (
        changed(b"w.npy", b"v.npy", 1),
        "must start with its header",
    ),
    "a name of nothing": (changed(b"w.npy", b"\0.npy"), "array|found|must"),
    "a password": (
        changed(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"),
        "without a password",
    ),
    "an archive in front": (
        tf.zipped({"w.npy": tf.npy(-tf.W)}) + tf.zipped({"w.npy": tf.npy(tf.W)}),
        LOADS,
    ),
    "a text beside the arrays": (tf.zipped({"w.npy": tf.npy(tf.W), "README": b"x"}), "'README'"),
}
NPZ = {
    "an array shape that overflows": (array(shape="(4294967296, 4294967296, 3)"), SHAPE),
    "an array of negative length": (array(shape="(-3,)"), f"{ARRAY}|{SHAPE}"),
    "an array of arrays": (array("('<f4', (3,))", shape="(1,)"), "found '"),
    "an order that is a text": (array(order="'C'"), ARRAY),
    "a version to come": (array(magic=b"\x93NUMPY\x09\0"), ARRAY),
}
SAFETENSORS = {
    "a header beyond the file": (tf.safetensors({}, length=1000), "must lie within"),
    "a header that is cut": (tf.safetensors({"w": {}}, length=5), JSON),
    "a header that is a list": (tf.safetensors(b"{} "[:2] + b"[]"), JSON),
    "a header in UTF-16": (tf.safetensors(b"{\0}\0"), JSON),
    "a name in the header twice": (
        tf.safetensors(
            b'{"w": %s, "\\u0077": %s}'
            % ((json.dumps({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}).encode(),) * 2)
        ),
        JSON,
    ),
    "a NaN as a length": (header(shape=[float("nan")]), SHAPE),
    "a Boolean as a length": (header(shape=[3, True]), SHAPE),
    "a negative length": (header(shape=[-3]), SHAPE),
    "a length beyond 64 bits": (header(shape=[10**30]), SHAPE),
    "a shape that overflows": (header(shape=[2**32, 2**32, 3]), SHAPE),
    "a shape that is a text": (header(shape="3"), JSON),
    "a Boolean as an offset": (header(data_offsets=[False, 12]), JSON),
    "a type that is unknown": (header(dtype="F3\x1b"), r"found 'F3\\x1b'; convert"),
    "a field too much": (header(more=1), JSON),
    "a shape of more": (header(shape=[4]), "must have 16 bytes at 0"),
    "a larger type": (header(dtype="F64"), "must have 24 bytes at 0"),
    "a gap": (header(bytes(13), data_offsets=[1, 13]), "must have 12 bytes at 0"),
    "bytes too few": (header(RAW[:-1]), "tensors must end with the file"),
    "bytes too many": (header(RAW + b"\0"), "tensors must end with the file"),
    "no tensors": (tf.safetensors({}, b""), "must hold a tensor"),
    "an unprintable name": (header(name="\x1b[2J"), PRINTABLE),
}
LIES = {**PICKLES, **TENSORS, **ARCHIVES, **NPZ, **SAFETENSORS}
assert len(LIES) == sum(map(len, (PICKLES, TENSORS, ARCHIVES, NPZ, SAFETENSORS)))
