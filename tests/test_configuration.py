"""ESPnet's configuration: what it states is used, what contradicts it is refused."""

import os
import pathlib
import sys

import numpy as np
import pytest

from edgeconv import CheckpointError, DepthwiseConvolution, cli, load_all
from edgeconv import convert as convert_all

# ESPnet 202511 wrote this file: `python -m espnet2.bin.asr_transducer_train --dry_run true`.
WRITTEN = pathlib.Path(__file__).parent / "data" / "espnet-config.yaml"
REMEDY = "; give the config.yaml that ESPnet wrote beside the checkpoint"


def convert(*files, **options):
    """Convert convolutions; the configuration states whether they are causal."""
    return convert_all(*files, **options, only_convolutions=True)


@pytest.fixture
def config(tmp_path):
    """Return where to write a configuration."""
    return tmp_path / "config.yaml"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "w.npz"


@pytest.fixture
def source(tmp_path):
    """Return a checkpoint with two convolutions."""
    state = DepthwiseConvolution(2, 3, rng=0).state_dict()
    names = ("encoder.blocks.0.conv_mod", "anything")
    arrays = {f"{name}.{key}": array for name in names for key, array in state.items()}
    np.savez(tmp_path / "source.npz", **arrays)
    return tmp_path / "source.npz"


def transducer(main="{}"):
    return f"encoder_conf: {{main_conf: {main}, body_conf: [{{block_type: conformer}}]}}"


def test_what_espnet_writes(source, target):
    assert len(convert(source, target, config=str(WRITTEN))) == 2
    assert all(conv.causal for conv in load_all(target).values())
    convert(source, target, prefixes=["anything"], causal=True, config=WRITTEN)
    assert list(load_all(target)) == ["anything"]


@pytest.mark.parametrize(
    ("text", "causal"),
    [
        ("encoder_conf: {body_conf: []}", False),
        (transducer("{}"), False),
        (transducer("{dynamic_chunk_training: false}"), False),
        (transducer("{dynamic_chunk_training: True}"), True),
    ],
)
def test_causal(text, causal, source, config, target, tmp_path):
    config.write_text(text)
    convert(source, target, config=config, causal=np.bool_(causal))
    assert {conv.causal for conv in load_all(target).values()} == {causal}
    convert(target, tmp_path / "again.npz", config=config)
    contradiction = f"{not causal} by `causal`, {causal} by `config`"
    with pytest.raises(CheckpointError, match=contradiction):
        convert(source, target, config=config, causal=not causal)
    convert(source, tmp_path / "other.npz", causal=not causal)
    with pytest.raises(CheckpointError, match=f"{not causal} by the file, {causal} by `config`"):
        convert(tmp_path / "other.npz", target, config=config)


def test_another_task_is_named(source, config, target, capsys):
    config.write_text("encoder: conformer\nencoder_conf: {output_size: 256, cnn_module_kernel: 31}")
    command = ["convert", str(source), str(target), "--only-convolutions"]
    with pytest.raises(CheckpointError, match=r"asr_transducer.*'conformer';.* leave `config` out"):
        convert(source, target, config=config)
    assert cli.main([*command, "--config", str(config)]) == 1
    assert "leave --config out and pass --causal or --no-causal" in capsys.readouterr().err


WRONG = {
    "empty": "",
    "a list": "[1]",
    "main_conf": transducer("[]"),
    "causal": transducer("{dynamic_chunk_training: perhaps}"),
    "causal, no text": transducer("{dynamic_chunk_training: [true]}"),
    "no YAML": "a: b: c",
    "two documents": "a\n---\nb",
    "binary": "\0",
    "code": "!!python/object/apply:os.system [exit 1]",
    "an alias": f"a: &a [1]\nb: *a\n{transducer()}",
    "deep": "[" * 10_000,
    "deep blocks": "- " * 10_000,
    "long": f"{transducer()}  # {'a' * 2**20}",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_no_configuration_of_a_transducer(wrong, config, source, target):
    config.write_text(WRONG[wrong])
    with pytest.raises(CheckpointError, match=f"^{config}: ") as caught:
        convert(source, target, config=config)
    assert str(caught.value).endswith(REMEDY)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    assert not target.exists()


def test_files_that_cannot_be_read(config, source, target, tmp_path):
    with pytest.raises(FileNotFoundError):
        convert(source, target, config=config)
    os.mkfifo(config)
    for path in (tmp_path, config):
        with pytest.raises(CheckpointError, match="must be a file"):
            convert(source, target, config=path)


def test_a_configuration_with_many_tokens(config, source, target):
    tokens = [chr(0x4E00 + index) for index in range(5_000)]
    config.write_text("\n- ".join(["token_list:", *tokens]) + "\n" + transducer())
    assert len(convert(source, target, config=config)) == 2


def test_without_pyyaml(config, source, target, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    command = ["convert", str(source), str(target), "--only-convolutions"]
    with pytest.raises(ImportError, match="run `pip install pyyaml`"):
        convert(source, target, config=config)
    assert cli.main([*command, "--config", str(config)]) == 1
    assert "pip install pyyaml" in capsys.readouterr().err
