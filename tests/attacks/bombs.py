"""Small files that would take endless time, memory or depth."""

import json
import struct
import zlib

import numpy as np
import torch_files as tf

LOADS = {"w": tf.W}
ENDLESS = "the containers must at most nest 64 deep, hold 1048576 values and view"
BROKEN = "the pickle must be complete"
OPCODES = "must have at most 1048576 opcodes"
INFLATED = "must inflate to at most"
STORAGE = (
    b"("
    + tf.text("storage")
    + tf.name("torch.FloatStorage")
    + tf.text("0")
    + tf.text("cpu")
    + b"K\x03tQ"
)


def doubled(times, start=b"]", make=b"h\xf0h\xf0\x86"):
    """Return a value within two of itself within two of these, so many times: billion laughs."""
    return start + b"q\xf0" + (b"0" + make + b"q\xf0") * times


def zip_bomb(n_bytes, claimed, copies=1):
    """Return an `.npz` with a record of zeros, that claims a size, under several names."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = tf.npy(np.zeros(n_bytes - 128, np.uint8))[:128]
    start = compressor.compress(head) + compressor.flush(zlib.Z_FULL_FLUSH)
    zeros = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    content = start + zeros * (n_bytes >> 20) + compressor.flush()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 1, len(content), claimed, 9, 0)
    numbers = (0x14, 20, 0, 8, 0, 0, 1, len(content), claimed, 9, 0, 0, 0, 0, 0, 0)
    central = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", *numbers) + b"%05d.npy" % i for i in range(copies)
    )
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, copies, copies, len(central), 39 + len(content), 0
    )
    return local + b"00000.npy" + content + central + end


def shape_again():
    """Return a long shape that is looked at a hundred thousand times."""
    shape = b"(" + b"K\x01" * 200_000 + b"tq\xf0"
    function = tf.name("torch._utils._rebuild_tensor_v2") + b"q\xf1"
    again = b"h\xf1(h\xf2K\x00h\xf0h\xf0NNtR" * 100_000
    return tf.with_pickle(
        b"](" + shape + b"0" + function + b"0" + STORAGE + b"q\xf20" + again + b"e"
    )


def attributes_again():
    """Return an object of a million attributes, looked at a million times."""
    attributes = b"}q\xf1(" + b"NN" * 400_000 + b"u"
    return tf.beside(tf.name("a.B") + b")\x81" + attributes + b"b" + doubled(20, b""))


def views(n, *, deflated=False):
    """Return as many large views of one small storage."""
    stored = tf.storage(np.arange(2**16, dtype=np.float32))
    return tf.saved([tf.view(stored, i, (2**15,), (1,)) for i in range(n)], deflated=deflated)


def header(content, data=b""):
    return lambda: tf.safetensors(content, data)


def huge(**fields):
    return {"w": {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50], **fields}}


BOMBS = {
    "a billion laughs in tuples": (lambda: tf.beside(doubled(60)), ENDLESS),
    "a billion laughs as a key": (lambda: tf.beside(b"}" + doubled(60) + b"K\x01s"), LOADS),
    "a billion tensors": (lambda: tf.beside(doubled(40, tf.BODY)), ENDLESS),
    "a list in itself": (lambda: tf.beside(b"]q\xf0h\xf0a"), LOADS),
    "an object that is its own state": (
        lambda: tf.beside(tf.name("a.B") + b")\x81q\xf0h\xf0b"),
        LOADS,
    ),
    "lists fifty thousand deep": (lambda: tf.beside(b"]" * 50_000 + b"a" * 49_999), ENDLESS),
    "marks fifty thousand deep": (lambda: tf.beside(b"(" * 50_000 + b"t" * 50_000 + b"0N"), LOADS),
    "attributes looked at again": (attributes_again, ENDLESS),
    "a shape looked at again": (shape_again, "must have a shape"),
    "keys whose hashes collide": (
        lambda: tf.beside(
            b"}("
            + b"".join(b"\x8a\x20" + (i * (2**61 - 1)).to_bytes(32, "little") for i in range(9999))
            * 2
            + b"u"
        ),
        LOADS,
    ),
    "a text of four gigabytes": (lambda: tf.beside(b"X\xff\xff\xff\xff"), BROKEN),
    "bytes of two to the 64th": (lambda: tf.beside(b"\x8e" + b"\xff" * 8), BROKEN),
    "places in the memo": (
        lambda: tf.beside(
            b"N" + b"".join(b"r" + struct.pack("<L", 2**31 + i) for i in range(99999))
        ),
        LOADS,
    ),
    "a hundred thousand lists": (lambda: tf.beside(b"(" + b"]" * 100_000 + b"t0N"), LOADS),
    "a flood of dictionaries": (lambda: tf.with_pickle(b"(" + b"}" * 1_200_000 + b"t"), OPCODES),
    "a name that grows": (
        lambda: tf.with_pickle(
            tf.text("x" * 10**6) + b"q\0h\0\x93(" + b"h\0h\0\x93" * 10**5 + b"t"
        ),
        "classes by short texts",
    ),
    "a number repeated two to the 55th times": (
        lambda: tf.saved({"w": tf.view(tf.storage(tf.W), 0, (2**30, 2**25), (0, 0))}),
        {"w": np.broadcast_to(tf.W[:1], (2**30, 2**25))},
    ),
    "views of 400 megabytes": (lambda: views(3000), ENDLESS),
    "deflated views of 400 megabytes": (lambda: views(3000, deflated=True), ENDLESS),
    "one tensor many times": (
        lambda: tf.saved([tf.tensor(np.zeros(2**18, np.int8))] * 1000),
        ENDLESS,
    ),
    "a state of a tensor": (
        lambda: tf.with_pickle(
            b"}" + tf.text("w") + tf.BODY + b"(" + STORAGE + b"K\x01K\x02\x85K\x01\x85tbs"
        ),
        "must change a list or an object",
    ),
    "a zip of zeros": (lambda: zip_bomb(2**27, 2**27), INFLATED),
    "a zip of zeros under many names": (lambda: zip_bomb(2**22, 2**22, 99), INFLATED),
    "a zip of zeros that claims to be small": (
        lambda: zip_bomb(2**29, 2**14),
        "as many bytes as its type",
    ),
    "a header of arrays in arrays": (header(b'{"x":' + b"[" * 10**5), "must be a JSON object"),
    "a header of eight megabytes": (header(b"{" + b" " * 2**23 + b"}"), "must have at most"),
    "a header of two to the 63rd": (
        lambda: tf.safetensors(b"{}", length=2**31 - 1),
        "must have at most",
    ),
    "a tensor of a petabyte": (header(json.dumps(huge()).encode()), "must end with the file"),
    "an array of a petabyte": (
        lambda: tf.zipped(
            {"w.npy": tf.npy(tf.W).replace(b"(3,), }" + b" " * 14, b"(1125899906842624,), }"[:21])}
        ),
        "as many bytes as its type|must be an array",
    ),
    "a type within its own type": (
        lambda: tf.saved(
            {
                "w": tf.call(
                    "torch._utils._rebuild_from_type_v2",
                    tf.named("torch._utils", "_rebuild_from_type_v2"),
                    *(tf.named("a", "B"), (tf.named("torch._utils", "_rebuild_from_type_v2"),), {}),
                )
            }
        ),
        "'w' must be a Boolean",
    ),
}
