"""What PyTorch 2.13 saves is read exactly, by a reader that has never seen PyTorch."""

import argparse
import collections
import datetime
import json
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from attacks import payloads
from attacks.payloads import PAYLOADS
from safetensors.torch import save_file

from edgeconv.checkpoint import CheckpointError, read_checkpoint

# Every type that PyTorch has; which of them it saves is asked of it.
DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str
)
REAL = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.fixture
def save(tmp_path):
    """Save as PyTorch does by default."""

    def saved(value, **options):
        path = tmp_path / "x.pth"
        torch.save(value, path, **options)
        return path

    return saved


def expected(tensor):
    tensor = tensor.detach().resolve_neg()
    small = tensor.dtype == torch.bfloat16 or str(tensor.dtype).startswith("torch.float8")
    return (tensor.float() if small else tensor).numpy()


def check(path, tensors):
    checkpoint = read_checkpoint(path)
    assert list(checkpoint) == list(tensors)
    for name, tensor in tensors.items():
        array = expected(tensor)
        assert checkpoint.entries[name][:2] == (
            str(tensor.dtype).removeprefix("torch."),
            array.shape,
        )
        assert checkpoint[name].dtype == array.dtype
        kind = array.dtype.kind
        assert np.array_equal(checkpoint[name], array, equal_nan=kind == "f"), name


def check_loaded(path):
    """Compare with everything that `torch.load` finds in containers."""
    tensors = dict(walk(torch.load(path, weights_only=False)))
    check(path, tensors)
    return tensors


def walk(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(child, f"{name}.{key}" if name else str(key))


def of(dtype, count=256):
    if dtype == torch.bool:
        return torch.arange(count) % 3 == 0
    if str(dtype).startswith("torch.quint"):
        ones = torch.ones(4)
        return torch.quantize_per_channel(torch.ones(4, 4), ones, ones - 1, 0, dtype)
    if str(dtype).startswith("torch.qint"):
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, dtype)
    raw = torch.arange(count * dtype.itemsize, dtype=torch.uint8)
    return raw.view(dtype)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_every_real_type(save, dtype):
    tensors = {"x": of(dtype), "empty": of(dtype)[:0].reshape(0, 3), "scalar": of(dtype)[7].clone()}
    check(save(tensors), tensors)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(REAL), key=str), ids=str)
def test_every_other_type_is_named_when_asked_for(save, dtype):
    try:
        path = save({"x": of(dtype), "y": torch.ones(2)})
    except KeyError:
        # PyTorch itself does not save integers of fewer than 8 bits.
        assert str(dtype).removeprefix("torch.").removeprefix("u") in [f"int{n}" for n in range(8)]
        return
    checkpoint = read_checkpoint(path)
    assert list(checkpoint) == ["y"]
    assert checkpoint["y"].tolist() == [1, 1]
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"'x' must be a .* float tensor, found {name}; "):
        checkpoint["x"]


class Tagged(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_parameters_and_ties(save, protocol):
    base = torch.randn(6, 4, 5)
    tagged = torch.nn.Parameter(torch.randn(3))
    tagged.tag = "x"
    attribute = torch.randn(2)
    attribute.tag = "y"
    tensors = {
        "permuted": base.permute(2, 0, 1),
        "stepped": base[::2, 1:, ::3],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "overlapping": torch.arange(9.0).as_strided((3, 3), (2, 1)),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "real": torch.randn(3, dtype=torch.complex64).real,
        "empty": torch.empty(0),
        "hollow": torch.empty(3, 0, 2),
        "scalar": torch.tensor(2.5),
        "tied": base,
        "parameter": torch.nn.Parameter(base[0]),
        "tagged": tagged,
        "attribute": attribute,
        "buffer": torch.nn.Buffer(torch.randn(2)),
        "subclass": torch.randn(2).as_subclass(Tagged),
    }
    check(save(tensors, pickle_protocol=protocol), tensors)


def trained():
    """Return a model, its optimizer and its scheduler after a step."""
    model = torch.nn.Sequential(
        torch.nn.Conv1d(4, 4, 3, groups=4), torch.nn.BatchNorm1d(4), torch.nn.Linear(9, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    model(torch.randn(2, 4, 11)).sum().backward()
    optimizer.step()
    scheduler.step(1.0)
    return model, optimizer, scheduler


def test_a_training_checkpoint(save):
    model, optimizer, scheduler = trained()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=1e-3, path=pathlib.Path("x")),
        "reporter": {1: datetime.timedelta(seconds=3), "loss": np.float64(2), "x": np.arange(3)},
        "rng": torch.get_rng_state(),
        "python": random.getstate(),
        "shape": model[0].weight.shape,
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "unknown": [collections.Counter("aab"), Unknown(), print, {1, 2}, 2**100],
    }
    path = save(state)
    assert {"model.0.weight", "optimizer.state.0.exp_avg", "rng"} <= check_loaded(path).keys()


class Unknown:
    """An object of a class that the reader does not know."""


def test_checkpoints_of_espnet(save):
    model, optimizer, scheduler = trained()
    # What `espnet2.train.reporter.Reporter.state_dict` returns.
    stats = {"loss": np.float64(2), "acc": float("nan"), "time": datetime.timedelta(seconds=3)}
    reporter = {"stats": {1: {"train": stats, "valid": stats}}, "epoch": 1}
    state = {
        "model": model.state_dict(),
        "reporter": reporter,
        "optimizers": [optimizer.state_dict()],
        "schedulers": [scheduler.state_dict(), None],
        "scaler": None,
    }
    assert "optimizers.0.state.0.max_exp_avg_sq" in check_loaded(save(state))
    averaged = {
        name: tensor.double().mean(0)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    check(save(averaged), averaged)  # valid.loss.ave.pth


def test_checkpoints_of_lightning(save):
    model, optimizer, _ = trained()
    name = "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_epochs': 1}"
    state = {
        "epoch": 1,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"net.{n}": t for n, t in model.state_dict().items()},
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {name: {"kth_value": torch.tensor(float("inf")), "dirpath": "a/b"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"_step_count": 3, "_last_lr": [1e-3]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"cfg": argparse.Namespace(path=pathlib.Path("x"))},
    }
    assert "state_dict.net.0.weight" in check_loaded(save(state))


def test_files_without_checksums(tmp_path):
    tensors = {"x": torch.randn(100)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    check(tmp_path / "x.pth", tensors)


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_listed(save):
    tensors = {
        "x": torch.randn(2),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "channels": of(torch.quint8),
        "meta": torch.zeros(3, device="meta"),
        "nested": torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
    }
    checkpoint = read_checkpoint(save(tensors))
    assert list(checkpoint) == ["x"]
    for name, found in (
        ("sparse", "sparse_tensor; save its `to_dense"),
        ("csr", "sparse_tensor; save its `to_dense"),
        ("quantized", "qint8; save its `dequantize"),
        ("channels", "quint8; save its `dequantize"),
        ("meta", "meta_tensor_no_storage; convert it"),
        ("nested", "nested_tensor; convert it"),
    ):
        with pytest.raises(CheckpointError, match=f"'{name}' must be a Boolean.*found {found}"):
            checkpoint[name]


@pytest.mark.filterwarnings("ignore")
def test_the_remedies_for_other_files_of_pytorch_work(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, groups=4))
    path, target = tmp_path / "x.pt", tmp_path / "x.pth"

    def remedied(found, state):
        with pytest.raises(CheckpointError, match=found):
            read_checkpoint(path)
        torch.save(state, target)
        check(target, dict(model.state_dict()))

    torch.jit.script(model).save(path)
    found = r"a TorchScript archive; save `torch\.jit\.load\(path\)\.state_dict\(\)`"
    remedied(found, torch.jit.load(path).state_dict())
    program = torch.export.export(model, (torch.zeros(1, 4, 9),))
    path = tmp_path / "x.pt2"
    torch.export.save(program, path)
    found = r"a torch\.export archive; save `torch\.export\.load\(path\)\.state_dict`"
    remedied(found, torch.export.load(path).state_dict)
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    found = r"PyTorch's format before 1\.6; load it and `torch\.save` it again"
    remedied(found, torch.load(path))
    torch.save(model, path)
    found = r"a pickled module, .*save `model\.state_dict\(\)` instead"
    remedied(found, torch.load(path, weights_only=False).state_dict())


def test_the_remedy_for_arrays_of_numpy_works(save):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    for protocol in (2, 5):
        found = r"'w' must be a .*, found a NumPy array; save `torch\.from_numpy\(array\)` instead"
        with pytest.raises(CheckpointError, match=found):
            read_checkpoint(save({"w": weight}, pickle_protocol=protocol))
    check(save({"w": torch.from_numpy(weight)}), {"w": torch.from_numpy(weight)})


def test_safetensors_written_by_pytorch(tmp_path):
    tensors = {str(dtype): of(dtype) for dtype in REAL}
    save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert set(checkpoint) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.entries[name].dtype == name.removeprefix("torch.")
        array = expected(tensor)
        assert np.array_equal(checkpoint[name], array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize(
    ("make", "marks"),
    [(make, loader) for make, _, loader in PAYLOADS.values() if loader == "torch"],
)
def test_the_payload_is_live(make, marks, tmp_path):
    path, marker = tmp_path / "file", tmp_path / "marker"
    path.write_bytes(make(str(marker)))
    command = [sys.executable, payloads.__file__]
    jobs = json.dumps([(marks, str(path))]).encode()
    subprocess.run(command, input=jobs, timeout=300, check=True, capture_output=True)
    assert marker.exists()
