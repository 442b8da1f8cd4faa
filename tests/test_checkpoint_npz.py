"""`.npz` files: what NumPy writes is read exactly, and nothing is evaluated."""

import io

import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.archive import Archive
from edgeconv.checkpoint.tensors import convolutions

DTYPES = [
    order + code
    for code in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8")
    for order in "<>"
]
arrays = hnp.arrays(
    st.sampled_from(["?", "i1", "u1", *DTYPES]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("npz") / "file.npz"


def written(target, arrays, save=np.savez):
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        save(file, **arrays)
    return target


@given(
    st.dictionaries(
        names.filter(lambda n: n != "file" and not n.endswith("/")), arrays, min_size=1
    ),
    st.booleans(),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_what_numpy_writes_is_read_exactly(target, arrays, fortran, save):
    arrays = {name: np.asfortranarray(a) if fortran and a.ndim else a for name, a in arrays.items()}
    checkpoint = read_checkpoint(written(target, arrays, save))
    assert checkpoint.format == "NumPy npz"
    assert list(checkpoint) == list(arrays)
    for name, array in arrays.items():
        read = checkpoint[name]
        assert checkpoint.spec(name) == (array.dtype.name, array.shape)
        assert read.dtype == array.dtype.newbyteorder("=")
        assert not read.flags.writeable
        assert np.array_equal(read, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(target, version):
    record = io.BytesIO()
    np.lib.format.write_array(record, np.arange(3), version)
    target.write_bytes(torch_files.zipped({"x.npy": record.getvalue()}))
    assert read_checkpoint(target)["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.array([None]), "object; pickled objects are never loaded: save plain arrays"),
        (np.complex64([1]), "complex64; convert it"),
        (np.array("text"), "str; convert it"),
        (np.array(b"text"), "bytes; convert it"),
        (np.zeros(2, "M8[ns]"), "datetime64; convert it"),
        (np.zeros(2, [("a", "f4"), ("b", "i4", (2,))]), "structured; convert it"),
        (np.zeros(2, "V3"), "void; convert it"),
        (np.zeros(2, np.longdouble), "float128; convert it"),
    ],
)
def test_other_arrays_are_not_listed(target, array, found):
    written(target, {"good": np.zeros(1), "x": array})
    checkpoint = read_checkpoint(target)
    assert list(checkpoint) == ["good"]
    with pytest.raises(CheckpointError, match=f"'x' must be a Boolean, .* found {found}"):
        checkpoint["x"]
    written(target, {"x": array})
    with pytest.raises(CheckpointError, match="found only others, such as 'x' of"):
        read_checkpoint(target)


def record(text, data=b"", magic=b"\x93NUMPY\x01\x00"):
    return magic + len(text).to_bytes(2, "little") + text.encode() + data


def fields(descr="'<f4'", order="False", shape="(1,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "must be an array of format 1 to 3, found another"),
        (record(fields(), b"1234", b"\x93NUMPY\x04\x00"), "must be an array of format 1 to 3"),
        (record(fields(), b"12345"), r"'x.npy' must have \d+ bytes for its shape, found \d+ bytes"),
        (record(fields(shape="(1000000000000,)"), b"1234"), r"must have \d+ bytes for its shape"),
        (record(fields(shape="(" + "1," * 33 + ")"), b"1234"), "at most 32 dimensions"),
        (record(fields(shape="(999999999999999999, 99, 0)")), r"and 2\*\*58 elements"),
        (record(fields(shape="(-1,)"), b"1234"), "must state its type and shape"),
        (record(fields(shape="(1e3,)"), b"1234"), "must state its type and shape"),
        (record(fields(order="0"), b"1234"), "must state its type and shape"),
        (record(fields(descr="__import__('os')"), b"1234"), "must state its type and shape"),
        (record(fields(descr="True"), b"1234"), "must state its type and shape"),
        (record("{'descr': '<f4'}", b"1234"), "must state its type and shape"),
        (record("{" * 9000, b"1234"), "must state its type and shape"),
        (record(fields()[:-2] + "'x': 1}", b"1234"), "must state its type and shape"),
        (record(fields())[:30], "must state its type and shape"),
        (record(fields(descr="'x y'"), b"1234"), "only others, such as 'x' of ''x y''"),
        (record(fields(descr="'<i16'"), b"1" * 16), "only others, such as 'x' of int128"),
    ],
)
def test_a_wrong_preamble_is_refused(target, content, match):
    target.write_bytes(torch_files.zipped({"x.npy": content}))
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(target)
    assert len(str(caught.value)) < 500


def test_a_name_that_is_too_long_is_refused(target):
    target.write_bytes(torch_files.zipped({"x" * 5000 + ".npy": record(fields(), b"1234")}))
    with pytest.raises(CheckpointError, match="UTF-8 text of at most 4096 characters, found 'xxx"):
        read_checkpoint(target)


def test_fields_in_another_order(target):
    text = "{'shape':(2L,1L),'descr':'|u1','fortran_order':True}"
    target.write_bytes(torch_files.zipped({"x.npy": record(text, b"ab")}))
    assert read_checkpoint(target)["x"].tolist() == [[97], [98]]


def test_a_convolution_that_damage_to_a_type_would_hide(target):
    whole = {"a.weight": np.zeros((2, 1, 3)), "a.bias": np.zeros(2)}
    for name in whole:
        np.savez(target, **whole)
        data = target.read_bytes()
        place = data.index(b"'<f8'", data.index(name.encode() + b".npy"))
        target.write_bytes(data[:place] + b"'<c8'" + data[place + 5 :])
        checkpoint = read_checkpoint(target)
        assert list(checkpoint.unlisted) == [name]
        for call in (convolutions, lambda checkpoint: checkpoint[name]):  # noqa: B023 - at once
            with pytest.raises(CheckpointError, match=f"'{name}.npy' must have the checksum"):
                call(checkpoint)


def test_what_is_not_looked_up_is_not_read(target, monkeypatch):
    others = {"big": np.zeros(1000, complex), "texts": np.array(["x" * 1000])}
    np.savez(target, **others, weight=np.zeros((2, 1, 3)), bias=np.zeros(2))
    monkeypatch.setattr(Archive, "read", None)
    checkpoint = read_checkpoint(target)
    assert list(convolutions(checkpoint)) == [""]
    monkeypatch.undo()
    for name in others:
        with pytest.raises(CheckpointError, match=r"float tensor, found .*; convert it"):
            checkpoint[name]
