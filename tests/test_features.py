"""Features: as their definition has them, within rounding, and the same for every cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recogniser_states import mels, recogniser, speech
from reference import same_bits

from edgeconv import CheckpointError
from edgeconv.recogniser.features import Features, FeatureStream, cosine

CACHE = {}
CONFIGURATIONS = [
    {},
    {"hop_length": 160, "win_length": 400},
    {"n_fft": 400, "hop_length": 160, "window": "hamming", "fs": "8k"},
    {"n_fft": 255, "hop_length": 64, "window": "blackman"},
    {"n_fft": 128, "hop_length": 200, "win_length": 101, "window": None},
]


def features_of(conf, **fields):
    state, configuration = recogniser(**fields)
    state["frontend.logmel.melmat"] = mels(conf.get("n_fft", 512))
    return Features(state, configuration | {"frontend_conf": conf}), state


def reference(x, conf, state):
    """Compute features by the definition in float64, frame by frame."""
    n_fft, hop = conf.get("n_fft", 512), conf.get("hop_length", 128)
    size, half = conf.get("win_length", n_fft), n_fft // 2
    angles = 2 * np.pi * np.arange(size) / size
    factors = {None: [1], "hann": [0.5, -0.5], "hamming": [0.54, -0.46]}
    factors["blackman"] = [0.42, -0.5, 0.08]
    window = np.zeros(n_fft)
    left = (n_fft - size) // 2
    for i, factor in enumerate(factors[conf.get("window", "hann")]):
        window[left : left + size] += factor * np.cos(i * angles)
    padded = np.pad(x.astype(np.float64), half, mode="reflect")
    rows = []
    for t in range(1 + len(x) // hop):
        frame = padded[t * hop : t * hop + n_fft]
        if len(frame) == n_fft:  # of an odd n_fft the last one may be shorter
            power = np.abs(np.fft.rfft(window * frame)) ** 2
            rows.append(np.log(np.maximum(power @ state["frontend.logmel.melmat"], 1e-10)))
    return (np.array(rows) - state["normalize.mean"]) / state["normalize.std"]


@pytest.mark.parametrize("conf", CONFIGURATIONS)
def test_features_are_those_of_the_definition(conf):
    features, state = features_of(conf)
    for n_samples in (6000, 6143, 6144, 6145):
        x = speech(n_samples)
        expected = reference(x, conf, state)
        y = features.whole(x)
        assert y.shape == expected.shape
        assert np.abs(y - expected).max() < 1e-5


@pytest.mark.parametrize("conf", CONFIGURATIONS)
@given(data=st.data())
def test_features_are_the_same_for_every_cut(conf, data):
    features = CACHE.setdefault(str(conf), features_of(conf)[0])
    n_samples = data.draw(st.integers(0, 3000))
    cuts = sorted(data.draw(st.lists(st.integers(0, n_samples), max_size=8)))
    x = speech(n_samples)
    stream = FeatureStream(features)
    pieces = [stream.process(piece) for piece in np.split(x, cuts)]
    assert same_bits(np.concatenate([*pieces, stream.flush()]), features.whole(x))


def test_sample_by_sample_a_stream_needs_no_more_than_a_frame():
    features, _ = features_of({})
    stream, x = FeatureStream(features), speech(2000)
    rows = []
    for n, sample in enumerate(x[:, None], 1):
        rows.append(stream.process(sample))
        assert sum(map(len, rows)) == max(0, (n - 256) // 128 + (n > 256))
        assert len(stream.snapshot()["samples"]) <= 512 + 128
    assert same_bits(np.concatenate([*rows, stream.flush()]), features.whole(x))


@pytest.mark.parametrize("n_samples", [0, 1, 255, 256, 257])
def test_a_signal_too_short_to_be_reflected_ends_with_silence(n_samples):
    features, _ = features_of({})
    x = speech(n_samples)
    longer = np.concatenate([x, np.zeros(257 - n_samples, np.float32)]) if n_samples else x
    y = features.whole(x)
    assert len(y) == (3 if n_samples else 0)
    assert same_bits(y, features.whole(longer))


def test_silence_is_the_logarithm_of_the_smallest_power():
    features, _ = features_of({}, normalize=None)
    assert np.abs(features.whole(np.zeros(1000, np.float32)) - np.log(1e-10)).max() < 2e-6


@pytest.mark.parametrize("norm_vars", [False, True])
def test_the_mean_of_an_utterance_is_zero(norm_vars):
    fields = {"normalize": "utterance_mvn", "normalize_conf": {"norm_vars": norm_vars}}
    features, _ = features_of({}, **fields)
    y = features.whole(speech(9000)).astype(np.float64)
    assert np.abs(y.mean(0)).max() < 1e-5
    deviation = np.sqrt((y * y).mean(0))
    assert (np.abs(deviation - 1).max() < 1e-5) == norm_vars


@pytest.mark.parametrize("whole", [1, 7, 512, 400, 999])
def test_cosines_are_right_and_periodic(whole):
    part = np.arange(-3 * whole, 3 * whole + 1)
    y = cosine(part, whole)
    assert np.abs(y - np.cos(2 * np.pi * (part % whole) / whole)).max() < 2e-15
    assert np.array_equal(y[:whole], y[whole : 2 * whole])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frontend": "sliding_window"}, "frontend must be default: .*found 'sliding_window'"),
        ({"frontend_conf": {"center": False}}, "center must be True: .*found False"),
        ({"frontend_conf": {"normalized": True}}, "normalized must be False"),
        ({"frontend_conf": {"window": "kaiser"}}, "window must be .*found 'kaiser'"),
        ({"frontend_conf": {"win_length": 513}}, "win_length must be at most n_fft, 512"),
        ({"frontend_conf": {"hop_length": 0}}, "hop_length must be a positive integer, found 0"),
        ({"frontend_conf": {"n_fft": "x"}}, "n_fft must be a positive integer, found 'x'"),
        ({"frontend_conf": [1]}, r"frontend_conf must be a mapping, found '\[1\]'"),
        ({"frontend_conf": {"fs": "often"}}, "fs must be .*found 'often'"),
        ({"frontend_conf": {"n_fft": 400}}, r"melmat must have shape \(201, n_mels\)"),
        ({"normalize": "batch"}, "normalize must be .*found 'batch'"),
        ({"input_size": 20}, "no input_size, found 20; its encoder"),
    ],
)
def test_what_is_left_out_is_named(fields, message):
    state, configuration = recogniser()
    with pytest.raises(CheckpointError, match=message):
        Features(state, configuration | fields)


@pytest.mark.parametrize("name", ["frontend.logmel.melmat", "normalize.mean", "normalize.std"])
def test_a_tensor_that_is_missing_is_named(name):
    state, configuration = recogniser()
    del state[name]
    with pytest.raises(CheckpointError, match=name):
        Features(state, configuration)
