"""Streams: the same bits as offline, however the signal arrives."""

import copy
import pickle
from functools import partial

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core import event
from processes import in_threads
from reference import convolve, same_bits
from strategies import arrays, modules, partitions, signals, split

from edgeconv import DepthwiseConvolution


def push(stream, x, partition):
    """Push a signal (T, C) or (B, T, C) in chunks, single frames by `step`; return all outputs."""
    outputs = []
    for chunk in split(x, partition):
        if chunk.shape[-2] == 1:
            y = stream.step(chunk[..., 0, :])
            outputs += [] if y is None else [y[..., None, :]]
        else:
            outputs.append(stream.process(chunk))
    return np.concatenate([*outputs, stream.flush()], axis=-2)


@given(st.data())
def test_cutting_a_signal_changes_no_bit(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    y, _ = conv(x)
    partition = data.draw(partitions(x.shape[1]))
    assert same_bits(push(conv.stream(batch_size=len(x)), x, partition), y)
    assert same_bits(push(conv.stream(), x[0], partition), y[0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("channels", [2, 18, 64])
def test_thousands_of_frames_by_frames_and_by_chunks(causal, channels):
    conv = DepthwiseConvolution(channels // 2, 31, causal=causal, rng=0)
    x = np.random.default_rng(0).standard_normal((1, 3000, channels), np.float32)
    y, _ = conv(x)
    for partition in ([1] * 3000, [7] * 428 + [4], [64] * 46 + [56], [3000]):
        assert same_bits(push(conv.stream(), x[0], partition), y[0])


@given(st.data())
def test_a_centred_stream_is_late_by_its_latency_and_flushed_at_the_end(data):
    conv = data.draw(modules(causal=st.just(False)))
    x = data.draw(signals(conv, batch_sizes=st.just(1)))[0]
    latency = (conv.kernel_size - 1) // 2
    y, _ = conv(x[None])
    stream = conv.stream()
    assert stream.latency == latency
    for t, frame in enumerate(x):
        output = stream.step(frame)
        if t < latency:
            assert output is None
        else:
            assert same_bits(output, y[0, t - latency])
        assert stream.frames_in == t + 1
        assert stream.frames_out == max(0, t + 1 - latency)
    rest = stream.flush()
    assert rest.shape == (min(latency, len(x)), conv.channels)
    assert same_bits(rest, y[0, len(x) - len(rest) :])
    assert (stream.frames_in, stream.frames_out) == (0, 0)


@given(st.data())
def test_after_reset_and_after_flush_a_stream_is_new(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv, batch_sizes=st.just(1)))[0]
    noise = data.draw(signals(conv, batch_sizes=st.just(1)))[0]
    partition = data.draw(partitions(len(x)))
    expected = push(conv.stream(), x, partition)
    stream = conv.stream()
    for start_anew in (stream.reset, stream.flush):
        stream.process(noise)
        start_anew()
        assert (stream.frames_in, stream.frames_out) == (0, 0)
        assert same_bits(stream.cache, np.zeros_like(stream.cache))
        assert same_bits(push(stream, x, partition), expected)


def test_without_reset_the_old_signal_is_heard():
    conv = DepthwiseConvolution(4, 7, causal=True, rng=0)
    frame = np.ones(8, np.float32)
    stream = conv.stream()
    first = stream.step(frame)
    assert not same_bits(stream.step(frame), first)


@given(st.data())
def test_streams_of_one_module_are_independent(data):
    conv = data.draw(modules())
    x, other = (data.draw(signals(conv, batch_sizes=st.just(1)))[0] for _ in range(2))
    one, two = conv.stream(), conv.stream()
    outputs = []
    for t in range(max(len(x), len(other))):
        if t < len(other):
            two.step(other[t])
        if t < len(x) and (y := one.step(x[t])) is not None:
            outputs.append(y[None])
    assert same_bits(np.concatenate([*outputs, one.flush()]), conv(x[None])[0][0])


@given(st.data())
def test_the_cache_is_the_last_frames_and_fits_the_module(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    stream = conv.stream(batch_size=len(x))
    n = data.draw(st.integers(0, x.shape[1]))
    stream.process(x[:, :n])
    padded = np.pad(x[:, :n], ((0, 0), (conv.kernel_size - 1, 0), (0, 0)))
    assert same_bits(stream.cache, padded[:, n:].swapaxes(1, 2).copy())
    if conv.causal:
        assert same_bits(conv(x[:, n:], cache=stream.cache)[0], stream.process(x[:, n:]))


def test_the_cache_without_a_batch_has_one_row_and_is_a_copy():
    conv = DepthwiseConvolution(2, 5, causal=True, rng=0)
    stream = conv.stream()
    stream.process(np.ones((3, 4), np.float32))
    cache = stream.cache
    assert cache.shape == (1, 4, 4)
    cache[:] = np.nan
    assert stream.cache.tolist() == [[[0, 1, 1, 1]] * 4]
    stream.cache = cache.astype(np.float16)
    assert np.isnan(stream.cache).all()


def test_outputs_and_counters_belong_to_the_caller():
    conv = DepthwiseConvolution(2, 1, causal=True, rng=0)
    stream = conv.stream(batch_size=1)
    frame = np.ones((1, 4), np.float32)
    first = stream.step(frame)
    kept = first.copy()
    frames_in = stream.frames_in
    frame[:] = 7
    stream.step(frame)
    assert same_bits(first, kept)
    assert frames_in.tolist() == [1]
    frames_in[:] = 9
    assert stream.frames_in.tolist() == [2]


@given(st.data())
def test_a_copied_or_pickled_stream_goes_on_alike_and_apart(data):
    conv = data.draw(modules())
    x = data.draw(signals(conv))
    n = data.draw(st.integers(0, x.shape[1]))
    original = conv.stream(batch_size=len(x))
    original.process(x[:, :n])
    copies = [copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    results = []
    for stream in (*copies, original):
        assert stream.frames_in.tolist() == [n] * len(x)
        results.append(np.concatenate([stream.process(x[:, n:]), stream.flush()], axis=1))
    for result in results:
        assert same_bits(result, results[-1])


def test_threads_share_a_module():
    conv = DepthwiseConvolution(20, 31, causal=True, rng=0)
    xs = np.random.default_rng(0).standard_normal((8, 300, 40), np.float32)
    expected, _ = conv(xs)
    results = [None] * len(xs)

    def run(i):
        stream = conv.stream()
        results[i] = np.stack([stream.step(frame) for frame in xs[i]])

    in_threads(*(partial(run, i) for i in range(len(xs))))
    for result, y in zip(results, expected, strict=True):
        assert same_bits(result, y)


def test_threads_in_one_stream_take_turns_or_fail():
    """Whatever happens, the frames that were taken are those whose calls returned."""
    conv = DepthwiseConvolution(512, 31, causal=True, rng=0)
    stream = conv.stream()
    taken, refused = [], []

    def run():
        x, y = np.ones((50, 1024), np.float32), np.empty((50, 1024), np.float32)
        for _ in range(200):
            try:
                stream.process(x, out=y)
                taken.append(len(x))
            except RuntimeError as error:  # noqa: PERF203 - the loop is what is tested
                refused.append(str(error))

    in_threads(*[run] * 4)
    assert stream.frames_in == sum(taken)
    assert len(taken) + len(refused) == 800
    assert all("one thread at a time" in text for text in refused)
    frame = np.ones((1, 1, 1024), np.float32)
    expected, _ = conv(frame.repeat(40, axis=1))
    assert same_bits(stream.step(frame[0, 0]), expected[0, -1])


class Compilations(event.Listener):
    def __init__(self):
        self.count = 0

    def on_start(self, event):
        self.count += 1

    def on_end(self, event):
        pass


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_open_stream_compiles_nothing(causal, batch_size):
    stream = DepthwiseConvolution(3, 5, causal=causal, rng=0).stream(batch_size=batch_size)
    leading = () if batch_size is None else (batch_size,)
    compilations = Compilations()
    with event.install_listener("numba:compile", compilations):
        for dtype in (np.float32, np.float64, np.float16):
            chunk = np.ones((*leading, 9, 6), dtype)
            stream.process(chunk)
            stream.process(chunk[..., ::2, :])
            stream.step(chunk[..., 0, :])
            chunk.flags.writeable = False
            stream.process(chunk)
            stream.restore(stream.snapshot())
            stream.flush()
            stream.reset()
        assert compilations.count == 0
        numba.njit(lambda: 1)()
    assert compilations.count == 1


def test_a_copied_or_pickled_module_computes_the_same():
    state = {"a.b.conv.weight": np.ones((5, 1, 3)), "a.b.conv.bias": np.arange(5.0)}
    conv = DepthwiseConvolution.from_state_dict(state, "a.b", causal=True)
    x = np.random.default_rng(0).standard_normal((1, 20, 5))
    for other in (copy.copy(conv), copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert same_bits(other(x)[0], conv(x)[0])
        assert repr(other) == repr(conv)
        assert "'a.b'" in repr(other)


@given(st.data())
def test_any_number_of_channels_and_of_taps_before_a_causal_output(data):
    channels, taps = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    weight = data.draw(arrays((channels, 1, taps), special=st.just(False)))
    conv = DepthwiseConvolution.from_state_dict({"weight": weight}, causal=True)
    x = data.draw(arrays((30, channels)))
    y = push(conv.stream(), x, data.draw(partitions(30)))
    assert same_bits(y, convolve(x, weight, np.zeros(channels, np.float32), causal=True))


def test_a_stream_says_what_it_is():
    conv = DepthwiseConvolution(2, 3, causal=True)
    assert repr(conv.stream()) == (
        "<Stream of DepthwiseConvolution(size=2, kernel_size=3, causal=True), batch_size=None, "
        "0 frames in>"
    )
