"""Batches whose rows come, go and differ in length; states that are kept and restored."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import same_bits
from strategies import arrays, modules, seeds, signals

from edgeconv import (
    CheckpointError,
    DepthwiseConvolution,
    Streams,
    StreamState,
    load,
    load_state,
    save_state,
)


@st.composite
def ragged(draw, conv):
    """A batch (B, T, C) and the number of valid frames of each row."""
    x = draw(signals(conv))
    rng = np.random.default_rng(draw(seeds))
    return x, rng.integers(0, x.shape[1] + 1, len(x))


@given(st.data())
def test_rows_of_any_lengths_stream_as_if_alone(data):
    conv = data.draw(modules())
    n_rows = data.draw(st.integers(1, 3))
    stream = conv.stream(batch_size=n_rows)
    heard = [[] for _ in range(n_rows)]
    given_back = [[] for _ in range(n_rows)]
    for _ in range(data.draw(st.integers(0, 6))):
        n_frames = data.draw(st.integers(0, 40))
        chunk = data.draw(arrays((n_rows, n_frames, conv.channels)))
        lengths = np.random.default_rng(data.draw(seeds)).integers(0, n_frames + 1, n_rows)
        before = stream.frames_out
        y, counts = stream.process(chunk, lengths=lengths)
        assert counts.dtype == np.int64
        assert counts.tolist() == (stream.frames_out - before).tolist()
        assert y.shape == (n_rows, counts.max(), conv.channels)
        for row in range(n_rows):
            heard[row].append(chunk[row, : lengths[row]])
            given_back[row].append(y[row, : counts[row]])
            assert (y[row, counts[row] :] == 0).all()
    assert stream.frames_in.tolist() == [sum(map(len, chunks)) for chunks in heard]
    left = np.minimum(stream.latency, stream.frames_in)
    rest = stream.flush()
    assert rest.shape == (n_rows, left.max(), conv.channels)
    nothing = np.empty((0, conv.channels), np.float32)
    for row in range(n_rows):
        assert (rest[row, left[row] :] == 0).all()
        streamed = np.concatenate([nothing, *given_back[row], rest[row, : left[row]]])
        whole = np.concatenate([nothing, *heard[row]])
        assert same_bits(streamed, conv(whole[None])[0][0])


@given(st.data())
def test_a_row_of_length_0_is_not_touched(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    stream = conv.stream(batch_size=len(x))
    stream.process(x)
    before = stream.snapshot()
    y, counts = stream.process(np.full_like(x, np.nan), lengths=[0] * len(x))
    assert y.shape == (len(x), 0, conv.channels)
    assert counts.tolist() == [0] * len(x)
    after = stream.snapshot()
    assert same_bits(after.frames, before.frames)
    assert after.frames_in.tolist() == before.frames_in.tolist()


@given(st.data())
def test_offline_lengths_are_the_safe_form_of_a_mask(data):
    conv = data.draw(modules())
    x, lengths = data.draw(ragged(conv))
    padding = np.arange(x.shape[1]) >= lengths[:, None]
    expected, _ = conv(x, mask=padding)
    expected[padding] = 0
    poisoned = x.copy()
    poisoned[padding] = np.nan
    y, cache = conv(poisoned, lengths=lengths)
    assert same_bits(y, expected)
    for row, length in enumerate(lengths):
        alone, last = conv(x[row : row + 1, :length])
        assert same_bits(y[row, :length], alone[0])
        if conv.causal:
            assert same_bits(cache[row], last[0])


@given(st.data())
def test_the_parallel_loop_knows_lengths_too(data):
    from edgeconv import parallel

    conv = data.draw(modules())
    x, lengths = data.draw(ragged(conv))
    expected, _ = conv(x, lengths=lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "PARALLEL_WORK", 0)
        assert same_bits(conv(x, lengths=lengths)[0], expected)


@given(st.data())
def test_a_row_starts_anew_while_the_others_go_on(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv, batch_sizes=st.just(3)))
    n = data.draw(st.integers(0, x.shape[1]))
    stream = conv.stream(batch_size=3)
    stream.process(x[:, :n])
    start_anew = data.draw(st.sampled_from([stream.reset, stream.flush]))
    result = start_anew(rows=[2, 0])
    if start_anew == stream.flush:
        whole = conv(x[:, :n])[0]
        assert same_bits(result, whole[[2, 0]][:, n - result.shape[1] :])
    assert stream.frames_in.tolist() == [0, n, 0]
    y, counts = stream.process(x[:, n:], lengths=[x.shape[1] - n] * 3)
    rest = stream.flush()
    for row, signal in enumerate((x[0, n:], x[1], x[2, n:])):
        left = min(stream.latency, len(signal))
        expected = conv(signal[None])[0][0]
        streamed = np.concatenate([y[row, : counts[row]], rest[row, :left]])
        assert same_bits(streamed, expected[len(expected) - len(streamed) :])


def test_causal_rows_at_different_frames_step_together():
    conv = DepthwiseConvolution(4, 5, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 9, 8), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x[:, :4])
    stream.reset(rows=1)
    later = np.stack([stream.step(x[:, t]) for t in range(4, 9)], axis=1)
    assert same_bits(later[0], conv(x[:1])[0][0, 4:])
    assert same_bits(later[1], conv(x[1:, 4:])[0][0])


def test_rows_at_different_frames_take_no_chunk_without_lengths():
    conv = DepthwiseConvolution(4, 5, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 9, 8), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x)
    stream.reset(rows=1)
    for out in (None, np.empty_like(x)):
        with pytest.raises(
            ValueError,
            match=r"rows must be at the same frame, got rows after \[9, 0\] frames with a latency "
            r"of 0; call `process\(chunk, lengths=...\)`",
        ):
            stream.process(x, out)
    assert stream.frames_in.tolist() == [9, 0]
    y, _ = stream.process(x, lengths=[9, 9])
    assert same_bits(y[0], conv(np.concatenate([x, x], axis=1))[0][0, 9:])
    assert same_bits(y[1], conv(x)[0][1])


def test_centred_rows_that_still_wait_refuse_to_step_together():
    conv = DepthwiseConvolution(4, 5, rng=0)
    x = np.zeros((2, 9, 8), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x)
    stream.reset(rows=[0])
    with pytest.raises(
        ValueError,
        match=r"rows must have the same number of outputs, got rows after \[0, 9\] frames with a "
        r"latency of 2; call `process\(chunk, lengths=...\)`",
    ):
        stream.step(x[:, 0].copy())
    assert stream.frames_in.tolist() == [0, 9]
    y, counts = stream.process(x, lengths=[9, 9])
    assert counts.tolist() == [7, 9]
    assert y.shape == (2, 9, 8)


@pytest.mark.parametrize(
    ("lengths", "error", "text"),
    [
        ([1.0, 2.0], TypeError, "`lengths` must be integers, got list"),
        ([True, False], TypeError, "`lengths` must be integers"),
        ("12", TypeError, "`lengths` must be integers, got '12'"),
        ([[1], [2, 3]], TypeError, "`lengths` must be integers"),
        (np.ones(2), TypeError, "`lengths` must be integers, got an array of float64"),
        ([1], ValueError, r"`lengths` must have shape \(B,\) = \(2,\), got \(1,\)"),
        (3, ValueError, r"`lengths` must have shape \(B,\) = \(2,\), got \(\)"),
        ([], ValueError, r"`lengths` must have shape \(B,\) = \(2,\), got \(0,\)"),
        ([3, 4], ValueError, "from 0 to the 3 frames of the chunk, got 4 for row 1"),
        ([-1, 0], ValueError, "from 0 to the 3 frames of the chunk, got -1 for row 0"),
    ],
)
def test_wrong_lengths(lengths, error, text):
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    stream = conv.stream(batch_size=2)
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(error, match=text):
        stream.process(x, lengths=lengths)
    with pytest.raises(error, match=text):
        conv(x, lengths=lengths)
    assert stream.frames_in.tolist() == [0, 0]


def test_lengths_in_the_wrong_place():
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    with pytest.raises(ValueError, match="`lengths` must be None for a stream without a batch"):
        conv.stream().process(np.zeros((3, 4), np.float32), lengths=[3])
    with pytest.raises(ValueError, match="`mask` and `lengths` must not both be given"):
        conv(np.zeros((1, 3, 4)), mask=np.zeros((1, 3), bool), lengths=[3])
    stream = conv.stream(batch_size=2)
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"`out` must have shape \(2, 2, 4\), got \(2, 3, 4\)"):
        stream.process(x, np.empty_like(x), lengths=[1, 2])
    with pytest.raises(ValueError, match=r"`chunk` must have shape \(2, T, 4\)"):
        stream.process(x[:1], lengths=[1, 2])
    out = np.empty((2, 2, 4), np.float32)
    assert stream.process(x.astype(np.float64), out, lengths=np.uint8([1, 2]))[0] is out


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (3, ValueError, "`rows` must be from 0 to 2, got 3"),
        ([0, -1], ValueError, "`rows` must be from 0 to 2, got -1"),
        ([1, 1], ValueError, r"`rows` must be one or more different rows, got \[1, 1\]"),
        ([[1]], ValueError, "`rows` must be one or more different rows"),
        (True, TypeError, "`rows` must be integers, got True"),
        (np.array([True, False, True]), TypeError, "`rows` must be integers, got an array of bool"),
        (0.0, TypeError, "`rows` must be integers, got 0.0"),
    ],
)
def test_wrong_rows(rows, error, text):
    stream = DepthwiseConvolution(2, 3, rng=0).stream(batch_size=3)
    for call in (stream.reset, stream.flush):
        with pytest.raises(error, match=text):
            call(rows)
    with pytest.raises(ValueError, match="`rows` must be None for a stream without a batch"):
        DepthwiseConvolution(2, 3).stream().reset(rows=0)


def test_rows_that_change_while_they_are_looked_at(monkeypatch):
    """What a signal handler or another thread does to the caller's array does not reach memory."""
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    stream = conv.stream(batch_size=2)
    stream.process(np.ones((2, 5, 4), np.float32))
    rows = np.array([1])
    unique = np.unique

    def and_then_change(array):
        found = unique(array)
        rows[0] = 10**9
        return found

    monkeypatch.setattr(np, "unique", and_then_change)
    stream.reset(rows=rows)
    assert stream.frames_in.tolist() == [5, 0]


def test_no_rows_at_all():
    stream = DepthwiseConvolution(2, 3, rng=0).stream(batch_size=2)
    stream.process(np.ones((2, 5, 4), np.float32))
    stream.reset(rows=[])
    assert stream.flush(rows=[]).shape == (0, 0, 4)
    assert stream.frames_in.tolist() == [5, 5]


@given(st.data())
def test_a_restored_stream_goes_on_with_the_same_bits(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    n = data.draw(st.integers(0, x.shape[1]))
    stream = conv.stream(batch_size=len(x))
    stream.process(x[:, :n])
    state = stream.snapshot()
    expected = np.concatenate([stream.process(x[:, n:]), stream.flush()], axis=1)
    stream.process(x)
    other = conv.stream(batch_size=len(x))
    for one in (stream, other):
        one.restore(state)
        assert one.frames_in.tolist() == [n] * len(x)
        assert same_bits(np.concatenate([one.process(x[:, n:]), one.flush()], axis=1), expected)


def test_a_state_is_independent_of_the_stream():
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    stream = conv.stream()
    stream.process(np.ones((5, 4), np.float32))
    state = stream.snapshot()
    stream.reset()
    assert state.frames.tolist() == [[[1, 1]] * 4]
    assert state.frames_in.tolist() == [5]
    for array in (state.frames, state.frames_in):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_a_state_is_shown_without_its_frames():
    state = DepthwiseConvolution(2, 3, causal=True, rng=0).stream(batch_size=2).snapshot()
    assert repr(state).startswith("<StreamState after [0, 0] frames, {'batch_size': 2, 'channels'")


def test_a_state_copies_what_it_is_made_of():
    frames, frames_in = np.ones((1, 4, 2), np.float32), np.int64([3])
    state = StreamState(frames, frames_in, None, 4, 3, True, "")
    frames[:], frames_in[:] = 2, 4
    assert state.frames.tolist() == [[[1, 1]] * 4]
    assert state.frames_in.tolist() == [3]
    with pytest.raises(ValueError, match=r"`frames` must be float32 \(2, 4, 2\), got float32 \(1,"):
        StreamState(frames, frames_in, 2, 4, 3, True, "")


def test_copies_of_a_state_are_read_only_too():
    state = DepthwiseConvolution(2, 3, causal=True).stream().snapshot()
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert other.geometry == state.geometry
        assert not other.frames.flags.writeable
        assert not other.frames_in.flags.writeable


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias"])
def test_one_bit_of_a_weight_is_another_stream(name):
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    state = {key: value.copy() for key, value in conv.state_dict().items()}
    state[name].view(np.uint32).ravel()[-1] ^= 1
    other = DepthwiseConvolution.from_state_dict(state, causal=True)
    with pytest.raises(ValueError, match="`state` must have weights="):
        other.stream().restore(conv.stream().snapshot())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("frames_in", [2**31 - 9, 2**32 - 9, 2**53 - 9, 2**62 - 20])
def test_signals_of_any_length_go_on(frames_in, causal):
    conv = DepthwiseConvolution(9, 7, causal=causal, rng=0)
    x = np.random.default_rng(0).standard_normal((1, 80, 18), np.float32)
    stream = conv.stream(batch_size=1)
    stream.process(x[:, :30])
    state = stream.snapshot()
    late = dataclasses.replace(state, frames_in=np.int64([frames_in]))
    expected = stream.process(x[:, 30:])
    stream.restore(late)
    for t in range(30, 40):
        assert same_bits(stream.step(x[:, t]), expected[:, t - 30])
    assert same_bits(stream.process(x[:, 40:]), expected[:, 10:])
    assert stream.frames_in.tolist() == [frames_in + 50]


def states():
    """States of streams that differ from one of size 2, kernel 3, causal, batch size 2."""
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    return conv, {
        "batch_size": conv.stream(),
        "channels": DepthwiseConvolution(3, 3, causal=True, rng=0).stream(2),
        "kernel_size": DepthwiseConvolution(2, 5, causal=True, rng=0).stream(2),
        "causal": DepthwiseConvolution.from_state_dict(conv.state_dict(), causal=False).stream(2),
        "weights": DepthwiseConvolution(2, 3, causal=True, rng=1).stream(2),
    }


@pytest.mark.parametrize("what", ["batch_size", "channels", "kernel_size", "causal", "weights"])
def test_a_state_of_another_stream_is_refused_by_name(what):
    conv, others = states()
    stream = conv.stream(batch_size=2)
    stream.step(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=f"`state` must have {what}=.*, got "):
        stream.restore(others[what].snapshot())
    with pytest.raises(TypeError, match="`state` must be a StreamState, got dict"):
        stream.restore({})
    assert stream.frames_in.tolist() == [1, 1]


@given(data=st.data())
def test_a_state_survives_a_file(data, tmp_path_factory):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    stream = conv.stream(batch_size=len(x))
    stream.process(x)
    state = stream.snapshot()
    path = tmp_path_factory.mktemp("state") / "state.npz"
    save_state(path, state)
    loaded = load_state(path)
    assert isinstance(loaded, StreamState)
    assert same_bits(loaded.frames, state.frames)
    assert loaded.frames_in.tolist() == state.frames_in.tolist()
    assert loaded.geometry == state.geometry
    stream.restore(loaded)
    save_state(path, {"a.b": state, "": state})
    assert list(load_state(path)) == ["a.b", ""]


def rewritten(path, change):
    """Change the arrays of a file; `change` gets the header and the arrays."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["edgeconv"]))
    change(header, arrays)
    arrays["edgeconv"] = np.array(json.dumps(header))
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h, a: h.update(version=2), "of version 1 or older, found version 2; upgrade"),
        (lambda h, a: h.update(version="1"), "must state its version and streams"),
        (lambda h, a: h.update(version=0), "must state its version and streams"),
        (lambda h, a: h.update(states=[]), "must state its version and streams"),
        (lambda h, a: h.update(format="x"), "must be what `save_state` wrote"),
        (lambda h, a: h["states"].update({"": 3}), "must have the geometry of a stream"),
        (lambda h, a: h["states"][""].update(more=3), "must have the geometry of a stream"),
        (lambda h, a: h["states"][""].update(channels=6), r"`frames` must be float32 \(1, 6, 2\)"),
        (lambda h, a: h["states"].update(b=h["states"].pop("")), "'b.frames' must be there"),
        (lambda h, a: h["states"].update(b=h["states"][""]), "'b.frames' must be there"),
        (
            lambda h, a: a.update(frames_in=np.int64([-1])),
            "`frames_in` must be from 0 to 2\\*\\*62, got -1",
        ),
        (
            lambda h, a: a.update(frames_in=np.int64([2**63 - 5])),
            "`frames_in` must be from 0 to 2",
        ),
        (lambda h, a: a.update(frames_in=np.float32([1])), "`frames_in` must be int64"),
        (lambda h, a: a.pop("frames"), "'frames' must be there"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, change, text):
    path = tmp_path / "state.npz"
    save_state(path, DepthwiseConvolution(2, 3, causal=True).stream().snapshot())
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=f"{path}: .*{text}"):
        load_state(path)


def test_a_state_is_no_checkpoint(tmp_path):
    path = tmp_path / "state.npz"
    save_state(path, DepthwiseConvolution(2, 3, causal=True).stream().snapshot())
    with pytest.raises(CheckpointError, match="found the saved state of streams; use `load_state`"):
        load(path)


def test_one_state_under_another_name_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    save_state(path, {"b": DepthwiseConvolution(2, 3, causal=True).stream().snapshot()})
    rewritten(path, lambda header, arrays: header.update(single=True))
    with pytest.raises(CheckpointError, match="states must go by prefix, a single one by none"):
        load_state(path)


def test_other_files_are_no_states(tmp_path):
    path = tmp_path / "conv.npz"
    DepthwiseConvolution(2, 3, causal=True).save(path)
    with pytest.raises(CheckpointError, match="must be what `save_state` wrote"):
        load_state(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(CheckpointError, match="must be what `save_state` wrote"):
        load_state(path)


@pytest.mark.parametrize("state", [None, {}, {"a": 3}, {3: 4}, [1]])
def test_only_states_are_saved(tmp_path, state):
    with pytest.raises(TypeError, match="`state` must "):
        save_state(tmp_path / "state.npz", state)
    assert not list(tmp_path.iterdir())


# --- Several modules ---


def recogniser():
    return {f"block.{i}": DepthwiseConvolution(3, 5, causal=i > 0, rng=i) for i in range(3)}


def test_streams_read_like_a_mapping():
    convs = recogniser()
    streams = Streams(convs, batch_size=2)
    assert list(streams) == list(convs)
    assert len(streams) == 3
    assert repr(streams) == "<Streams of 'block.0', 'block.1', 'block.2'>"
    x = np.random.default_rng(0).standard_normal((2, 9, 6), np.float32)
    outputs = {prefix: stream.process(x) for prefix, stream in streams.items()}
    states = streams.snapshot()
    rest = streams.flush()
    for prefix, conv in convs.items():
        whole = np.concatenate([outputs[prefix], rest[prefix]], axis=1)
        assert same_bits(whole, conv(x)[0])
        assert streams[prefix].frames_in.tolist() == [0, 0]
    streams.restore(states)
    streams.reset(rows=1)
    assert [stream.frames_in.tolist() for stream in streams.values()] == [[9, 0]] * 3
    assert streams.flush(rows=[0])["block.0"].shape == (1, 2, 6)


def test_streams_restore_all_or_none():
    streams = Streams(recogniser())
    states = streams.snapshot()
    for stream in streams.values():
        stream.process(np.ones((3, 6), np.float32))
    wrong = states | {"block.2": states["block.0"]}
    with pytest.raises(ValueError, match=r"`states\['block.2'\]` must have causal=True, got F"):
        streams.restore(wrong)
    with pytest.raises(ValueError, match=r"`states` must be those of \['block.0', .*, got \[\]"):
        streams.restore({})
    with pytest.raises(TypeError, match="`states` must be a mapping, got list"):
        streams.restore([])
    assert [stream.frames_in for stream in streams.values()] == [3, 3, 3]


def test_streams_are_of_modules():
    with pytest.raises(TypeError, match="`modules` must be a mapping, got list"):
        Streams([])
    with pytest.raises(TypeError, match=r"`modules\['a'\]` must be a DepthwiseConvolution, got 3"):
        Streams({"a": 3})
