"""Tensors that reach beyond their storages, or claim more than any memory holds."""

import numpy as np
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
    zipped,
)

from attacks.catalogue import RAW, W, loads, refused

OUTSIDE = "a tensor must lie within its storage of 12 bytes, found size"
NOT_SIZES = "a tensor must have an offset, a size, strides and one set of flags"
OVERSIZED = "others, such as 'w' of oversized float32; save it with at most 32 dimensions and"
UNLISTED = "found only others, such as 'w' of "


def of(offset=0, size=(3,), strides=(1,), *flags):
    """Return a file with a view of three numbers as ``w``."""
    return saved({"w": view(storage(W), offset, size, strides, *flags)})


def of_storage(raw=RAW, kind="Float", count=3, key=None, size=(3,)):
    return saved({"w": view(Storage(raw, kind, count, key), 0, size, (1,))})


def rebuilt(function, *arguments):
    return saved({"w": Call(named("torch._utils", function), arguments)})


@refused(OUTSIDE)
def an_offset_beyond_the_end():
    return of(1)


@refused(OUTSIDE)
def a_huge_offset():
    return of(2**62)


@refused(NOT_SIZES)
def an_offset_beyond_64_bits():
    return of(2**64)


@refused(NOT_SIZES)
def a_negative_offset():
    return of(-1)


@refused(NOT_SIZES)
def an_offset_that_is_a_Boolean():
    return of(True, (1,))


@refused(NOT_SIZES)
def an_offset_that_is_a_float():
    return of(0.0)


@refused(OUTSIDE)
def a_size_beyond_the_end():
    return of(0, (4,))


@refused(NOT_SIZES)
def a_negative_size():
    return of(0, (-3,))


@refused(OVERSIZED)
def a_size_that_overflows():
    return of(0, (2**32, 2**32), (1, 1))


@refused(OVERSIZED)
def an_empty_tensor_whose_size_overflows():
    return of(0, (0, 2**40, 2**40), (1, 1, 1))


@refused(OVERSIZED)
def as_many_dimensions_as_pytorch_has():
    return of(0, (1,) * 64, (1,) * 64)


@refused(NOT_SIZES)
def a_thousand_dimensions():
    return of(0, (1,) * 1000, (1,) * 1000)


@refused("the pickle must describe storages by type, key and size")
def a_key_of_five_thousand_characters():
    return of_storage(key="0" * 5000)


@refused(OUTSIDE)
def a_stride_beyond_the_end():
    return of(0, (2,), (3,))


@refused(OUTSIDE)
def a_stride_that_overflows():
    return of(0, (3,), (2**62,))


@refused(NOT_SIZES)
def a_negative_stride():
    return of(2, (3,), (-1,))


@refused("a tensor of 1 dimensions must have as many strides")
def fewer_strides_than_dimensions():
    return of(0, (3,), ())


@loads({"w": W[:1]})
def a_stride_that_nobody_uses():
    return of(0, (1,), (2**62,))


@loads({"w": W[:0].reshape(0, 5)})
def an_empty_tensor_at_an_offset_beyond_the_end():
    return of(2**40, (0, 5), (2**62, 1))


@loads({"w": np.float32([[1, 2], [2, 3]])})
def a_tensor_that_overlaps_itself():
    return of(0, (2, 2), (1, 1))


@loads({"w": np.broadcast_to(W[:1], 2**20)})
def a_number_repeated_a_million_times():
    return of(0, (2**20,), (0,))


@loads({"w": np.broadcast_to(W[:1], (2**30, 2**25))})
def a_number_repeated_two_to_the_55th_times():
    return of(0, (2**30, 2**25), (0, 0))


MANY = np.arange(2**16, dtype=np.float32)
VIEWS = {str(i): MANY[i : i + 2**15] for i in range(4000)}  # of 512 MB


@loads(VIEWS)
def four_thousand_views_of_one_storage():
    stored = storage(MANY)
    return saved([view(stored, i, (2**15,), (1,)) for i in range(4000)])


@loads(VIEWS)
def four_thousand_views_of_one_deflated_storage():
    stored = storage(MANY)
    return saved([view(stored, i, (2**15,), (1,)) for i in range(4000)], deflated=True)


@refused("record 'archive/data/0' must have 16 bytes, found 12")
def a_storage_of_fewer_bytes():
    return of_storage(count=4)


@refused("record 'archive/data/0' must have 8 bytes, found 12")
def a_storage_of_more_bytes():
    return of_storage(count=2, size=(2,))


@refused("describe storages by type, key and size")
def a_storage_of_a_negative_count():
    return of_storage(count=-3)


@refused("describe storages by type, key and size")
def a_storage_of_a_Boolean_count():
    return of_storage(count=True)


@refused(r"record 'archive/data/0' must have \d+ bytes, found 12")
def a_storage_whose_bytes_overflow():
    return of_storage(count=2**62)


@refused("record 'archive/data/0' must have 24 bytes, found 12")
def a_storage_of_another_type():
    return of_storage(kind="Double")


@refused(UNLISTED)
def a_storage_of_an_unknown_type():
    return of_storage(kind="Complex\x1b[2JDouble")


@refused("record 'archive/data/0' must have 12 bytes, found no such record")
def a_storage_without_a_record():
    files = records({"w": tensor(W)})
    del files["archive/data/0"]
    return zipped(files)


@refused("record 'archive/data/../../data/0' must have 12 bytes, found no such record")
def a_storage_whose_key_climbs():
    files = records({"w": view(Storage(RAW, "Float", 3, "../../data/0"), 0, (3,), (1,))})
    files["archive/data/0"] = files.pop("archive/data/../../data/0")
    return zipped(files)


@loads()
def a_storage_whose_key_is_an_absolute_path():
    return of_storage(key="/etc/passwd")


@loads({"v": W, "w": W})
def two_storages_of_one_record():
    one, other = (Storage(RAW, "Float", 3, "0") for _ in range(2))
    return saved({"v": view(one, 0, (3,), (1,)), "w": view(other, 0, (3,), (1,))})


@refused("storage '0' must have one type and size, found two")
def one_record_of_two_sizes():
    one, other = Storage(RAW, "Float", 3, "0"), Storage(RAW, "Double", 3, "0")
    return saved({"v": view(one, 0, (3,), (1,)), "w": view(other, 0, (3,), (1,))})


@refused("the byte order must be 'little' or 'big', found 'middle'")
def an_unknown_byte_order():
    return saved({"w": tensor(W)}, byte_order="middle")


@refused("the byte order must be 'little' or 'big', found 'xxxx")
def a_byte_order_of_ten_megabytes():
    return saved({"w": tensor(W)}, byte_order="x" * 10**7, deflated=True)


@refused("the flags of a real tensor must be 'neg' or nothing")
def a_flag_that_is_a_number():
    return of(0, (3,), (1,), {"neg": 1})


@refused("the flags of a real tensor must be 'neg' or nothing")
def a_flag_that_is_unknown():
    return of(0, (3,), (1,), {"conj": True})


@refused("must call _rebuild_tensor_v2 with its arguments")
def a_tensor_without_a_storage():
    return rebuilt("_rebuild_tensor_v2", None, 0, (3,), (1,), False, {})


@refused("must call _rebuild_tensor_v2 with its arguments")
def a_tensor_of_a_number_of_arguments():
    return rebuilt("_rebuild_tensor_v2", storage(W))


@refused("must call _rebuild_parameter with its arguments")
def a_parameter_of_a_parameter_of_nothing():
    return rebuilt("_rebuild_parameter", None, True, {})


@refused("must call _rebuild_from_type_v2 with its arguments")
def a_type_within_its_own_type():
    function = named("torch._utils", "_rebuild_from_type_v2")
    return rebuilt("_rebuild_from_type_v2", function, named("a", "B"), (function,), {})


@refused(UNLISTED)
def an_element_type_that_is_unknown():
    return saved({"w": untyped_view(RAW, "float3", 0, (3,), (1,))})


@refused(UNLISTED + "qint8")
def a_quantized_tensor():
    stored = Storage(b"123", "QInt8", 3)
    return rebuilt("_rebuild_qtensor", stored, 0, (3,), (1,), (), False, {})


@refused(UNLISTED)
def a_sparse_tensor():
    indices = tensor(np.int64([[0]]))
    return rebuilt("_rebuild_sparse_tensor", named("torch", "sparse_coo"), (indices, tensor(W)))


@refused("a whole pickled module, 'torch.nn.Linear'; save `model.state_dict")
def a_whole_module():
    state = {"_parameters": {"weight": tensor(W)}}
    return saved(Call(named("torch.nn", "Linear"), (), state))
