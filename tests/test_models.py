"""Converted models: what is written is what is loaded; what does not fit is named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from encoder_states import Numbers
from encoder_states import encoder as encoder_state
from reference import same_bits

from edgeconv import (
    CheckpointError,
    VerificationError,
    cli,
    convert,
    find_convolutions,
    load_all,
    load_encoder,
    load_recogniser,
    verify,
)
from edgeconv.encoder import Encoder, EncoderStream
from edgeconv.layers.parameters import with_8_bits

WEIGHTS = Path(__file__).parents[1] / "weights"
X = np.random.default_rng(0).standard_normal((1, 120, 20), np.float32)


@pytest.fixture
def model(tmp_path):
    """Return a whole transducer's checkpoint, its configuration's path and what it holds."""
    state, configuration = encoder_state()
    whole = Numbers(1)
    whole.update({f"encoder.{name}": array for name, array in state.items()})
    whole.linear("joint_network.lin_out", 6, 24)
    whole.linear("decoder.embed", 5, 8)
    whole["normalize.mean"] = np.arange(20.0)
    whole.linear("ctc_lin", 5, 24)  # of the training
    whole["encoder.steps"] = np.array(7)
    configuration |= {"token_list": ["<blank>", "ö", "no"], "token_type": "bpe", "decoder": "rnn"}
    configuration["batch_size"] = 20
    configuration["normalize_conf"] = {"stats_file": "exp/stats.npz", "norm_vars": True}
    np.savez(tmp_path / "model.npz", **whole)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration))
    return tmp_path / "model.npz", tmp_path / "config.yaml", whole


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target.npz"


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_model_comes_back(weights, model, target):
    path, config, whole = model
    convert(path, target, config=config, weights=weights)
    state = with_8_bits(whole) if weights == "int8" else whole
    expected = Encoder(state, encoder_state()[1])(X)
    assert same_bits(load_encoder(target)(X), expected)
    assert load_encoder(target).causal
    with np.load(target, allow_pickle=False) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("edgeconv")))
    assert {array.dtype.name for array in arrays.values()} == {"float32", weights}
    others = {"ctc_lin.weight", "ctc_lin.bias", "encoder.steps"}
    assert {name for name in arrays if not name.endswith("_scale")} == set(whole) - others
    assert arrays["decoder.embed.weight"].dtype == np.float32
    assert arrays["joint_network.lin_out.weight"].dtype == weights
    assert (header["version"], header["holds"]) == (2, "encoder")
    kept = header["configuration"]
    assert kept["token_list"] == ["<blank>", "ö", "no"]
    assert kept["normalize_conf"] == {"norm_vars": True}
    assert "batch_size" not in kept
    again = target.with_name("again.npz")
    convert(path, again, config=config, weights=weights)
    assert again.read_bytes() == target.read_bytes()


def test_convolutions_of_a_model_are_usable_alone(model, target):
    path, config, whole = model
    found = convert(path, target, config=config)
    assert found == find_convolutions(target) == find_convolutions(path)
    for prefix, conv in load_all(target).items():
        assert conv.causal
        weight = whole.get(f"{prefix}.weight", whole.get(f"{prefix}.conv.weight"))
        assert np.array_equal(conv.weight, weight)
    alone = target.with_name("alone.npz")
    for options in ({"prefixes": [found[0].prefix]}, {"only_convolutions": True}):
        convert(target, alone, **options)
        for given in (None, config):
            with pytest.raises(CheckpointError, match=r"convolutions alone; convert .*`config`"):
                load_encoder(alone, given)


def test_an_encoder_alone(target, tmp_path):
    state, configuration = encoder_state(causal=False)
    np.savez(tmp_path / "e.npz", **state)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(configuration))
    convert(tmp_path / "e.npz", target, config=tmp_path / "c.yaml")
    assert same_bits(load_encoder(target)(X), Encoder(state, configuration)(X))
    assert list(verify(target))[-1] == "encoder"
    small = tmp_path / "small.npz"
    convert(target, small, weights="int8")  # a converted model brings its configuration
    assert small.stat().st_size < target.stat().st_size
    assert verify(small)["encoder"] != verify(target)["encoder"]


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_wrong_weight_fails_the_proof(weights, model, target):
    path, config, _ = model
    convert(path, target, config=config, weights=weights)
    recorded = verify(target)
    assert recorded == verify(target, seed=5)
    assert verify(load_encoder(target)) == {"": recorded["encoder"]}
    with np.load(target) as archive:
        arrays = dict(archive)
    arrays["encoder.encoders.blocks.0.merge_proj.weight"].view(np.uint8).flat[-1] ^= 1
    np.savez(target, **arrays)
    with pytest.raises(VerificationError, match=r"^Encoder\(.* that the file records, got"):
        verify(target)
    verify(target, next(iter(load_all(target))))


@pytest.mark.parametrize(
    ("owner", "name", "way"),
    [
        (Encoder, "__call__", "in one piece"),
        (EncoderStream, "flush", "in one piece"),
        (EncoderStream, "process", r"in random pieces \(seed 3\)"),
    ],
)
def test_a_wrong_bit_of_one_way_to_run(owner, name, way, model, target, monkeypatch):
    path, config, _ = model
    convert(path, target, config=config)
    right, calls = getattr(owner, name), []

    def wrong(self, *arguments):
        y = right(self, *arguments)
        calls.append(y)
        if y.size and len(calls) > 9 * (name == "process"):
            y.view(np.uint32).flat[-1] ^= 1
        return y

    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(VerificationError, match=f"that the file records, got .* {way};"):
        verify(target, seed=3)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"encoder.embed.output.weight": None}, {}, "encoder.embed.output.weight must"),
        (
            {"encoder.embed.conv.0.weight": np.ones((5, 1, 3, 3), int)},
            {},
            "conv.0.weight. must be f",
        ),
        ({"encoder.embed.output.bias": np.ones(25)}, {}, r"encoder.embed.output.bias .*shape \(24"),
        ({"decoder.embed.bias": np.array([1e39])}, {}, "decoder.embed.bias. must fit float32"),
        ({}, {"causal": False}, "False by `causal`, True by `config`"),
        ({}, {"weights": "int4"}, "`weights` must be 'float32' or 'int8', got 'int4'"),
        ({}, {"weights": "int8", "only_convolutions": True}, "must be 'float32' for convolutions"),
        ({}, {"weights": "int8", "prefixes": ["a"]}, "must be 'float32' for convolutions"),
    ],
)
def test_what_does_not_make_a_model(change, options, message, model, target):
    path, config, whole = model
    changed = {name: array for name, array in {**whole, **change}.items() if array is not None}
    np.savez(path, **changed)
    with pytest.raises(ValueError, match=message):
        convert(path, target, config=config, **options)
    assert not target.exists()


def test_which_configuration(model, target):
    path, config, _ = model
    with pytest.raises(CheckpointError, match="must come with its configuration, found none"):
        load_encoder(path)
    convert(path, target, config=config, weights="int8")
    for call in (load_encoder, lambda path, config: convert(path, "new.npz", config=config)):
        with pytest.raises(ValueError, match="`config` must not be given for a converted model"):
            call(target, config)
    with pytest.raises(CheckpointError, match="weights of floats, found int8; convert the file"):
        convert(target, target.with_name("new.npz"))
    text = config.read_text()
    for load_model, old, new, message in (
        (load_recogniser, "token_type: bpe", "token_type: phn", "token_type must be one of"),
        (load_encoder, "type: conformer", "type: branchformer", "must be a branchformer"),
        (load_recogniser, "body_conf", "output_size", "another task"),
    ):
        config.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=f"^{config}: .*{message}"):  # not the checkpoint
            load_model(path, config)
    config.write_text(text.replace("norm_vars: true", "date: 2024-05-01"))
    with pytest.raises(CheckpointError, match=f"^{config}: .*must be of texts, numbers"):
        convert(path, target, config=config)


def test_inspect_names_a_configuration_without_a_list_of_tokens(model, capsys):
    path, config, _ = model
    config.write_text(f"{config.read_text()}\ntoken_list: 1\n")
    assert cli.main(["inspect", str(path), "--config", str(config)]) == 1
    assert f"{config}: token_list must be a list of tokens, found 1;" in capsys.readouterr().err


def test_the_command_line(model, target, capsys):
    path, config, _ = model
    arguments = ["convert", str(path), str(target)]
    assert cli.main([*arguments, "--config", str(config), "--weights", "int8"]) == 0
    assert "Encoder(20, 24, 1 EBranchformer, 1 Conformer" in capsys.readouterr().out
    assert cli.main(["inspect", str(target)]) == 0
    said = capsys.readouterr().out
    for text in (
        r"encoder +1 x EBranchformer of 24, 2 heads, linear 40, kernel 7\n +1 x Conformer of 24",
        r"input +conv2d, 5 and 6 channels|input +conv2d, 6 channels",
        r"streams +yes",
        r"missing +frontend\n",
        "next: edgeconv verify",
    ):
        assert re.search(text, said), said
    assert cli.main(["verify", str(target)]) == 0
    assert re.search(r"\nencoder +[0-9a-f]{64}\n", capsys.readouterr().out)
    assert cli.main([*arguments, "--causal"]) == 0
    assert "with --config config.yaml it is the whole model" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "--config", str(config)]) == 0
    assert "streams     yes" in capsys.readouterr().out


def test_inspect_says_what_is_missing(model, capsys):
    path, config, whole = model
    names = ("encoder.embed.output.weight", "encoder.embed.output.bias", "normalize.mean")
    np.savez(path, **{name: array for name, array in whole.items() if name not in names})
    assert cli.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"missing +encoder.embed.output.\*, .*normalisation, configuration\n", said)
    config.write_text(config.read_text().replace("block_type: conformer", "block_type: conv1d"))
    assert cli.main(["inspect", str(path), "--config", str(config)]) == 1
    assert "block_type must be one of" in capsys.readouterr().err
