"""`.npz` and `.safetensors`: what their libraries write is read exactly."""

import io

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from edgeconv.checkpoint import CheckpointError, read_checkpoint

NATIVE = ["?", "i1", "u1", "i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8"]
DTYPES = [*NATIVE, *(">" + code for code in NATIVE[3:])]
shapes = hnp.array_shapes(min_dims=0, min_side=0, max_side=4)
letters = st.characters(exclude_categories=["C", "Z"], exclude_characters="/")
names = st.text(letters, min_size=1, max_size=8).filter(lambda n: n.isprintable() and n != "file")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("plain") / "file"


def read(target, content):
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    return read_checkpoint(target)


def check(checkpoint, arrays):
    """Compare what is read with what was written."""
    for name, array in arrays.items():
        found, (dtype, shape, n_bytes, _) = checkpoint[name], checkpoint.entries[name]
        assert (dtype, shape, n_bytes) == (array.dtype.name, array.shape, array.nbytes)
        assert found.dtype == array.dtype.newbyteorder("=")
        assert not found.flags.writeable
        assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")


@given(
    st.dictionaries(names, hnp.arrays(st.sampled_from(DTYPES), shapes), min_size=1),
    st.booleans(),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_what_numpy_writes_is_read_exactly(target, arrays, fortran, save):
    arrays = {name: np.asfortranarray(a) if fortran and a.ndim else a for name, a in arrays.items()}
    file = io.BytesIO()
    save(file, **arrays)
    checkpoint = read(target, file.getvalue())
    assert (checkpoint.format, list(checkpoint)) == ("NumPy npz", list(arrays))
    check(checkpoint, arrays)


@given(st.dictionaries(names, hnp.arrays(st.sampled_from(NATIVE), shapes), min_size=1))
def test_what_safetensors_writes_is_read_exactly(target, arrays):
    arrays.pop("__metadata__", None)
    arrays["w"] = np.float32([1])
    checkpoint = read(target, save(arrays, {"format": "np"}))
    assert (checkpoint.format, set(checkpoint)) == ("safetensors", set(arrays))
    check(checkpoint, arrays)


def test_metadata_of_safetensors_may_be_null(target):
    header = b'{"__metadata__":null,"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + np.float32([1]).tobytes()
    assert read(target, content)["w"].tolist() == [1]


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_every_version_of_an_array_is_read(target, version):
    record = io.BytesIO()
    np.lib.format.write_array(record, np.arange(3), version)
    assert read(target, torch_files.zipped({"x.npy": record.getvalue()}))["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.complex64([1]), "complex64; convert it"),
        (np.array("text"), "'<U4'; convert it"),
        (np.array(b"text"), r"'\|S4'; convert it"),
        (np.zeros(2, "M8[ns]"), "'datetime64.*; convert it"),
        (np.zeros(2, [("a", "f4"), ("b", "i4", (2,))]), r"'\[\('a', '<f4'\).*; convert it"),
        (np.array([None]), "object; pickled objects are never loaded: save plain arrays"),
        (np.zeros(2, "V3"), r"'\|V3'; convert it"),
        (np.zeros(2, np.longdouble), r"float(128|96); convert it"),
    ],
)
def test_other_arrays_are_not_listed(target, array, found):
    records = {"good.npy": torch_files.npy(np.zeros(1)), "x.npy": torch_files.npy(array)}
    checkpoint = read(target, torch_files.zipped(records))
    assert list(checkpoint) == ["good"]
    assert checkpoint.entries["x"].shape == array.shape
    with pytest.raises(CheckpointError, match=f"'x' must be a Boolean, .* found {found}"):
        checkpoint["x"]
    del records["good.npy"]
    with pytest.raises(CheckpointError, match=f"'x' must be a Boolean, .* found {found}"):
        read(target, torch_files.zipped(records))


@pytest.mark.parametrize("deflated", [False, True])
def test_the_text_of_a_converted_file(target, deflated):
    text = '{"format": "edgeconv", "ü": "\U0001f600"}'
    records = {"edgeconv.npy": torch_files.npy(np.array(text)), "w.npy": torch_files.npy([1.0])}
    assert read(target, torch_files.zipped(records, deflated=deflated)).header == text
    swapped = np.array(text).astype(np.array(text).dtype.newbyteorder(">"))
    records["edgeconv.npy"] = torch_files.npy(swapped)
    assert read(target, torch_files.zipped(records, deflated=deflated)).header == text
    for other in (np.array([text]), np.array(text.encode())):
        records["edgeconv.npy"] = torch_files.npy(other)
        assert read(target, torch_files.zipped(records)).header is None


def test_damage_does_not_hide_the_text_of_a_converted_file(target):
    records = {"edgeconv.npy": torch_files.npy(np.array("text")), "w.npy": torch_files.npy([1.0])}
    data = torch_files.zipped(records)
    for old, new in ((b"<U4", b"<S4"), (b"<U4", b">U4"), (b"t\0\0\0", b"u\0\0\0")):
        with pytest.raises(CheckpointError, match="must have"):
            read(target, data.replace(old, new))


@pytest.mark.parametrize("deflated", [False, True])
def test_only_the_array_that_is_looked_up_is_verified(target, deflated):
    arrays = {name: np.arange(5000, dtype=np.float32) + i for i, name in enumerate("ab")}
    records = {f"{name}.npy": torch_files.npy(array) for name, array in arrays.items()}
    data = bytearray(torch_files.zipped(records, deflated=deflated))
    data[-2000] ^= 1
    checkpoint = read(target, data)
    assert np.array_equal(checkpoint["a"], arrays["a"])
    with pytest.raises(CheckpointError, match=r"'b.npy' must"):
        checkpoint["b"]


def fields(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_tensors_come_in_the_order_of_their_data(target):
    header = {"b": fields(offsets=(4, 8)), "a": fields()}
    assert list(read(target, torch_files.safetensors(header, bytes(8)))) == ["a", "b"]


def test_types_that_numpy_lacks_are_read_as_float32(target):
    header = {"b": fields("BF16", (2,)), "f": fields("F8_E4M3", (2,), (4, 6))}
    header["e"] = fields("F8_E5M2", (1,), (6, 7))
    data = b"\x80\x3f\x00\xc0\x38\xb8\x3c"
    checkpoint = read(target, torch_files.safetensors(header, data))
    assert [checkpoint[name].tolist() for name in "bfe"] == [[1, -2], [1, -1], [1]]
    assert [checkpoint.entries[name].dtype for name in "bfe"] == [
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
    ]


@pytest.mark.parametrize(("dtype", "name"), [("C64", "complex64"), ("F4", "'F4'")])
def test_other_types_are_not_listed(target, dtype, name):
    header = {"x": fields(dtype, offsets=(0, 8)), "y": fields(offsets=(8, 12))}
    checkpoint = read(target, torch_files.safetensors(header, bytes(12)))
    assert list(checkpoint) == ["y"]
    assert checkpoint.entries["x"].n_bytes == 8
    with pytest.raises(CheckpointError, match=f"'x' must be a Boolean, .* found {name}; convert"):
        checkpoint["x"]
