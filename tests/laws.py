"""What every layer and the encoder promise, checked once for all of them."""

import contextlib
import copy

import numpy as np
import pytest
from processes import in_threads
from reference import same_bits
from strategies import split


def run(stream, pieces):
    """Return everything that a stream answers to these pieces, up to its end."""
    return np.concatenate([*(stream.process(piece) for piece in pieces), stream.flush()])


def cuts(rng, n_frames):
    """Yield ways to cut a signal: whole, frame by frame, with empty pieces, at random."""
    yield [n_frames]
    yield [1] * n_frames
    yield [0, n_frames // 3, 0, n_frames - n_frames // 3, 0]
    for _ in range(3):
        marks = np.sort(rng.integers(0, n_frames + 1, 4))
        yield np.diff([0, *marks, n_frames]).tolist()


def verify_contract(open_stream, signal, whole=None):
    """
    Check a stream against the contract of `layers/layer.py`.

    `open_stream` opens a stream for `signal` (T, D); `whole` is what it must answer, if that is
    known from elsewhere.
    """
    rng = np.random.default_rng(0)
    expected = run(open_stream(), [signal])
    assert expected.dtype == np.float32
    assert len(expected)
    if whole is not None:
        assert same_bits(expected, whole)
    stream = open_stream()
    for partition in cuts(rng, len(signal)):
        assert same_bits(run(stream, split(signal, partition)), expected)  # and flush starts anew
    _verify_reset(stream, signal, expected)
    _verify_snapshots(open_stream, signal, expected)
    _verify_rejections(open_stream, signal, expected)
    _verify_that_nan_goes(stream, signal, expected)
    for dtype in (np.float64, np.float16):
        converted = signal.astype(dtype)
        assert same_bits(run(stream, [converted]), run(stream, [converted.astype(np.float32)]))
    assert same_bits(run(stream, [np.asfortranarray(signal)[:]]), expected)


def _verify_reset(stream, signal, expected):
    half = len(signal) // 2
    stream.process(signal[:half])
    frames = stream.frames_in, stream.frames_out
    assert frames[0] == half
    stream.reset()
    assert (stream.frames_in, stream.frames_out) == (0, 0)
    assert same_bits(run(stream, [signal]), expected)


def _verify_snapshots(open_stream, signal, expected):
    for at in (0, 1, len(signal) // 2, len(signal)):
        stream, other = open_stream(), open_stream()
        before = stream.process(signal[:at])
        state = stream.snapshot()
        for array in state.values():
            assert isinstance(array, np.ndarray)
            assert not array.dtype.hasobject
        kept = copy.deepcopy(state)
        after = run(stream, [signal[at:]])
        assert same_bits(np.concatenate([before, after]), expected)
        assert all(state[name].tobytes() == kept[name].tobytes() for name in kept)
        other.process(signal[: len(signal) // 3])
        other.restore(state)
        assert (other.frames_in, other.frames_out) == (at, len(before))
        assert same_bits(run(other, [signal[at:]]), after)


def _verify_that_nan_goes(stream, signal, expected):
    poisoned = signal.copy()
    poisoned[len(signal) // 2, 0] = np.nan
    answered = run(stream, [poisoned])
    clean = ~np.isnan(answered).any(axis=1)
    assert not clean.all()
    assert same_bits(answered[clean], expected[clean])  # what does not show it does not know of it
    assert same_bits(run(stream, [signal]), expected)


def _verify_rejections(open_stream, signal, expected):
    half = len(signal) // 2
    stream = open_stream()
    outputs = [stream.process(signal[:half])]
    wrong = [signal[:, :-1], signal[None], signal.astype(int), signal.tolist(), signal > 0, None]
    for chunk in wrong:
        with pytest.raises((TypeError, ValueError), match="must"):
            stream.process(chunk)
    other = open_stream()
    other.process(signal[: len(signal) // 3])
    state = other.snapshot()  # of another moment: what is taken from it in part shows
    for name in state:
        broken = state | {name: np.zeros((3, 2, 5), np.float32)}
        with pytest.raises((TypeError, ValueError), match="must"):
            stream.restore(broken)
        with pytest.raises((TypeError, ValueError), match="must"):
            stream.restore({key: array for key, array in state.items() if key != name})
    with pytest.raises(TypeError, match="mapping"):
        stream.restore(list(state))
    for name in state:
        if name.endswith("waiting"):  # more frames than any chunk, or than ever came
            longer = np.zeros((3000, state[name].shape[1]), np.float32)
            with pytest.raises(ValueError, match="must"):
                stream.restore(state | {name: longer})
    outputs.append(run(stream, [signal[half:]]))
    assert same_bits(np.concatenate(outputs), expected)


def refused_meanwhile(take, x, calls):
    """Return which calls another thread is refused while `take` looks at its array."""
    refused = set()

    def meddle():
        for name, call in calls.items():
            with contextlib.suppress(RuntimeError):
                call()
                continue
            refused.add(name)

    class Watched(np.ndarray):
        @property
        def shape(self):
            in_threads(meddle)
            return np.ndarray.shape.__get__(self)

        @property
        def ndim(self):
            return len(self.shape)

    take(x.view(Watched))
    return refused
