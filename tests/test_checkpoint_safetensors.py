"""safetensors files: what their own library writes is read exactly, and nothing else is."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from edgeconv.checkpoint import CheckpointError, read_checkpoint

arrays = hnp.arrays(
    st.sampled_from(["?", "i1", "u1", "i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8"]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors") / "file.bin"


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def fields(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), arrays, min_size=1))
def test_what_its_library_writes_is_read_exactly(target, arrays):
    arrays.pop("__metadata__", None)
    arrays["w"] = np.float32([1])
    target.unlink(missing_ok=True)
    target.write_bytes(save(arrays, {"format": "np"}))
    checkpoint = read_checkpoint(target)
    assert checkpoint.format == "safetensors"
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        assert checkpoint.spec(name) == (array.dtype.name, array.shape)
        assert checkpoint[name].dtype == array.dtype
        assert np.array_equal(checkpoint[name], array, equal_nan=array.dtype.kind == "f")


def test_tensors_come_in_the_order_of_their_data(target):
    target.write_bytes(raw({"b": fields(offsets=(4, 8)), "a": fields()}, bytes(8)))
    assert list(read_checkpoint(target)) == ["a", "b"]


def test_types_that_numpy_lacks_are_read_as_float32(target):
    header = {"b": fields("BF16", (2,)), "f": fields("F8_E4M3", (2,), (4, 6))}
    header["e"] = fields("F8_E5M2", (1,), (6, 7))
    target.write_bytes(raw(header, b"\x80\x3f\x00\xc0\x38\xb8\x3c"))
    checkpoint = read_checkpoint(target)
    assert [checkpoint[name].tolist() for name in "bfe"] == [[1, -2], [1, -1], [1]]
    assert [checkpoint.spec(name).dtype for name in "bfe"] == [
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
    ]


@pytest.mark.parametrize(("dtype", "name"), [("C64", "complex64"), ("F4", "'F4'")])
def test_other_types_are_not_listed(target, dtype, name):
    target.write_bytes(
        raw({"x": fields(dtype, offsets=(0, 8)), "y": fields(offsets=(8, 12))}, bytes(12))
    )
    checkpoint = read_checkpoint(target)
    assert list(checkpoint) == ["y"]
    with pytest.raises(CheckpointError, match=f"'x' must be a Boolean, .* found {name}; convert"):
        checkpoint["x"]


def test_a_file_cut_short_under_the_reader(target, monkeypatch):
    target.write_bytes(raw({"x": fields()}, b"1234"))
    checkpoint = read_checkpoint(target)
    monkeypatch.setattr(type(checkpoint), "_check_unchanged", lambda *_: None)
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the tensor must have 4 bytes, found 3 bytes"):
        checkpoint["x"]


def test_truncated_files_are_refused(target):
    data = save({"a": np.arange(50, dtype=np.float32), "b": np.arange(50, dtype=np.float64)})
    for length in range(0, len(data), 64):
        target.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(target)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (raw({"x": fields()}, b"1234")[:20], "the header must fit the file's 20 bytes"),
        (raw(b'{"x": NaN}'), "a JSON number must be finite, found NaN"),
        (raw(b'{"x": 1, "x": 1}'), "names in a JSON object must differ"),
        (raw(b'{"x": \xff}'), "the header must be a JSON object in UTF-8"),
        (raw("{}".encode("utf-16le")), "the header must be a JSON object in UTF-8"),
        (raw(b'{"x": ' + b"[" * 100000), "the header must be a JSON object in UTF-8"),
        (raw(b'{"x": ' + b"9" * 10**6 + b"}"), "a JSON number must have at most 32 digits"),
        (raw({"__metadata__": {"a": 1}}), "'__metadata__' must hold text by name"),
        (raw({"__metadata__": []}), "'__metadata__' must hold text by name"),
        (raw({"x": 1}), "'x' must have dtype, shape and data_offsets, found other fields"),
        (raw({"x": fields() | {"more": 1}}), "found other fields"),
        (raw(b'{"\\ud800": 1}'), r"name of a tensor must be UTF-8 text .* found '\\ud800'"),
        (raw({"x": fields(offsets=(0,))}), r"'x' must have two data_offsets, found '\[0\]'"),
        (raw({"x": fields(offsets=(False, 4))}), "'x' must have two data_offsets"),
        (raw({"x": fields(offsets=(4, 0))}), "'x' must have two data_offsets"),
        (raw({"x": fields(offsets=(0, 2**63))}), "'x' must have two data_offsets"),
        (raw({"x": fields(offsets=(4, 8))}, bytes(8)), "'x' must start at byte 0 of the data"),
        (raw({"x": fields()}, bytes(5)), "tensors must end with the file, at byte"),
        (raw({"x": fields(dtype=5)}, bytes(4)), "'x' must have a dtype, found '5'"),
        (raw({"x": fields(shape=(True,))}, bytes(4)), r"'x' must have a shape, found '\[True\]'"),
        (raw({"x": fields("C64")}, bytes(4)), "'x' must have 8 bytes for its shape, found 4"),
        (raw({"x": fields(shape=(2,))}, bytes(4)), "'x' must have 8 bytes for its shape, found 4"),
        (raw({"x": fields(shape=(2**40,) * 2)}, bytes(4)), r"'x' must have at most 32 dimen"),
        (raw({}), "the file must hold a Boolean, integer or float tensor, found none"),
    ],
)
def test_a_wrong_header_is_refused(target, data, match):
    target.write_bytes(data)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert len(str(caught.value)) < 500
