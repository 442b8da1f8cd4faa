"""The encoder: every way to run it gives the same bits; what it cannot be is refused by name."""

import hashlib
import json
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import yaml
from encoder_states import encoder as encoder_state
from laws import refused_meanwhile, run, verify_contract
from reference import same_bits

from edgeconv import CheckpointError
from edgeconv.encoder import Encoder, load_encoder
from edgeconv.kernels import attention, dense, pointwise, ring
from edgeconv.layers.parameters import with_8_bits

INPUTS = [(False, 4), (True, 4), (True, 6)]
GOLDEN = Path(__file__).with_name("data") / "encoder.json"


def features(n_frames, seed=0):
    return np.random.default_rng(seed).standard_normal((n_frames, 20), np.float32)


def build(*arguments, **options):
    return Encoder(*encoder_state(*arguments, **options))


@pytest.mark.parametrize(("is_vgg", "factor"), INPUTS)
@pytest.mark.parametrize("geometry", [(1, 0), (3, 2), (8, 32), (20, 5)])
def test_contract(is_vgg, factor, geometry):
    encoder = build(is_vgg=is_vgg, factor=factor)
    verify_contract(lambda: encoder.stream(*geometry), features(150))


def test_contract_with_eight_bits():
    state, configuration = encoder_state(("conformer", "branchformer", "ebranchformer"))
    encoder = Encoder(with_8_bits(state), configuration)
    verify_contract(lambda: encoder.stream(6, 7), features(150))
    y, expected = encoder(features(200)[None]), Encoder(state, configuration)(features(200)[None])
    noise = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    assert 1e-4 < noise < 0.05


def test_rows_are_encoded_as_if_alone():
    encoder, x = build(causal=False), np.stack([features(90, seed) for seed in range(4)])
    lengths = [90, 0, 41, 6]
    y, counts = encoder(x, lengths=lengths)
    assert counts.tolist() == [21, 0, 9, 0]
    for row, length, out in zip(x, lengths, y, strict=True):
        alone = encoder(row[None, :length])[0]
        assert same_bits(out[: len(alone)], alone)
        assert not out[len(alone) :].any()
    x[2, 41:] = np.nan
    assert same_bits(encoder(x, lengths=lengths)[0], y)
    assert same_bits(encoder(x[:1]), y[:1])
    assert encoder(x[:0]).shape == (0, 0, 24)


def test_one_chunk_of_everything_is_the_offline_run_without_its_first_embedding():
    encoder, x = build(("conformer",)), features(93)
    y = run(encoder.stream(chunk_size=400, left_context=10), [x])
    assert len(y) == len(encoder(x[None])[0]) - 1


def test_latency_is_what_the_grid_says():
    stream = build().stream(chunk_size=20, left_context=32)
    assert stream.latency == 76
    first = 75  # feature frames of 18 embeddings, of which the first is dropped
    assert len(stream.process(features(first - 1))) == 0
    assert len(stream.process(features(1))) == 17
    assert len(stream.process(features(79))) == 0
    assert len(stream.process(features(1))) == 20
    assert (stream.frames_in, stream.frames_out) == (155, 37)
    assert len(stream.flush()) == 0
    assert (stream.frames_in, stream.frames_out) == (0, 0)


def test_too_few_features_make_no_frames():
    stream = build().stream()
    for n_frames in (0, 1, 6, 7, 10):
        assert run(stream, [features(n_frames)]).shape == (0, 24)
    assert run(stream, [features(11)]).shape == (1, 24)


def test_streams_share_an_encoder():
    encoder, x = build(), np.stack([features(170, seed) for seed in range(3)])
    streams = [encoder.stream(4, 8) for _ in x]
    outputs = [[] for _ in x]
    for pieces in zip(*(np.split(row, [3, 50, 99]) for row in x), strict=True):
        for stream, out, piece in zip(streams, outputs, pieces, strict=True):
            out.append(stream.process(piece))
    for stream, out, row in zip(streams, outputs, x, strict=True):
        assert same_bits(np.concatenate([*out, stream.flush()]), run(encoder.stream(4, 8), [row]))


def test_memory_does_not_grow():
    """20,000 frames, in pieces of all lengths up to four chunks."""
    stream, x = build(is_vgg=True, factor=6).stream(4, 8), features(20_000)
    sizes, held = set(), []
    tracemalloc.start()
    for n, piece in enumerate(np.split(x, np.cumsum([1 + i % 64 for i in range(614)]))):
        stream.process(piece)
        sizes.add(stream.memory)
        waiting = sum(array.nbytes for array in stream.snapshot().values())
        if n % 16 == 0:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert stream.frames_in == 20_000
    assert len(sizes) == 1
    assert waiting < stream.memory < 10 * waiting
    assert max(held[20:]) < max(held[:20]) + 4096


def test_memory_is_what_a_stream_allocates():
    encoder = build()
    encoder.stream(20, 32)
    tracemalloc.start()
    small, large = encoder.stream(20, 0), encoder.stream(20, 3200)
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    allocated = sum(trace.size for trace in snapshot.traces)
    assert large.memory > 20 * small.memory
    assert 0.9 < allocated / (small.memory + large.memory) < 1.1


@pytest.mark.parametrize("norm", ["basic_norm", "rms_norm", "scale_norm"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "hardtanh", "leaky_relu", "identity"])
def test_options_reach_their_layers(norm, activation):
    state, configuration = encoder_state(("ebranchformer",))
    main = configuration["encoder_conf"]["main_conf"]
    main |= {"norm_type": norm, "conv_mod_norm_type": norm, "pos_wise_act_type": activation}
    for name in [name for name in state if ".norm" in name and name.endswith(".weight")]:
        layer = name.removesuffix(".weight")
        state.norm(layer, len(state[name]), norm)
    x = features(90)
    y = Encoder(state, configuration)(x[None])
    main["pos_wise_act_type"] = "swish"
    assert not np.allclose(y, Encoder(state, configuration)(x[None]))


def change(configuration, path, value):
    *outer, last = path.split(".")
    place = configuration
    for name in outer:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder_conf", {"output_size": 256}, "body_conf"),
        ("body_conf", [], "must have 0 blocks"),
        ("body_conf.0.block_type", "conv1d", "'conv1d'"),
        ("body_conf.0.block_type", "branchformer", "branchformer.*found 'ebranchformer'"),
        ("body_conf.0.num_blocks", 3, "must have 4 blocks.*found 2"),
        ("body_conf.0.heads", 3, "heads 3.*found 2"),
        ("body_conf.0.linear_size", 41, "linear_size 41.*found 40"),
        ("body_conf.0.depthwise_conv_kernel_size", 9, "depth_conv_kernel_size 9.*found 7"),
        ("body_conf.1.hidden_size", 32, "hidden_size 32.*found 24"),
        ("main_conf.simplified_att_score", True, "simplified_att_score"),
        ("main_conf.pos_wise_act_type", "mish", "pos_wise_act_type.*'mish'"),
        ("main_conf.norm_type", "batch_norm", "norm_type.*'batch_norm'"),
        ("input_conf.subsampling_factor", 2, "subsampling_factor must be 4: .*found 2"),
        ("input_conf.vgg_like", True, "vgg_like"),
        ("input_size", 40, "embed.output.weight must have shape"),
        ("input_size", "20", "input_size, or n_mels, must be an integer"),
        ("body_conf.0.num_blocks", "a", "num_blocks must be an integer"),
        ("body_conf.0.num_blocks", 10**9, "num_blocks must be an integer"),
        ("body_conf.0.block_type", ["x"], "block_type must be one of"),
        ("body_conf.0.norm_eps", "x", "norm_eps must be a number"),
        ("main_conf.after_norm_eps", [1], "after_norm_eps must be a number"),
        ("main_conf.swish_beta", "x", "swish_beta must be a number"),
        ("input_conf", [1], "input_conf must be a mapping"),
        ("input_conf.subsampling_factor", [4], "subsampling_factor must be 4: "),
        ("input_conf.conv_size", 64, "conv_size '?64.*found 6"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(path, value, message):
    state, configuration = encoder_state()
    is_outer = path in configuration
    change(configuration if is_outer else configuration["encoder_conf"], path, value)
    with pytest.raises(CheckpointError, match=message):
        Encoder(state, configuration)


KINDS = "ebranchformer", "conformer", "branchformer"


@pytest.mark.parametrize("name", encoder_state(KINDS)[0])
def test_a_tensor_that_is_not_right_is_named(name):
    state, configuration = encoder_state(KINDS)
    right, layer = state[name], name.rpartition(".")[0].removesuffix(".conv")
    large = np.full(right.shape, 1e39)
    for wrong in (np.repeat(right, 2), right[None, :1], right.astype(int), large):
        state[name] = wrong
        with pytest.raises(CheckpointError, match=layer):
            Encoder(state, configuration)
    place = "embed" if name.startswith("embed") else ".".join(name.split(".")[:3])
    for axis, size in enumerate(right.shape):
        for n in {size - 1, size + 1} - {0}:
            state[name] = np.take(right, range(n), axis, mode="wrap")
            with pytest.raises(CheckpointError, match=place):
                Encoder(state, configuration)
    del state[name]
    if name.endswith(".bias") and not re.search(r"norm|depthwise_conv\.", name):
        Encoder(state, configuration)  # none is zeros
    else:
        with pytest.raises(CheckpointError, match=f"{layer}|must be a"):
            Encoder(state, configuration)


def test_an_encoder_without_weights():
    with pytest.raises(CheckpointError, match=r"must have 2 blocks, .* found 0"):
        Encoder({}, encoder_state()[1])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 4), ValueError), ((4, -1), ValueError), ((2.0, 4), TypeError), (([3], 4), TypeError)],
)
def test_chunks_are_positive_integers(arguments, error):
    with pytest.raises(error, match="must"):
        build().stream(*arguments)


def test_an_encoder_that_sees_later_frames_is_not_streamed():
    with pytest.raises(ValueError, match="dynamic_chunk_training"):
        build(causal=False).stream()


@pytest.mark.parametrize(
    "x", [features(9), features(9)[None, :, :-1], np.ones((1, 9, 20), np.int16)]
)
def test_features_are_checked(x):
    with pytest.raises((TypeError, ValueError), match="`x` must"):
        build()(x)


def test_files(tmp_path):
    state, configuration = encoder_state()
    whole = {f"encoder.{name}": array for name, array in state.items()}
    whole["frontend.logmel.melmat"] = np.ones((257, 20), np.float32)
    del configuration["input_size"]
    path, config = tmp_path / "model.npz", tmp_path / "config.yaml"
    np.savez(path, **whole)
    config.write_text(yaml.safe_dump(configuration))
    x = features(60)[None]
    assert same_bits(load_encoder(path, config)(x), Encoder(*encoder_state())(x))
    for text, message in (("- 1", "mapping"), ("a: [", "YAML"), ("a: 1", "body_conf")):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=f"config.yaml.*{message}"):
            load_encoder(path, config)


def test_an_encoder_shows_what_it_is():
    assert "1 EBranchformer, 1 Conformer" in repr(build())
    encoder = build()
    assert (encoder.input_size, encoder.output_size, encoder.subsampling_factor) == (20, 24, 4)


def digests(threads=1):
    """Return a digest of what small encoders compute, float32 and 8 bits."""
    found = {}
    for is_vgg, factor in INPUTS:
        state, configuration = encoder_state(
            ("ebranchformer", "conformer", "branchformer"), factor=factor, is_vgg=is_vgg
        )
        for bits, weights in ((32, state), (8, with_8_bits(state))):
            encoder = Encoder(weights, configuration)
            digest = hashlib.sha256()
            stream = encoder.stream(5, 6, threads=threads)
            for y in (encoder(features(83)[None]), run(stream, [features(133)])):
                digest.update(y.astype("<f4").tobytes())
            found[f"{'vgg' if is_vgg else 'conv2d'} {factor}, {bits} bits"] = digest.hexdigest()
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_golden_digests(threads, monkeypatch):
    """The bits are those of the machine that wrote the file: `python tests/test_encoder.py`."""
    monkeypatch.setattr(dense, "SHARED", 0)  # also layers that are not worth two threads
    assert digests(threads) == json.loads(GOLDEN.read_text())


def test_another_thread_is_refused_meanwhile():
    encoder, x = build(), features(133)
    stream = encoder.stream(5, 6)
    state = stream.snapshot()
    calls = {
        "process": lambda: stream.process(x),
        "flush": stream.flush,
        "reset": stream.reset,
        "snapshot": stream.snapshot,
        "restore": lambda: stream.restore(state),
    }
    assert refused_meanwhile(stream.process, x[:50], calls) == set(calls)
    assert stream.frames_in == 50
    expected = run(encoder.stream(5, 6), [x])
    n_frames = stream.frames_out
    assert same_bits(run(stream, [x[50:]]), expected[n_frames:])


def test_threads_are_not_used_where_they_would_end_the_process(monkeypatch):
    monkeypatch.setattr(dense, "SHARED", 0)
    stream, x = build().stream(5, 6, threads=2), features(133)
    expected = run(stream, [x])
    monkeypatch.setattr(ring, "GATE", np.ones(1, np.int64))  # another parallel loop runs
    assert same_bits(run(stream, [x]), expected)
    assert ring.GATE.all()  # nobody went through, who would have opened it
    monkeypatch.undo()
    monkeypatch.setattr(dense, "SHARED", 0)
    if (child := os.fork()) == 0:  # OpenMP kills a forked process at a parallel loop
        os._exit(0 if same_bits(run(stream, [x]), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weights", [dict, with_8_bits])
def test_an_open_stream_asks_for_no_other_kernel(weights, threads, monkeypatch):
    kernels = [module.kernel for module in (attention, dense, pointwise, ring)]
    kernels += [dense.parallel_kernel, ring.parallel_kernel]
    for kernel in kernels:
        kernel.cache_clear()
    state, configuration = encoder_state()
    stream = Encoder(weights(state), configuration).stream(5, 6, threads=threads)
    asked = [kernel.cache_info().misses for kernel in kernels]
    monkeypatch.setattr(dense, "SHARED", 0)
    run(stream, [features(83)])
    assert [kernel.cache_info().misses for kernel in kernels] == asked


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (1.5, TypeError)])
def test_threads_are_counted(threads, error):
    with pytest.raises(error, match="`threads` must be"):
        build().stream(threads=threads)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(digests(), indent=1) + "\n")
