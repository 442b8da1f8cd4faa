"""Good files after a bad disk, a bad cable or an interrupted copy."""

import numpy as np
import torch_files
from torch_files import records, saved, tensor, with_checksums, zipped

from attacks import safetensors_files
from attacks.catalogue import loads, refused
from attacks.npz_files import in_memory

MANY = np.arange(256, dtype=np.float32)
ONE = {"w": tensor(MANY)}
CRC = "must have the checksum [0-9a-f]{8}, found [0-9a-f]{8}; the file is damaged"


def flipped(data, at=None):
    """Flip a bit, by default in the middle of the numbers."""
    data = bytearray(data)
    data[data.index(MANY[100:104].tobytes()) if at is None else at] ^= 4
    return bytes(data)


@refused(CRC)
def a_bit_in_the_numbers():
    return flipped(saved(ONE))


@refused(CRC)
def a_bit_in_the_pickle():
    data = saved({"weight": tensor(MANY)})
    return flipped(data, data.index(b"weight"))


@refused("must have the header that the directory describes")
def a_bit_in_the_name_of_a_record():
    return flipped(saved(ONE), 40)


@refused("must have the header that the directory describes")
def a_bit_in_the_directory():
    data = saved(ONE)
    return flipped(data, data.rindex(b"byteorder"))


@refused("must inflate to|" + CRC)
def a_bit_in_deflated_numbers():
    data = saved(ONE, deflated=True)
    return flipped(data, data.index(b"data/0") + 60)


@refused(CRC)
def a_bit_in_an_npz():
    return flipped(in_memory(np.savez, w=MANY))


@refused(CRC)
def a_block_of_zeros():
    data = saved(ONE)
    return data[:600] + bytes(512) + data[1112:]


@refused("must end with its directory's end record, found other bytes, as in a file that was cut")
def a_download_that_broke_off():
    return saved(ONE)[:-300]


@refused("must end with its directory's end record")
def a_download_filled_up_with_zeros():
    return saved(ONE)[:-300] + bytes(300)


@refused("must have the header that the directory describes")
def a_download_taken_up_from_another_version():
    data, other = saved(ONE), saved({"w": tensor(-MANY)})
    return data[:800] + other[800:]


@refused("must end with its directory's end record")
def a_line_end_after_the_file():
    return saved(ONE) + b"\n"


@refused("|".join(("must lie within", "directory", "end record", "must have")))
def line_ends_translated():
    return saved(ONE).replace(b"\n", b"\r\n")


@refused("found no such record")
def a_storage_lost():
    files = records(ONE)
    del files["archive/data/0"]
    return zipped(files)


@refused("the storages must end with the file")
def an_old_file_that_broke_off():
    return b"".join(torch_files.legacy(ONE))[:-4]


@refused("the tensors must end with the file")
def a_safetensors_file_that_broke_off():
    header = {"w": safetensors_files.w(shape=[256], data_offsets=[0, 1024])}
    return safetensors_files.file(header, MANY.tobytes()[:-4])


def changed():
    array = MANY.copy()
    array.view(np.uint8)[400] ^= 4
    return {"w": array}


# Without a checksum nobody can tell.
@loads(changed())
def a_bit_in_an_archive_without_checksums():
    return flipped(with_checksums(saved(ONE), 0))


@loads(changed())
def a_bit_in_an_old_file():
    return flipped(b"".join(torch_files.legacy(ONE)))


@loads(changed())
def a_bit_in_a_safetensors_file():
    header = {"w": safetensors_files.w(shape=[256], data_offsets=[0, 1024])}
    return flipped(safetensors_files.file(header, MANY.tobytes()))
