"""Good files after a bad disk, a bad cable or an interrupted copy."""

import numpy as np
from torch_files import safetensors, saved, tensor, with_checksums

MANY = np.arange(256, dtype=np.float32)
GOOD = {"w": tensor(MANY)}
CRC = "must have its size and checksum, found another; the file is damaged"
HEADER = {"w": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}


def flipped(data, at=None):
    """Flip a bit, by default in the middle of the numbers."""
    data = bytearray(data)
    data[data.index(MANY[100:104].tobytes()) if at is None else at] ^= 4
    return bytes(data)


def changed():
    array = MANY.copy()
    array.view(np.uint8)[400] ^= 4
    return {"w": array}


# Every single wrong byte of small files is tried in test_checkpoint_file.
DAMAGE = {
    "a bit in the numbers": (flipped(saved(GOOD)), CRC),
    "a bit in deflated numbers": (flipped(saved(GOOD, deflated=True), -700), "must inflate|" + CRC),
    "a block of zeros": (saved(GOOD)[:600] + bytes(512) + saved(GOOD)[1112:], CRC),
    "one taken up from another version": (
        saved(GOOD)[:800] + saved({"w": tensor(-MANY)})[800:],
        "must have its size and checksum|header",
    ),
    "line ends translated": (saved(GOOD).replace(b"\n", b"\r\n"), "must"),
    # Without a checksum nobody can tell.
    "a bit without checksums": (flipped(with_checksums(saved(GOOD), 0)), changed()),
    "a bit in a safetensors file": (flipped(safetensors(HEADER, MANY.tobytes())), changed()),
}
