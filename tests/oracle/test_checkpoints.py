"""What PyTorch 2.13 saves is read exactly, by a reader that has never seen PyTorch."""

import argparse
import datetime
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import edgeconv
from edgeconv import CheckpointError
from edgeconv.checkpoint import read_checkpoint
from edgeconv.weights import find_convolutions

REAL = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
]


def expected(tensor):
    tensor = tensor.detach().resolve_neg()
    small = tensor.dtype == torch.bfloat16 or str(tensor.dtype).startswith("torch.float8")
    return (tensor.float() if small else tensor).numpy()


def check(path, tensors):
    checkpoint = read_checkpoint(path)
    assert list(checkpoint) == list(tensors)
    for name, tensor in tensors.items():
        array = expected(tensor)
        assert checkpoint.spec(name) == (str(tensor.dtype).removeprefix("torch."), array.shape)
        assert checkpoint[name].dtype == array.dtype
        kind = array.dtype.kind
        assert np.array_equal(checkpoint[name], array, equal_nan=kind == "f"), name


def of(dtype, count=256):
    if dtype == torch.bool:
        return torch.arange(count) % 3 == 0
    raw = torch.arange(count * dtype.itemsize, dtype=torch.uint8)
    return raw.view(dtype)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_every_real_type(tmp_path, dtype):
    tensors = {"x": of(dtype), "empty": of(dtype)[:0].reshape(0, 3), "scalar": of(dtype)[7].clone()}
    torch.save(tensors, tmp_path / "x.pth")
    check(tmp_path / "x.pth", tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_parameters_and_ties(tmp_path, protocol):
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
        "tied": base,
        "parameter": torch.nn.Parameter(base[0]),
        "tagged": tagged,
        "attribute": attribute,
        "buffer": torch.nn.Buffer(torch.randn(2)),
    }
    torch.save(tensors, tmp_path / "x.pth", pickle_protocol=protocol)
    check(tmp_path / "x.pth", tensors)


def test_a_training_checkpoint(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, groups=4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4, 9)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(),
        "args": argparse.Namespace(lr=1e-3, path=pathlib.Path("x")),
        "reporter": {1: datetime.timedelta(seconds=3), "loss": np.float64(2)},
        "rng": torch.get_rng_state(),
        "shape": model[0].weight.shape,
        "dtype": torch.float16,
        "device": torch.device("cpu"),
    }
    torch.save(state, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    for name, tensor in model.state_dict().items():
        assert np.array_equal(checkpoint[f"model.{name}"], tensor.numpy())
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert np.array_equal(checkpoint["optimizer.state.0.exp_avg"], moment.numpy())
    assert np.array_equal(checkpoint["rng"], state["rng"].numpy())
    assert find_convolutions(checkpoint) == [("model.0", 4, 3)]
    module = edgeconv.DepthwiseConvolution.from_state_dict(checkpoint, "model.0", causal=True)
    assert np.array_equal(module.weight, model[0].weight.detach().numpy())


def test_files_without_checksums(tmp_path):
    tensors = {"x": torch.randn(100)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    check(tmp_path / "x.pth", tensors)


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_listed(tmp_path):
    tensors = {
        "x": torch.randn(2),
        "complex": torch.randn(2, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "meta": torch.zeros(3, device="meta"),
        "nested": torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
    }
    torch.save(tensors, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert list(checkpoint) == ["x"]
    found = ["complex64", "sparse float32", "sparse float32", "qint8", "'meta", "'nested_tensor'"]
    for name, dtype in zip(list(tensors)[1:], found, strict=True):
        with pytest.raises(CheckpointError, match=f"'{name}' must be a Boolean.*found {dtype}"):
            checkpoint[name]


@pytest.mark.filterwarnings("ignore")
def test_other_files_of_pytorch_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, groups=4))
    path = tmp_path / "x.pth"
    torch.save(model, path)
    with pytest.raises(
        CheckpointError, match=r"a whole pickled module, 'torch\.nn\.modules\.container"
    ):
        read_checkpoint(path)
    torch.jit.script(model).save(path)
    with pytest.raises(CheckpointError, match="a TorchScript archive"):
        read_checkpoint(path)
    torch.export.save(torch.export.export(model, (torch.zeros(1, 4, 9),)), path)
    with pytest.raises(CheckpointError, match=r"a torch\.export archive"):
        read_checkpoint(path)
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"a file of PyTorch before 1\.6"):
        read_checkpoint(path)


def test_safetensors_written_by_pytorch(tmp_path):
    known = [dtype for dtype in REAL if "fnuz" not in str(dtype)]
    tensors = {str(dtype): of(dtype) for dtype in known}
    save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert set(checkpoint) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.spec(name).dtype == name.removeprefix("torch.")
        array = expected(tensor)
        assert np.array_equal(checkpoint[name], array, equal_nan=array.dtype.kind == "f")


def test_tensors_of_pytorch_in_a_state_dict():
    module = torch.nn.Conv1d(4, 4, 3, groups=4)
    loaded = edgeconv.DepthwiseConvolution.from_state_dict(module.state_dict(), causal=True)
    assert np.array_equal(loaded.weight, module.weight.detach().numpy())
    assert find_convolutions(module.state_dict()) == [("", 4, 3)]
    parameters = {name: torch.nn.Parameter(value) for name, value in module.state_dict().items()}
    small = {name: value.bfloat16() for name, value in module.state_dict().items()}
    for state, found in (
        (parameters, "a Parameter of torch.float32"),
        (small, "a Tensor of torch.bfloat16"),
    ):
        with pytest.raises(CheckpointError, match=f"found {found} .*; pass `tensor.detach"):
            edgeconv.DepthwiseConvolution.from_state_dict(state, causal=True)
