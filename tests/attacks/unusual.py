"""Good files as users hold them, of which others refuse some."""

import argparse
import datetime
import io

import numpy as np
import torch_files
from torch_files import (
    Call,
    Storage,
    named,
    records,
    saved,
    storage,
    tensor,
    untyped_view,
    view,
    with_checksums,
)

from attacks import npz_files, safetensors_files
from attacks.catalogue import W, loads

ONE = {"w": tensor(W)}
BF16 = W.view(np.uint32) >> 16


@loads()
def a_state_dict():
    return saved(ONE)


@loads({"model.w": W, "optimizer.state.0.exp_avg": W})
def a_training_checkpoint():
    optimizer = {"state": {0: {"exp_avg": tensor(W)}}, "param_groups": [{"lr": 0.1}]}
    return saved({"model": ONE, "optimizer": optimizer, "epoch": 3})


@loads({"model.w": W})
def a_checkpoint_of_ESPnet_with_a_reporter():
    return saved({"model": ONE, "reporter": {"total_time": datetime.timedelta(seconds=3)}})


@loads({"model.w": W, "model_avg.w": W})
def a_checkpoint_of_icefall():
    return saved({"model": ONE, "model_avg": ONE, "params": argparse.Namespace(lr=0.1)})


@loads({"state_dict.w": W})
def a_checkpoint_of_Lightning():
    callback = Call(named("lightning.pytorch.callbacks", "ModelCheckpoint"), ())
    return saved({"state_dict": ONE, "callbacks": callback, "hparams": Call(named("a", "B"), ())})


@loads()
def a_number_of_NumPy_beside_the_weights():
    return saved({**ONE, "best": np.float64(0.5)}, protocol=4)


@loads()
def a_parameter():
    return saved({"w": torch_files.parameter(W)})


@loads()
def protocol_4():
    return saved(ONE, protocol=4)


@loads()
def protocol_5():
    return saved(ONE, protocol=5)


@loads()
def the_format_before_PyTorch_1_6():
    return b"".join(torch_files.legacy(ONE))


@loads()
def a_deflated_archive():
    return saved(ONE, deflated=True)


@loads()
def an_archive_without_checksums():
    return with_checksums(saved(ONE), 0)


@loads()
def an_archive_without_a_byte_order():
    return saved(ONE, byte_order=None)


@loads()
def a_file_of_a_big_endian_machine():
    return saved({"w": tensor(W, "big")}, byte_order="big")


@loads()
def another_name_for_the_folder():
    return saved(ONE, stem="valid.acc.ave")


@loads({"w": W})
def bfloat16():
    stored = Storage(BF16.astype("<u2").tobytes(), "BFloat16", 3)
    return saved({"w": view(stored, 0, (3,), (1,))})


@loads({"w": np.float32([0.5, 1, 2])})
def float8_e5m2():
    return saved({"w": untyped_view(b"\x38\x3c\x40", "float8_e5m2", 0, (3,), (1,))})


@loads({"w": np.float32([[1, 3], [2, 4]])})
def a_transposed_tensor():
    return saved({"w": view(storage(np.float32([1, 2, 3, 4])), 0, (2, 2), (1, 2))})


@loads({"w": np.float32([1, 3])})
def a_stepped_tensor():
    return saved({"w": view(storage(W), 0, (2,), (2,))})


@loads({"w": np.float32([[2, 2], [2, 2]])})
def an_expanded_tensor():
    return saved({"w": view(storage(W), 1, (2, 2), (0, 0))})


@loads({"w": -W})
def a_tensor_that_is_negated_when_read():
    return saved({"w": view(storage(W), 0, (3,), (1,), {"neg": True})})


@loads({"w": np.float32(2)})
def a_scalar():
    return saved({"w": view(storage(W), 1, (), ())})


@loads({"w": W[:0]})
def an_empty_tensor():
    return saved({"w": tensor(W[:0])})


@loads({"v": W, "w": W})
def tied_tensors():
    tied = tensor(W)
    return saved({"v": tied, "w": tied})


@loads({"w": np.bool_([True, False])})
def a_mask():
    return saved({"w": tensor(np.bool_([True, False]))})


@loads({"w": np.uint16([1, 2])})
def uint16():
    return saved({"w": untyped_view(b"\1\0\2\0", "uint16", 0, (2,), (1,))})


@loads()
def a_complex_tensor_beside_the_weights():
    return saved({**ONE, "x": tensor(np.complex64([1j]))})


@loads()
def safetensors():
    return safetensors_files.file({"w": safetensors_files.w()})


@loads()
def safetensors_in_bfloat16():
    fields = safetensors_files.w(dtype="BF16", data_offsets=[0, 6])
    return safetensors_files.file({"w": fields}, BF16.astype("<u2").tobytes())


@loads()
def npz():
    return npz_files.in_memory(np.savez, w=W)


@loads()
def a_deflated_npz():
    return npz_files.in_memory(np.savez_compressed, w=W)


@loads()
def an_npz_of_big_endian_numbers():
    return npz_files.in_memory(np.savez, w=W.astype(">f4"))


@loads()
def an_npz_with_objects_beside_the_weights():
    return npz_files.in_memory(np.savez, w=W, x=np.array([None]))


class Stream(io.BytesIO):
    """A file that cannot go back, as a pipe cannot."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    def tell(self):
        raise io.UnsupportedOperation


@loads()
def an_archive_written_to_a_pipe():
    import zipfile

    target = Stream()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in records(ONE).items():
            archive.writestr(name, content)
    return target.getvalue()
