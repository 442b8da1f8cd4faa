"""What PyTorch 2.13 saves is read exactly, by a reader that has never seen PyTorch."""

import argparse
import collections
import datetime
import pathlib
import random
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import edgeconv
from edgeconv import CheckpointError
from edgeconv.checkpoint import read_checkpoint
from edgeconv.weights import find_convolutions

# Every type that PyTorch has; which of them it saves is asked of it.
DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str
)
REAL = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
]
FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    """Save in the format of today, and in the one before PyTorch 1.6."""

    def saved(value, **options):
        path = tmp_path / "x.pth"
        torch.save(value, path, **FORMATS[request.param], **options)
        assert read_checkpoint(path).format == f"PyTorch {request.param}"
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
        assert checkpoint.spec(name) == (str(tensor.dtype).removeprefix("torch."), array.shape)
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


@pytest.mark.filterwarnings("ignore")
def test_lazily_conjugated_tensors_are_refused_if_asked_for(save):
    path = save({"c": torch.randn(3, dtype=torch.complex64).conj(), "x": torch.ones(1)})
    checkpoint = read_checkpoint(path)
    assert list(checkpoint) == ["x"]
    with pytest.raises(CheckpointError, match=r"'c' must be .* found complex64; convert it"):
        checkpoint["c"]


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
    checkpoint = read_checkpoint(path)
    assert find_convolutions(checkpoint) == [("model.0", 4, 3)]
    module = edgeconv.DepthwiseConvolution.from_state_dict(checkpoint, "model.0", causal=True)
    assert np.array_equal(module.weight, model[0].weight.detach().numpy())


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


def test_checkpoints_of_icefall(save):
    model, optimizer, scheduler = trained()
    state = {
        "model": model.state_dict(),
        "model_avg": {n: t.double() for n, t in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "grad_scaler": {},
        "sampler": {"epoch": 3, "seed": 0, "shuffle": True},
        "batch_idx_train": 7,
        "best_valid_loss": float("inf"),
    }
    check_loaded(save(state))
    found = find_convolutions(save(state))
    assert [prefix for prefix, *_ in found] == ["model.0", "model_avg.0"]


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(save, prefix):
    state = {prefix + name: tensor for name, tensor in trained()[0].state_dict().items()}
    path = save(state)
    check(path, state)
    assert find_convolutions(path) == [(f"{prefix}0", 4, 3)]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_keeps_its_prefix(save):
    state = torch.compile(trained()[0]).state_dict()
    assert all(name.startswith("_orig_mod.") for name in state)
    check(save(state), state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("norm", "name", "remedy"),
    [
        (torch.nn.utils.weight_norm, "weight_g", "remove_weight_norm"),
        (
            torch.nn.utils.parametrizations.weight_norm,
            "parametrizations.weight.original0",
            "remove_parametrizations",
        ),
    ],
)
def test_weight_norm_is_read_as_it_stands(save, norm, name, remedy):
    state = {"a": {"conv": norm(torch.nn.Conv1d(4, 4, 3, groups=4)).state_dict()}}
    path = save(state)
    assert f"a.conv.{name}" in check_loaded(path)
    for call in (
        lambda: edgeconv.load(path, causal=True),
        lambda: edgeconv.load(path, "a", causal=True),
    ):
        with pytest.raises(CheckpointError, match=f"call PyTorch's `{remedy}` on the module"):
            call()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("with_folders", [False, True])
def test_archives_packed_again(tmp_path, compression, with_folders):
    tensors = {name: torch.randn(50, 4) for name in "abc"}
    path, packed = tmp_path / "x.pth", tmp_path / "y.pth"
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for name in ["x/", "x/data/"] * with_folders + sorted(source.namelist(), reverse=True):
            target.writestr(name, b"" if name.endswith("/") else source.read(name))
    check(packed, tensors)


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
        ("sparse", "sparse float32; save its `to_dense"),
        ("csr", "sparse float32; save its `to_dense"),
        ("quantized", "qint8; save its `dequantize"),
        ("channels", "quint8; save its `dequantize"),
        ("meta", "'meta_tensor_no_storage'; convert it"),
        ("nested", "'nested_tensor'; convert it"),
    ):
        with pytest.raises(CheckpointError, match=f"'{name}' must be a Boolean.*found {found}"):
            checkpoint[name]


@pytest.mark.filterwarnings("ignore")
def test_a_pickled_module_is_refused(save):
    for value in (trained()[0], {"epoch": 1, "model": trained()[0]}):
        with pytest.raises(
            CheckpointError,
            match=r"a whole pickled module, 'torch\.nn\..*save `model\.state_dict\(\)`",
        ):
            save(value)


@pytest.mark.filterwarnings("ignore")
def test_other_files_of_pytorch_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, groups=4))
    path = tmp_path / "x.pth"
    torch.jit.script(model).save(path)
    remedy = r"load it in PyTorch and save `model\.state_dict\(\)`"
    with pytest.raises(CheckpointError, match=f"a TorchScript archive; {remedy}"):
        read_checkpoint(path)
    torch.export.save(torch.export.export(model, (torch.zeros(1, 4, 9),)), path)
    with pytest.raises(CheckpointError, match=rf"a torch\.export archive; {remedy}"):
        read_checkpoint(path)
    with torch.package.PackageExporter(path) as exporter:
        exporter.intern("**")
        exporter.save_pickle("model", "weights.pkl", model.state_dict())
    with pytest.raises(CheckpointError, match=rf"a torch\.package archive; {remedy}"):
        read_checkpoint(path)
    torch.save(model.state_dict(), tmp_path / "model_weights.ckpt")
    for mode in ("w", "w:gz"):
        with tarfile.open(path, mode) as archive:
            archive.add(tmp_path / "model_weights.ckpt", "./model_weights.ckpt")
        with pytest.raises(CheckpointError, match="unpack it, and give the path of the checkpoint"):
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
