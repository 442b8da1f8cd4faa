"""Small hostile files take little memory, and the limits are those in the documentation."""

import contextlib
import importlib
import json
import pathlib
import re
import tracemalloc

import numpy as np
import pytest
import torch_files
from torch_files import Call, Storage, tensor, view

import edgeconv.checkpoint
from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.archive import Archive
from edgeconv.checkpoint.mapping import reading

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "checkpoints.md"
OTHERS = ("weights.py", "configuration.py")
PACKAGE = pathlib.Path(edgeconv.checkpoint.__file__).parent
one = tensor(np.float32([1]))


def peak(path, data, use=dict):
    """Return the bytes of Python's and NumPy's memory that reading takes at most."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with contextlib.suppress(CheckpointError):
            use(read_checkpoint(path))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def doubled(value, times):
    for _ in range(times):
        value = [value, value]
    return value


def pickle_file(data):
    return torch_files.zipped({"a/data.pkl": b"\x80\x02" + data}, deflated=True)


def header(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        torch_files.saved(doubled(one, 60)),
        torch_files.saved(doubled({"n" * 4000: one}, 60)),
        torch_files.saved(doubled([], 60)),
        b"".join(torch_files.legacy(doubled(one, 60))),
        pickle_file(b"(" * 2**18),
        pickle_file(  # a list of 2,000 pairs, and 2,000 dictionaries of it
            b"ccollections\nOrderedDict\nq\0](](NNeq\1"
            + b"h\1" * 2000
            + b"e\x85q\2("
            + b"h\0h\2R" * 2000
            + b"t."
        ),
        pickle_file(b"}" * 2**18),
        pickle_file(b"]" * 2**24),
        pickle_file(b"N" + b"\x94" * 2**18),
        pickle_file(b"X\xff\xff\xff\x7f"),
        pickle_file(b"\x8e" + b"\xff" * 8),
        b"".join(torch_files.legacy({})[:3]) + b"\x80\x02B\xff\xff\xff\x7f",
        torch_files.saved([view(torch_files.storage(np.float32([1])), 0, [2**57], [0])] * 4000),
        header(b'{"x":' + b"[" * 10**5),
        header(
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":' + b"[" * 900 + b"]" * 900 + b"}}"
        ),
        header(
            json.dumps(
                {"x": {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}}
            ).encode()
        ),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_small_files_take_little_memory(tmp_path, data):
    # The constant is what the limits leave to any file: of a pickle above all.
    assert peak(tmp_path / "x", data) < 2**26 + 100 * len(data)


@pytest.mark.parametrize("deflated", [False, True])
def test_many_views_of_one_storage_take_the_memory_of_one(tmp_path, deflated):
    stored = torch_files.storage(np.random.default_rng(0).integers(0, 2**62, 2**17))
    tree = [view(stored, i % 7, [2**17 - 7], [1]) for i in range(4000)]
    data = torch_files.saved(tree, deflated=deflated)
    assert peak(tmp_path / "held", data) < 2**24 + 4 * len(data)
    assert peak(tmp_path / "passed", data, lambda c: [c[name] for name in c]) < 2**24 + 4 * len(
        data
    )


@pytest.fixture
def reads(monkeypatch):
    """The names of records, each as often as it is read."""
    names, read = [], Archive.read

    def counted(archive, file, name, *part):
        names.append(name)
        return read(archive, file, name, *part)

    monkeypatch.setattr(Archive, "read", counted)
    return names


@pytest.mark.parametrize("deflated", [False, True])
def test_a_storage_is_read_once_however_its_views_alternate(tmp_path, reads, deflated):
    one, other = (torch_files.storage(np.arange(64.0)) for _ in range(2))
    alone = tensor(np.arange(3.0))
    tree = [view(stored, 0, [64], [1]) for _ in range(9) for stored in (one, other)]
    path = tmp_path / "x"
    path.write_bytes(torch_files.saved([*tree, alone], deflated=deflated))
    checkpoint = read_checkpoint(path)
    reads.clear()
    for name in [*checkpoint] * 2:
        assert checkpoint[name][1] == 1
    assert sorted(reads) == [f"archive/data/{key}" for key in "0122"]  # what has one view is let go


def test_a_deflated_storage_of_several_views_is_inflated_once(tmp_path, reads):
    stored = torch_files.storage(np.arange(64.0))
    path = tmp_path / "x"
    tree = [view(stored, start, [8], [1]) for start in range(0, 64, 8)]
    path.write_bytes(torch_files.saved(tree, deflated=True))
    checkpoint = read_checkpoint(path)
    reads.clear()
    assert np.concatenate([checkpoint[name] for name in checkpoint]).tolist() == [*range(64)]
    assert reads == ["archive/data/0"]


@pytest.mark.parametrize("deflated", [False, True])
def test_a_storage_that_is_kept_takes_four_times_its_bytes(tmp_path, deflated):
    stored = Storage(bytes(range(16)), "Untyped", 16)
    rebuild = torch_files.named("torch._utils", "_rebuild_tensor_v3")

    def seen(dtype, *flags):
        element = torch_files.named("torch", dtype)
        item = 4 if dtype == "float32" else 1
        return Call(rebuild, (stored, 0, (16 // item,), (1,), False, {}, element, *flags))

    tree = {"a": seen("int8"), "n": seen("int8", {"neg": True}), "f8": seen("float8_e5m2")}
    tree |= {"u": seen("uint8"), "f": seen("float32"), "n32": seen("float32", {"neg": True})}
    path = tmp_path / "x"
    path.write_bytes(torch_files.saved(tree, deflated=deflated))
    checkpoint = read_checkpoint(path)
    assert checkpoint["a"].tolist() == checkpoint["u"].tolist() == [*range(16)]
    assert checkpoint["n"].tolist() == [-value for value in range(16)]
    assert checkpoint["f"].tobytes() == bytes(range(16))
    remedy = "save a copy of it, such as its `clone()`"
    assert checkpoint.unlisted == {"f8": remedy, "n32": remedy}
    with pytest.raises(CheckpointError, match=r"'f8' must be .*, found reinterpreted float8_e5m2;"):
        checkpoint["f8"]


def test_a_process_without_room_refuses_the_file():
    for error in (MemoryError, RecursionError):
        match = f"a.pth: X: the process must have the memory and .* found {error.__name__}; save"
        with pytest.raises(CheckpointError, match=match), reading("a.pth", "X"):
            raise error


@pytest.mark.parametrize(
    "part", ["checkpoint.tensors._float32", "convolution.DepthwiseConvolution._set"]
)
def test_a_process_without_room_for_the_weights_refuses_the_file(tmp_path, monkeypatch, part):
    def fail(*_, **__):
        raise MemoryError

    edgeconv.DepthwiseConvolution(2, 3, causal=True).save(tmp_path / "x.npz")
    monkeypatch.setattr(f"edgeconv.{part}", fail)
    with pytest.raises(CheckpointError, match="NumPy npz: the process must have the memory"):
        edgeconv.load(tmp_path / "x.npz")


def test_the_documentation_states_every_limit():
    table = dict(re.findall(r"^\| `(\w+\.\w+)` \| ([\d,]+) \|", DOCUMENT.read_text(), re.MULTILINE))
    stated = {name: int(value.replace(",", "")) for name, value in table.items()}
    found = {}
    for path in [*PACKAGE.glob("*.py"), *map(PACKAGE.parent.joinpath, OTHERS)]:
        source = path.read_text()
        names = re.findall(r"^([A-Z_]+) = (?:2\*\*)?[\d_]+(?:  #.*)?$", source, re.MULTILINE)
        package = "edgeconv" if path.name in OTHERS else "edgeconv.checkpoint"
        module = importlib.import_module(f"{package}.{path.stem}")
        found |= {f"{path.stem}.{name}": getattr(module, name) for name in names}
    others = {
        *("archive.CHUNK", "converted.VERSION", "legacy.VERSION"),
        *("error.SHOWN_CHARACTERS", "tensors.PREFIXES_SHOWN"),
    }
    assert stated == {name: value for name, value in found.items() if name not in others}


def test_the_code_of_the_documentation_runs(monkeypatch):
    monkeypatch.chdir(DOCUMENT.parents[1])
    namespace = {}
    for source in re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S):
        exec(source, namespace)
    assert namespace["weight"].shape == (32, 1, 31)
