"""Recognisers: the same words and scores for every cut, endpoints, ends, threads, files."""

import itertools
import json
import pathlib
from functools import partial

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import refused_meanwhile
from processes import in_threads
from recogniser_states import WORDS, best_of, recogniser, speech

import edgeconv
from edgeconv import CheckpointError, Recogniser, load_recogniser
from edgeconv.layers.parameters import with_8_bits
from edgeconv.recogniser import EndpointRules
from edgeconv.recogniser.decoder import Decoder
from edgeconv.recogniser.features import Features
from edgeconv.recogniser.joint import Joint
from edgeconv.recogniser.search import Greedy, SearchOptions

ROOT = pathlib.Path(__file__).parents[1]
TINY = Recogniser(*recogniser())
X = speech(60000)
RULES = EndpointRules(silence=0.5, silence_after_text=0.3, length=1.5)


def listen(stream, pieces, rate=16000):
    """Return all final results, up to the end of the signal."""
    results = [stream.accept_waveform(rate, piece) for piece in pieces]
    return [result for result in results if result.is_final] + [stream.input_finished()]


def said(results):
    """Return what results say, whichever calls they came with; scores of each utterance add up."""
    tokens = [token for result in results for token in result.tokens]
    times = [time for result in results for time in result.timestamps]
    return tokens, times


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("options", [{}, {"beam_size": 4}, {"window_ms": 160, "left_context": 3}])
def test_results_are_the_same_for_every_cut(weights, options):
    state, configuration = recogniser()
    if weights == "int8":
        state = with_8_bits(state)
    model = Recogniser(state, configuration)
    stream = model.stream(**options)
    (expected,) = listen(stream, [X])
    assert len(expected.tokens) > 5
    assert expected == model.transcribe(16000, X, **options)

    @given(st.lists(st.one_of(st.integers(0, len(X)), st.integers(0, 1200)), max_size=12))
    @settings(max_examples=15)
    def check(cuts):
        assert listen(stream, np.split(X, sorted(cuts))) == [expected]

    check()


@pytest.mark.parametrize("n_samples", range(29952, 29952 + 512, 57))
def test_a_stream_is_what_its_parts_are(n_samples):
    state, configuration = recogniser()
    samples = np.concatenate([X[:n_samples], np.zeros(1600, np.float32)])
    features = Features(state, configuration).whole(samples)
    encoder = TINY.encoder.stream(20, 32)
    encoded = np.concatenate([encoder.process(features), encoder.flush()])
    decoder, joint = Decoder(state, configuration), Joint(state, configuration)
    search = Greedy(decoder, joint, SearchOptions())
    search.advance(encoded)
    best = best_of(search)
    result = TINY.transcribe(16000, X[:n_samples], tail_padding_ms=100)
    assert [WORDS.index(token) for token in result.tokens] == best.tokens
    assert result.score == best.score
    assert result.timestamps == tuple((frame + 1) * 512 / 16000 for frame in best.frames)


def test_sample_by_sample_a_result_grows():
    stream, x = TINY.stream(window_ms=96, left_context=2), X[:12000]
    results = [stream.accept_waveform(16000, sample) for sample in x[:, None]]
    assert not any(result.is_final for result in results)
    for before, after in itertools.pairwise(results):
        assert (
            after.tokens[: len(before.tokens)] == before.tokens
        )  # a greedy search never goes back
        assert after.score <= before.score
    last = stream.input_finished()
    assert last == TINY.transcribe(16000, x, window_ms=96, left_context=2)


def test_integers_and_floats_of_any_layout_are_the_same_samples():
    integers = (X * 32767).astype(np.int16)
    floats = integers.astype(np.float32) / 32768
    expected = TINY.transcribe(16000, floats)
    twice = np.repeat(integers, 2)[::2]
    for samples in (integers, integers.astype(">i2").astype(np.int16), twice, floats.astype(float)):
        assert TINY.transcribe(16000, samples) == expected
    with_channels = np.stack([floats, -floats], axis=1)
    assert TINY.transcribe(np.int32(16000), with_channels[:, 0]) == expected


def test_timestamps_are_those_of_encoder_frames():
    result = TINY.transcribe(16000, X)
    frames = np.array(result.timestamps) / 0.032
    assert np.abs(frames - np.rint(frames)).max() < 1e-9
    assert (np.diff(frames) >= 0).all()
    later = TINY.transcribe(16000, np.concatenate([np.zeros(20480, np.float32), X]))
    assert later.timestamps[-1] == pytest.approx(result.timestamps[-1] + 1.28, abs=0.2)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_endpoints_do_not_depend_on_the_cut(beam_size):
    stream = TINY.stream(160, endpoint=RULES, beam_size=beam_size)
    every = listen(stream, np.split(X, range(800, len(X), 800)))
    assert len(every) > 3

    @given(st.lists(st.integers(0, len(X)), max_size=40))
    @settings(max_examples=10)
    def check(cuts):
        assert said(listen(stream, np.split(X, sorted(cuts)))) == said(every)

    check()


def test_each_rule_ends_an_utterance():
    rules = EndpointRules()
    assert [rules.is_met(seconds, None) for seconds in (2.39, 2.4)] == [False, True]
    assert [rules.is_met(seconds, 3.0) for seconds in (4.1, 4.2)] == [False, True]
    assert [rules.is_met(seconds, 19.5) for seconds in (19.9, 20.0)] == [False, True]


def test_an_utterance_of_full_length_ends():
    stream = TINY.stream(160, endpoint={"silence": 1e9, "silence_after_text": 1e9, "length": 1.5})
    finals = []
    for n, piece in enumerate(np.split(X, range(1600, len(X), 1600)), 1):
        if stream.accept_waveform(16000, piece).is_final:
            finals.append(n / 10)
    assert np.diff([0, *finals]) == pytest.approx(1.6, abs=0.11)


def test_what_one_call_ends_is_one_result():
    stream = TINY.stream(160, endpoint=RULES)
    parts = listen(stream, np.split(X, range(1600, len(X), 1600)))
    result = stream.accept_waveform(16000, X)
    assert result.is_final
    rest = stream.input_finished()
    assert said([result, rest]) == said(parts)
    assert f"{result.text} {rest.text}".split() == " ".join(p.text for p in parts).split()
    assert result.score + rest.score == pytest.approx(sum(part.score for part in parts))


def test_nothing_said_is_an_empty_result():
    stream = TINY.stream()
    for samples in ([], [X[:0]], [np.zeros(0, np.int16)]):
        (result,) = listen(stream, samples)
        assert result == edgeconv.recogniser.Result("", (), (), True, 0.0)
    assert TINY.transcribe(16000, X[:1]).text == ""


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("cut", [0, 1, 9999, 30000])
def test_a_snapshot_goes_on_elsewhere(beam_size, cut, tmp_path):
    first, second = (TINY.stream(beam_size=beam_size, endpoint=RULES) for _ in range(2))
    before = first.accept_waveform(16000, X[:cut])
    np.savez(tmp_path / "state.npz", **first.snapshot())
    with np.load(tmp_path / "state.npz") as state:
        second.restore(state)
    expected = listen(first, [X[cut:]])
    assert listen(second, [X[cut:]]) == expected
    assert before.is_final or second.frames == 0


def test_another_thread_is_refused_meanwhile():
    stream = TINY.stream()
    state = stream.snapshot()
    calls = {
        "accept_waveform": lambda: stream.accept_waveform(16000, X[:1000]),
        "input_finished": stream.input_finished,
        "reset": stream.reset,
        "snapshot": stream.snapshot,
        "restore": lambda: stream.restore(state),
    }
    take = partial(stream.accept_waveform, 16000)
    assert refused_meanwhile(take, X[:20000], calls) == set(calls)
    assert listen(stream, [X[20000:]]) == [TINY.transcribe(16000, X)]


def test_what_is_no_snapshot_changes_nothing():
    stream, other = TINY.stream(), TINY.stream(beam_size=4)
    patient = TINY.stream(search={"max_symbols": 9})
    for each in (stream, other, patient):
        each.accept_waveform(16000, X[:20000])
    state = stream.snapshot()
    expected = listen(stream, [X[20000:]])
    wrong = [
        {n: a for n, a in state.items() if n != "search.scores"},
        {n: a for n, a in state.items() if not n.startswith("encoder")},
        state | {"search.lengths": np.array([1])},
        state | {"search.agreed": np.array([[99, 0]])},
        state | {"search.said": state["search.said"][:, 1:]},
        other.snapshot(),
        patient.snapshot(),
        state | {"features.samples": np.array(["x"])},
        state | {"counts": np.array(["x", "y"])},
        state | {"counts": np.array([20000, 16000, 0])},
        state | {"counts": np.array([20000, 48000])},
        state | {"features.next": np.array(10**6)},
        TINY.stream(160).snapshot(),
        7,
    ]
    for bad in wrong:
        stream.restore(state)
        with pytest.raises((TypeError, ValueError), match=r"`state|state\["):
            stream.restore(bad)
        assert listen(stream, [X[20000:]]) == expected


def test_reset_forgets():
    stream = TINY.stream()
    stream.accept_waveform(16000, X[:25000])
    assert stream.frames > 0
    stream.reset()
    assert stream.frames == 0
    assert listen(stream, [X]) == listen(TINY.stream(), [X])


@pytest.mark.parametrize(
    ("rate", "samples", "error", "message"),
    [
        (16000, [0.0, 0.1], TypeError, "`samples` must be an array of.*got a list; pass `np"),
        (
            16000,
            np.zeros(9, np.int32),
            TypeError,
            "floats .* or of int16, got .* int32$",
        ),
        (16000, np.zeros(9, np.uint8), TypeError, "got an array of uint8"),
        (16000, np.zeros(9, complex), TypeError, "got an array of complex128"),
        (16000, np.ma.zeros(9), TypeError, "got a MaskedArray"),
        (16000, np.zeros((9, 2), np.float32), ValueError, r"got \(9, 2\); pass one channel"),
        (16000, np.array([0, np.nan], np.float32), ValueError, "must be finite.*got up to nan"),
        (16000, np.array([0, -np.inf]), ValueError, "got up to inf"),
        (16000, np.array([0, 8021.0]), ValueError, "got up to 8021.0; .*divide by 32768"),
        (0, X, ValueError, "`sample_rate` must be from 1000 to 768000, got 0"),
        (10**9, X, ValueError, "`sample_rate` must be from 1000 to 768000, got 1000000000"),
        (16000.0, X, TypeError, "`sample_rate` must be an integer, got 16000.0$"),
        (X, 16000, TypeError, "`sample_rate` must be an integer.*; it comes before"),
        (8000, X, ValueError, "`sample_rate` must be 16000 until `input_finished`, got 8000"),
    ],
)
def test_a_wrong_call_changes_nothing(rate, samples, error, message):
    stream = TINY.stream()
    stream.accept_waveform(16000, X[:20000])
    with pytest.raises(error, match=message):
        stream.accept_waveform(rate, samples)
    assert listen(stream, [X[20000:]]) == listen(TINY.stream(), [X])
    if "until" not in message:
        with pytest.raises(error, match=message):
            TINY.transcribe(rate, samples)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window_ms": 31}, ValueError, "`window_ms` must be at least 32.0, got 31"),
        ({"window_ms": -1}, ValueError, "`window_ms` must be from 0 to"),
        ({"window_ms": "640"}, TypeError, "`window_ms` must be a number of milliseconds"),
        ({"tail_padding_ms": np.nan}, ValueError, "`tail_padding_ms` must be from 0"),
        ({"left_context": -1}, ValueError, "`left_context` must be from 0"),
        ({"endpoint": 2.4}, TypeError, "`endpoint` must be None, True or EndpointRules, got 2.4"),
        ({"endpoint": {"rule1": 2}}, ValueError, "`endpoint` must have only silence, .*rule1"),
        ({"endpoint": {"silence": None}}, TypeError, "`endpoint` must .* as silence, got None"),
        ({"endpoint": {"length": "20"}}, TypeError, "`endpoint` must .* as length, got '20'"),
        ({"endpoint": EndpointRules(0)}, ValueError, "`endpoint` must have seconds above 0"),
        ({"search": {"search_type": "alsd"}}, ValueError, "`search_type` must be 'maes'"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        TINY.stream(**options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"causal": False}, "encoder_conf.main_conf.dynamic_chunk_training to be streamed"),
        ({"normalize": "utterance_mvn"}, "normalize: global_mvn to be streamed, .*whole utterance"),
    ],
)
def test_a_model_that_cannot_be_streamed_transcribes(fields, message):
    model = Recogniser(*recogniser(**fields))
    assert not model.causal
    with pytest.raises(ValueError, match=message):
        model.stream()
    for beam_size in (1, 4):
        result = model.transcribe(16000, X, beam_size=beam_size)
        assert result.is_final
        assert result.tokens
    with pytest.raises(TypeError, match=r"`window_ms` must not be given: .*full context"):
        model.transcribe(16000, X, window_ms=640)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_stream_in_which_utterances_end_does_not_grow(beam_size):
    stream = TINY.stream(160, beam_size=beam_size, endpoint=RULES)

    def size():
        return sum(array.nbytes for array in stream.snapshot().values())

    sizes = []
    for _ in range(40):  # 150 s
        for piece in np.split(X, range(4000, len(X), 4000)):
            stream.accept_waveform(16000, piece)
            sizes.append(size())
    first = max(sizes[: len(sizes) // 4])
    assert max(sizes) <= first + 4000


def test_many_threads_share_a_recogniser():
    expected = [TINY.transcribe(16000, speech(30000, seed), beam_size=3) for seed in range(6)]
    found = [None] * 6

    def work(seed):
        stream = TINY.stream(beam_size=3)
        (found[seed],) = listen(stream, np.split(speech(30000, seed), range(0, 30000, 1000)))

    in_threads(*(partial(work, seed) for seed in range(6)))
    assert found == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_list": None}, "token_list must be a list"),
        (
            {"token_list": WORDS[:-1]},
            "token_list must have 13 tokens, the rows of decoder.*found 12",
        ),
        ({"token_type": "phn"}, "token_type must be one of bpe, char, word: .*found 'phn'"),
        ({"decoder": "mega"}, "decoder must be one of rnn, stateless"),
        ({"decoder.embed.weight": None}, "must have a decoder.*found an encoder alone"),
        ({"joint_network.lin_dec.weight": np.zeros((16, 7))}, "the joint network must take"),
        ({"joint_network.lin_out.weight": np.zeros((13, 9))}, "must be of one width"),
        ({"frontend.logmel.melmat": np.zeros((257, 21))}, r"normalize.mean must have shape"),
    ],
)
def test_what_makes_no_recogniser_is_named(change, message):
    state, configuration = recogniser()
    for name, value in change.items():
        target = state if name in state else configuration
        target[name] = value
        if target is state and value is None:
            del state[name]
    with pytest.raises(CheckpointError, match=message):
        Recogniser(state, configuration)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_converted_recogniser_says_the_same(weights, tmp_path):
    state, configuration = recogniser()
    np.savez(tmp_path / "model.npz", **state)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration))
    target = tmp_path / "converted.npz"
    edgeconv.convert(
        tmp_path / "model.npz", target, config=tmp_path / "config.yaml", weights=weights
    )
    model = load_recogniser(target)
    expected = Recogniser(with_8_bits(state) if weights == "int8" else state, configuration)
    assert model.transcribe(16000, X) == expected.transcribe(16000, X)
    assert (model.tokens, model.sample_rate) == (tuple(WORDS), 16000)
    with np.load(target) as archive:
        header = json.loads(str(archive["edgeconv"]))
        arrays = dict(archive)
    assert header["holds"] == "recogniser"
    digests = edgeconv.verify(target, seed=3)
    assert digests["recogniser"] == header["digests"]["recogniser"]
    arrays["joint_network.lin_out.bias"][0] += 1
    np.savez(target, **arrays)
    with pytest.raises(edgeconv.VerificationError, match=r"Recogniser of 13 tokens.*that the file"):
        edgeconv.verify(target)
