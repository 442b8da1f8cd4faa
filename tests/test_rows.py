"""Batches whose rows come, go and differ in length; states that are kept and restored."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import same_bits
from strategies import arrays, modules, seeds, signals

from edgeconv import DepthwiseConvolution


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
    assert same_bits(after["frames"], before["frames"])
    assert after["frames_in"].tolist() == before["frames_in"].tolist()


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


def test_causal_rows_at_different_frames_go_on_together():
    conv = DepthwiseConvolution(4, 5, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 9, 8), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x[:, :4])
    stream.reset(rows=1)
    y = np.concatenate([stream.step(x[:, 4])[:, None], stream.process(x[:, 5:])], axis=1)
    assert same_bits(y[0], conv(x[:1])[0][0, 4:])
    assert same_bits(y[1], conv(x[1:, 4:])[0][0])


def test_centred_rows_that_still_wait_refuse_to_go_on_together():
    conv = DepthwiseConvolution(4, 5, rng=0)
    x = np.zeros((2, 9, 8), np.float32)
    stream = conv.stream(batch_size=2)
    stream.process(x)
    stream.reset(rows=[0])
    for call in (lambda: stream.step(x[:, 0]), lambda: stream.process(x)):
        with pytest.raises(ValueError, match=r"rows after \[0, 9\] frames.*lengths="):
            call()
    assert stream.frames_in.tolist() == [0, 9]
    y, counts = stream.process(x, lengths=[9, 9])
    assert counts.tolist() == [7, 9]
    assert y.shape == (2, 9, 8)


@pytest.mark.parametrize(
    ("lengths", "error"),
    [
        ([1.0, 2.0], TypeError),
        ([True, False], TypeError),
        ("12", TypeError),
        (np.ones(2), TypeError),
        ([1], ValueError),
        (3, ValueError),
        ([], ValueError),
        ([3, 4], ValueError),
        ([-1, 0], ValueError),
    ],
)
def test_wrong_lengths(lengths, error):
    conv = DepthwiseConvolution(2, 3, causal=True, rng=0)
    stream = conv.stream(batch_size=2)
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(error, match="`lengths` must "):
        stream.process(x, lengths=lengths)
    with pytest.raises(error, match="`lengths` must "):
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
    ("rows", "error"),
    [
        (3, ValueError),
        ([0, -1], ValueError),
        ([1, 1], ValueError),
        ([[1]], ValueError),
        (True, TypeError),
        (np.array([True, False, True]), TypeError),
        (0.0, TypeError),
    ],
)
def test_wrong_rows(rows, error):
    stream = DepthwiseConvolution(2, 3, rng=0).stream(batch_size=3)
    for call in (stream.reset, stream.flush):
        with pytest.raises(error, match="`rows` must be "):
            call(rows)
    with pytest.raises(ValueError, match="`rows` must be None for a stream without a batch"):
        DepthwiseConvolution(2, 3).stream().reset(rows=0)


def test_no_rows_at_all():
    stream = DepthwiseConvolution(2, 3, rng=0).stream(batch_size=2)
    stream.process(np.ones((2, 5, 4), np.float32))
    stream.reset(rows=[])
    assert stream.flush(rows=[]).shape == (0, 0, 4)
    assert stream.frames_in.tolist() == [5, 5]


@given(st.data())
def test_a_state_survives_a_file_and_a_restored_stream_goes_on_with_the_same_bits(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    n = data.draw(st.integers(0, x.shape[1]))
    stream = conv.stream(batch_size=len(x))
    stream.process(x[:, :n])
    file = io.BytesIO()
    np.savez(file, **stream.snapshot())
    file.seek(0)
    state = np.load(file)
    expected = np.concatenate([stream.process(x[:, n:]), stream.flush()], axis=1)
    stream.process(x)
    other = conv.stream(batch_size=len(x))
    for one in (stream, other):
        one.restore(state)
        assert one.frames_in.tolist() == [n] * len(x)
        assert same_bits(np.concatenate([one.process(x[:, n:]), one.flush()], axis=1), expected)


def test_a_state_is_a_value():
    stream = DepthwiseConvolution(2, 3, causal=True, rng=0).stream()
    stream.process(np.ones((5, 4), np.float32))
    state = stream.snapshot()
    stream.reset()
    assert state["frames"].tolist() == [[1, 1]] * 4
    assert state["frames_in"].tolist() == 5
    stream.restore(state)
    state["frames"][:] = 7
    assert stream.cache.tolist() == [[[1, 1]] * 4]


def states():
    """Yield what is wrong, the state, and words of the error."""
    conv = DepthwiseConvolution(2, 3, rng=0)
    state = conv.stream().snapshot()
    yield None, TypeError, "mapping"
    yield [], TypeError, "mapping"
    yield {}, ValueError, "frames"
    yield {name: state[name] for name in ("frames", "frames_in")}, ValueError, "weights"
    yield conv.stream(batch_size=1).snapshot(), ValueError, "shape"
    yield DepthwiseConvolution(2, 3, rng=1).stream().snapshot(), ValueError, "weights"
    yield DepthwiseConvolution(2, 3, causal=True, rng=0).stream().snapshot(), ValueError, "weights"
    yield state | {"frames": np.zeros((4, 3), np.float32)}, ValueError, "shape"
    yield state | {"frames": np.zeros((4, 2), int)}, TypeError, "floats"
    yield state | {"frames_in": np.array(-1)}, ValueError, "frames_in"
    yield state | {"frames_in": np.array(1.0)}, TypeError, "frames_in"
    yield state | {"frames_in": np.array([1])}, ValueError, "frames_in"


def test_another_state_is_refused_and_nothing_changes():
    stream = DepthwiseConvolution(2, 3, rng=0).stream()
    x = np.random.default_rng(0).standard_normal((9, 4), np.float32)
    stream.process(x[:4])
    for state, error, text in states():
        with pytest.raises(error, match=text):
            stream.restore(state)
    rest = np.concatenate([stream.process(x[4:]), stream.flush()])
    assert same_bits(rest, DepthwiseConvolution(2, 3, rng=0)(x[None])[0][0, 3:])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("frames_in", [2**31 - 9, 2**32 - 9, 2**53 - 9, 2**62 - 20])
def test_signals_of_any_length_go_on(frames_in, causal):
    conv = DepthwiseConvolution(5, 7, causal=causal, rng=0)
    x = np.random.default_rng(0).standard_normal((20, 10), np.float32)
    stream = conv.stream()
    stream.process(x[:6])
    stream.restore(stream.snapshot() | {"frames_in": np.array(frames_in)})
    y = np.concatenate([stream.process(x[6:13]), stream.process(x[13:])])
    assert stream.frames_in == frames_in + 14
    assert same_bits(y, conv(x[None])[0][0, 6 - stream.latency : 20 - stream.latency])
