"""Files in the format before PyTorch 1.6: read exactly, and their damage noticed."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from torch_files import Call, Storage, named, tensor, untyped_view, view

from edgeconv.checkpoint import CheckpointError, read_checkpoint

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


one = tensor(np.float32([1]))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("legacy") / "file.pth"


def read(target, value, **options):
    return opened(target, torch_files.legacy(value, **options))


def opened(target, parts):
    target.unlink(missing_ok=True)
    target.write_bytes(b"".join(parts))
    return read_checkpoint(target)


@given(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=12), st.integers(2, 5), st.booleans())
def test_every_type_is_read_exactly(target, dtypes, protocol, little_endian):
    arrays = {
        f"{index}.{dtype}": np.arange(6 * index).reshape(2, index, 3).astype(dtype)
        for index, dtype in enumerate(dtypes)
    }
    tree = {"model": {name: tensor(array) for name, array in arrays.items()}, "epoch": 7}
    # Elements of several bytes are little-endian in the file, whatever machine wrote it.
    checkpoint = read(target, tree, protocol=protocol, little_endian=little_endian)
    assert checkpoint.format == "PyTorch legacy"
    assert list(checkpoint) == [f"model.{name}" for name in arrays]
    for name, array in arrays.items():
        found = checkpoint[f"model.{name}"]
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


@pytest.mark.parametrize("little_endian", [False, True])
def test_untyped_storages_are_in_the_byte_order_of_their_writer(target, little_endian):
    values = np.arange(5, dtype=np.uint32)
    raw = values.astype("<u4" if little_endian else ">u4").tobytes()
    checkpoint = read(
        target, {"u": untyped_view(raw, "uint32", 1, [4], [1])}, little_endian=little_endian
    )
    assert checkpoint["u"].tolist() == [1, 2, 3, 4]


def test_views_and_parts_of_storages(target):
    values = np.arange(12, dtype=np.int16)
    shared = torch_files.storage(values)
    whole = Storage(values.tobytes(), "Short", 12, key="9")
    part = Storage(values.tobytes(), "Short", 12, key="9", part=("10", 4, 6))
    checkpoint = read(
        target,
        {
            "transposed": view(shared, 1, [3, 2], [1, 4]),
            "expanded": view(shared, 5, [2, 3], [0, 0]),
            "negated": view(shared, 0, [2], [3], {"neg": True}),
            "whole": view(whole, 1, [2], [1]),
            "part": view(part, 1, [5], [1]),
            "old": torch_files.tensor_v1(values.reshape(3, 4)),
            "parameter": torch_files.parameter(np.float32([1])),
        },
    )
    assert {name: array.tolist() for name, array in checkpoint.items()} == {
        "transposed": [[1, 5], [2, 6], [3, 7]],
        "expanded": [[5, 5, 5], [5, 5, 5]],
        "negated": [0, -3],
        "whole": [1, 2],
        "part": [5, 6, 7, 8, 9],
        "old": values.reshape(3, 4).tolist(),
        "parameter": [1],
    }


def test_other_tensors_are_passed_over(target):
    complex_numbers = tensor(np.complex64([1j, 2]))
    tree = {
        "complex": complex_numbers,
        "quantized": Call(
            named("torch._utils", "_rebuild_qtensor"),
            (Storage(b"1234567890ab", "QInt32", 3), 0, (3,), (1,), (), False, {}),
        ),
        "x": tensor(np.float32([3])),
    }
    checkpoint = read(target, tree)
    assert list(checkpoint) == ["x"]
    assert checkpoint["x"].tolist() == [3]
    assert checkpoint.spec("quantized") == ("qint32", ())


def test_ordered_dicts_of_python_2(target):
    def ordered(pairs):
        return Call(named("collections", "OrderedDict"), (pairs,), {"_metadata": {}})

    weights = ordered([["w", one], ["b", tensor(np.int8([2]))]])
    checkpoint = read(target, {"model": weights, "none": ordered([])})
    assert {name: array.tolist() for name, array in checkpoint.items()} == {
        "model.w": [1],
        "model.b": [2],
    }
    for pairs in ([["w"]], ["wb"], [("w", one)]):
        with pytest.raises(CheckpointError, match="must make an OrderedDict of pairs, found"):
            read(target, ordered(pairs))


def test_strings_of_python_2(target):
    parts = torch_files.legacy({"weight": tensor(np.float32([1]))})
    for text in ("storage", "weight", "0", "cpu"):
        long = b"X" + struct.pack("<I", len(text)) + text.encode()
        parts[3] = parts[3].replace(long, b"U" + bytes([len(text)]) + text.encode(), 1)
    parts[3] = parts[3].replace(b"U\6weight", b"T\7\0\0\0w\xc3\xa9ight")
    assert opened(target, parts)["wéight"].tolist() == [1]
    parts[3] = parts[3].replace(b"w\xc3\xa9ight", b"w\xff\xffight")
    with pytest.raises(CheckpointError, match=r"must be UTF-8 text .*, found 'w\\udcff"):
        opened(target, parts)


def test_a_pickled_module_is_refused(target):
    parts = torch_files.legacy(
        Call(named("torch.nn", "Linear"), (), {"_parameters": {"weight": tensor([1.0])}})
    )
    source = b"X\6\0\0\0moduleX\1\0\0\0aX\1\0\0\0b"
    plain = b"ctorch.nn\nLinear\n"
    parts[3] = parts[3].replace(plain, b"(" + source[:11] + plain + source[11:] + b"tQ", 1)
    with pytest.raises(CheckpointError, match=r"a whole pickled module, 'torch\.nn\.Linear'; save"):
        opened(target, parts)


def test_only_what_is_looked_up_is_read(target):
    values = np.arange(2**10, dtype=np.float32)
    tree = {"huge": view(Storage(b"", "Byte", 2**33), 0, [2**33], [1]), "x": tensor(values)}
    parts = torch_files.legacy(tree)
    with target.open("wb") as file:
        file.write(b"".join(parts[:6]))
        os.truncate(file.fileno(), file.tell() + 2**33)  # a hole of 8 GiB
        file.seek(0, os.SEEK_END)
        file.write(parts[6])
    tracemalloc.start()
    try:
        checkpoint = read_checkpoint(target)
        assert np.array_equal(checkpoint["x"], values)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
        target.unlink()


def with_part(part, count=1):
    return {"x": view(Storage(bytes(4 * count), "Float", count, part=part), 0, [1], [1])}


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        (with_part(("1", 0, 2)), "of the value: the pickle must describe storages by .* and part"),
        (with_part(("1", -1, 1)), "by type, key, size and part"),
        (with_part(("1", 0, True)), "by type, key, size and part"),
        (with_part((1, 0, 1)), "by type, key, size and part"),
        (with_part(["1", 0, 1]), "by type, key, size and part"),
        (with_part(("1", 1, 0)), "must lie within its storage of 0 bytes"),
        (with_part(("1", 1, 0), 3), "must lie within its storage of 0 bytes"),
        ({"x": view(Storage(b"a", "Odd", 1), 0, [1], [1])}, "'0' must be of a known type, found"),
        ({"x": view(Storage(b"abcd", "Float", 2), 0, [1], [1])}, "storages must end with the file"),
        ({"x": view(Storage(b"abcd", "Float", 0), 0, [1], [1])}, "lie within its storage of 0 by"),
        (
            {
                "x": view(Storage(b"abcd", "Float", 1, key="7"), 0, [1], [1]),
                "y": view(Storage(b"abcd", "Int", 1, key="7"), 0, [1], [1]),
            },
            "storage '7' must have one type and size, found two",
        ),
    ],
)
def test_a_wrong_description_is_refused(target, tree, match):
    with pytest.raises(CheckpointError, match=f"^{target}: PyTorch legacy: .*{match}"):
        read(target, tree)


@pytest.mark.parametrize(
    ("part", "content", "match"),
    [
        (1, 1002, "magic number and version 1001, found others"),
        (1, [1001], "magic number and version 1001, found others"),
        (2, {"little_endian": 1}, "the writer's system must state its byte order, found nothing"),
        (2, [], "the writer's system must state its byte order, found nothing"),
        (4, ("0",), "the storage keys must be a list of texts, found something else"),
        (4, [0], "the storage keys must be a list of texts"),
        (4, ["1"], "the storage keys must be those that the pickle describes, found others"),
        (4, ["0", "0"], "the storage keys must be those that the pickle describes"),
        (4, [], "the storage keys must be those that the pickle describes"),
    ],
)
def test_a_wrong_part_is_refused(target, part, content, match):
    parts = torch_files.legacy({"x": one})
    parts[part] = pickle.dumps(content, 2)
    with pytest.raises(CheckpointError, match=f"PyTorch legacy: .*{match}"):
        opened(target, parts)


def test_damage_is_noticed(target):
    parts = torch_files.legacy({"x": one, "y": tensor(np.int8([1, 2]))})
    for data, match in (
        ([*parts, b"\0"], r"the storages must end with the file, at byte \d+, found byte \d+"),
        ([*parts[:-1], parts[-1][:-1]], "the storages must end with the file"),
        ([*parts[:-1], parts[-1][:7]], r"storage '1' must lie within the file's \d+ bytes"),
        ([*parts[:-1], b"\3" + parts[-1][1:]], "storage '1' must have 2 elements, found 3"),
        ([*parts[:3], parts[3][:9]], "pickle of the value: the pickle must be complete"),
        (
            [*parts[:2], b"\x80\2NQ."],
            "of the system: the pickle must hold a plain value, found a",
        ),
        (parts[:2], "the pickle of the system: the pickle must be complete, found its end"),
    ):
        with pytest.raises(CheckpointError, match=match):
            opened(target, data)


def test_every_truncation_and_wrong_byte_is_refused_or_harmless(target):
    parts = torch_files.legacy({"x": one, "y": tensor(np.int8([1, 2]))})
    data, pickles = b"".join(parts), len(b"".join(parts[:5]))
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            opened(target, [data[:length]])
    for position in range(pickles):
        wrong = bytearray(data)
        wrong[position] ^= 0x55
        try:
            read = dict(opened(target, [wrong]))
        except CheckpointError:
            continue
        assert all(isinstance(array, np.ndarray) for array in read.values())
