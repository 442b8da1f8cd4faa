"""Good files after a bad disk, a bad cable or an interrupted copy."""

import numpy as np
from torch_files import npy, records, safetensors, saved, tensor, with_checksums, zipped

MANY = np.arange(256, dtype=np.float32)
GOOD = {"w": tensor(MANY)}
CRC = "must have its size and checksum, found another; the file is damaged"
HEADER = {"w": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}


def flipped(data, at=None):
    """Flip a bit, by default in the middle of the numbers."""
    data = bytearray(data)
    data[data.index(MANY[100:104].tobytes()) if at is None else at] ^= 4
    return bytes(data)


def flipped_at(text, data, beyond=0):
    """Flip a bit in the last of the places where a text stands, or so many bytes further on."""
    return flipped(data, data.rindex(text) + beyond)


def changed():
    array = MANY.copy()
    array.view(np.uint8)[400] ^= 4
    return {"w": array}


def without(record):
    files = records(GOOD)
    del files[record]
    return zipped(files)


DAMAGE = {
    "a bit in the numbers": (flipped(saved(GOOD)), CRC),
    "a bit in the pickle": (flipped_at(b"_rebuild", saved(GOOD)), CRC),
    "a bit in the name of a record": (
        flipped_at(b"data/0", saved(GOOD)),
        "must start with its header",
    ),
    "a bit in deflated numbers": (flipped(saved(GOOD, deflated=True), -700), "must inflate|" + CRC),
    "a bit in the size of a record": (
        flipped_at(b"PK\1\2", zipped({"w.npy": npy(MANY)}), 24),
        "must have",
    ),
    "a bit in an npz": (flipped(zipped({"w.npy": npy(MANY)})), CRC),
    "a bit in the type of an array": (
        flipped_at(b"<f4", zipped({"v.npy": npy(MANY), "w.npy": npy(MANY)}), 1),
        "must",
    ),
    "a block of zeros": (saved(GOOD)[:600] + bytes(512) + saved(GOOD)[1112:], CRC),
    "a download that broke off": (saved(GOOD)[:-300], "zip archive must be complete"),
    "one taken up from another version": (
        saved(GOOD)[:800] + saved({"w": tensor(-MANY)})[800:],
        "must have its size and checksum|header",
    ),
    "line ends translated": (saved(GOOD).replace(b"\n", b"\r\n"), "must"),
    "a storage lost": (without("archive/data/0"), "must have a type, a key and a record"),
    # Without a checksum nobody can tell.
    "a bit without checksums": (flipped(with_checksums(saved(GOOD), 0)), changed()),
    "a bit in a safetensors file": (flipped(safetensors(HEADER, MANY.tobytes())), changed()),
}
