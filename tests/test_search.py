"""The searches, against simple ones that keep whole sequences and try everything."""

import functools
import math

import numpy as np
import pytest
from recogniser_states import KINDS, WORDS, best_of, recogniser

from edgeconv import CheckpointError
from edgeconv.recogniser.decoder import Decoder
from edgeconv.recogniser.joint import Joint
from edgeconv.recogniser.search import AdaptiveExpansion, Greedy, SearchOptions
from edgeconv.recogniser.tokens import Tokens

N_FRAMES = 80


def parts(kind):
    state, configuration = recogniser(kind)
    return Decoder(state, configuration), Joint(state, configuration)


def encoded(seed=0):
    return np.random.default_rng(seed).standard_normal((N_FRAMES, 24), np.float32)


@functools.cache
class Asked:
    """The log-probabilities after whole sequences, each computed from its first token on."""

    def __init__(self, kind):
        state, _ = recogniser(kind)
        self.state = {name: array.astype(np.float64) for name, array in state.items()}
        self.n_layers, self.rnn_type, _ = KINDS[kind]

    @functools.cache  # noqa: B019 - of a test's own length
    def decoder(self, tokens):
        """Return the output after tokens, by PyTorch's formulas for LSTM and GRU."""
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        xs = [self.state["decoder.embed.weight"][token] for token in (0, *tokens)]
        for n in range(self.n_layers):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w, u, b, c = (self.state[f"decoder.rnn.{n}.{name}_l0"] for name in names)
            h = cell = np.zeros(u.shape[1])
            for t, x in enumerate(xs):
                one, two = w @ x + b, u @ h + c
                if self.rnn_type == "lstm":
                    i, f, g, o = np.split(one + two, 4)
                    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(cell)
                else:
                    (r, z, new), (r2, z2, new2) = np.split(one, 3), np.split(two, 3)
                    z = sigmoid(z + z2)
                    h = (1 - z) * np.tanh(new + sigmoid(r + r2) * new2) + z * h
                xs[t] = h
        return xs[-1]

    def __call__(self, frame, tokens):
        name = "joint_network.lin_"
        heard = self.state[f"{name}enc.weight"] @ frame + self.state[f"{name}enc.bias"]
        said = self.state[f"{name}dec.weight"] @ self.decoder(tuple(tokens))
        logits = self.state[f"{name}out.weight"] @ np.tanh(heard + said)
        logits += self.state[f"{name}out.bias"]
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def greedy(asked, frames, max_symbols):
    tokens, times, score = [], [], 0.0
    for t, frame in enumerate(frames):
        for _ in range(max_symbols):
            scores = asked(frame, tokens)
            best = int(scores.argmax())
            score += scores[best]
            if best == 0:
                break
            tokens.append(best)
            times.append(t)
    return tokens, times, score


def maes(asked, frames, beam_size, nstep, gamma, beta):
    """Search as ESPnet's paper tells, with sequences as keys."""
    beam = {(): 0.0}
    for frame in frames:
        ended, growing = [], list(beam.items())
        for step in range(nstep):
            grown = []
            for tokens, score in growing:
                scores = score + asked(frame, tokens)
                order = sorted(range(len(scores)), key=lambda k: -scores[k])
                for k in order[: beam_size + beta]:
                    if scores[k] >= scores.max() - gamma:
                        tokens_and_score = (tokens + (k,) * (k > 0), scores[k])
                        (grown if k else ended).append(tokens_and_score)
            if not grown:
                break
            growing = grown
            if step == nstep - 1:
                ended += [(tokens, score + asked(frame, tokens)[0]) for tokens, score in grown]
        sums = {}
        for tokens, score in ended:
            sums[tokens] = np.logaddexp(sums[tokens], score) if tokens in sums else score
        beam = dict(sorted(sums.items(), key=lambda each: -each[1])[:beam_size])
    return beam


def cut(search, frames, *cuts):
    for piece in np.split(frames, cuts):
        search.advance(piece)
    return best_of(search)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_symbols", [1, 2, 5])
def test_the_greedy_search_takes_the_likeliest_token(kind, max_symbols):
    tokens, times, score = greedy(Asked(kind), encoded(), max_symbols)
    assert len(tokens) > 5
    search = Greedy(*parts(kind), SearchOptions(1, max_symbols))
    for cuts in ([], [1], [20, 40, 60], range(1, N_FRAMES)):
        search.reset()
        best = cut(search, encoded(), *cuts)
        assert (best.tokens, best.frames) == (tokens, times)
        assert best.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("nstep", "gamma", "beta"), [(2, 2.3, 2), (1, 2.3, 2), (3, 4.0, 0)])
def test_the_beam_is_that_of_a_search_that_keeps_whole_sequences(kind, nstep, gamma, beta):
    frames = encoded()[:40]
    expected = maes(Asked(kind), frames, 4, nstep, gamma, beta)
    assert len(expected) == 4
    options = {"nstep": nstep, "expansion_gamma": gamma, "expansion_beta": beta}
    search = AdaptiveExpansion(*parts(kind), SearchOptions.checked(4, options, len(WORDS)))
    best = cut(search, frames, 13, 14)
    tokens, score = next(iter(expected.items()))
    assert len(tokens) > 3
    assert tuple(best.tokens) == tokens
    assert best.frames == sorted(best.frames)
    assert best.score == pytest.approx(score, abs=1e-4)
    scores = sorted(search.snapshot()["scores"].tolist(), reverse=True)
    assert scores == pytest.approx(list(expected.values()), abs=1e-4)


def test_score_norm_prefers_the_best_score_for_each_token():
    options = SearchOptions.checked(4, {"score_norm": True}, len(WORDS))
    search = AdaptiveExpansion(*parts("gru"), options)
    best = cut(search, encoded())
    state = search.snapshot()
    lengths = 1 + len(state["agreed"]) + state["lengths"]
    assert best.score == state["scores"][np.argmax(state["scores"] / lengths)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam_size", [1, 4])
def test_bits_are_the_same_for_every_cut_and_after_a_snapshot(kind, beam_size):
    make = Greedy if beam_size == 1 else AdaptiveExpansion
    search, other = (make(*parts(kind), SearchOptions(beam_size)) for _ in range(2))
    expected = cut(search, encoded())
    for end in (1, 13, 50, N_FRAMES):
        search.reset()
        search.advance(encoded()[:end])
        other.restore(search.snapshot())
        other.advance(encoded()[end:])
        assert best_of(other) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_hypotheses_agree_on_is_kept_once(kind):
    search = AdaptiveExpansion(*parts(kind), SearchOptions(4))
    n_agreed = 0
    for frame in encoded():
        before = best_of(search).tokens[:n_agreed]
        search.advance(frame[None])
        assert best_of(search).tokens[:n_agreed] == before
        state = search.snapshot()
        starts = np.cumsum(state["lengths"]) - state["lengths"]
        firsts = {tuple(state["tokens"][i]) for i in starts[state["lengths"] > 0]}
        assert len(firsts) > 1 or 0 in state["lengths"]
        n_agreed = len(state["agreed"])
    assert n_agreed > 0


def test_an_utterance_begins_with_the_next_frame():
    decoder, joint = parts("lstm")
    search, new = (AdaptiveExpansion(decoder, joint, SearchOptions(4)) for _ in range(2))
    search.advance(encoded(1))
    search.begin()
    assert best_of(search) == ([], [], 0.0)
    best, expected = cut(search, encoded()), cut(new, encoded())
    assert best.tokens == expected.tokens
    assert best.score == expected.score
    assert best.frames == [N_FRAMES + frame for frame in expected.frames]


@pytest.mark.parametrize(
    ("beam_size", "search", "message"),
    [
        (0, {}, "`beam_size` must be from 1"),
        (12, {}, r"`beam_size` \+ `expansion_beta` must be at most 13"),
        (2, {"search_type": "tsd"}, "`search_type` must be 'maes', got .*tsd"),
        (2, {"u_max": 3}, "`search` must have only max_symbols, .*got u_max"),
        (2, {1: 3, "u_max": 3}, "`search` must have only max_symbols, .*got 1"),
        (2, {"nstep": 0}, "`nstep` must be from 1"),
        (1, {"max_symbols": 0}, "`max_symbols` must be from 1"),
        (2, {"expansion_gamma": -1.0}, "`expansion_gamma` must be at least 0, got -1.0"),
        (2, {"expansion_gamma": math.nan}, "`expansion_gamma` must be at least 0, got nan"),
    ],
)
def test_options_are_checked(beam_size, search, message):
    with pytest.raises(ValueError, match=message):
        SearchOptions.checked(beam_size, search, len(WORDS))


@pytest.mark.parametrize(
    ("beam_size", "search", "message"),
    [
        ([2], {}, "`beam_size` must be an integer, got a list"),
        (2, {"nstep": "2"}, "`nstep` must be an integer, got '2'"),
        (2, {"expansion_beta": None}, "`expansion_beta` must be an integer, got None"),
        (2, {"expansion_gamma": "2.3"}, "`expansion_gamma` must be a number, got '2.3'"),
        (2, ["nstep"], "`search` must be a mapping of options, got a list"),
    ],
)
def test_options_of_another_kind_are_named(beam_size, search, message):
    with pytest.raises(TypeError, match=message):
        SearchOptions.checked(beam_size, search, len(WORDS))


@pytest.mark.parametrize(
    ("kind", "tokens", "text"),
    [
        ("word", ["ten", "of", "clubs"], "ten of clubs"),
        ("char", ["a", "<space>", "b", "c"], "a bc"),
        ("bpe", ["▁the", "▁fir", "st", "▁", "one"], "the first one"),
        ("bpe", ["st", "▁one"], "st one"),
        ("bpe", ["▁a", "<unk>"], "a ⁇ "),
        ("bpe", [], ""),
    ],
)
def test_tokens_are_joined(kind, tokens, text):
    assert Tokens({"token_list": ["<blank>"], "token_type": kind}).text(tokens) == text


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (Decoder, {"decoder": "mega"}, "decoder must be one of rnn, stateless: .*found 'mega'"),
        (Decoder, {"decoder": "rwkv"}, "decoder must be one of rnn, stateless: .*found 'rwkv'"),
        (Decoder, {"decoder_conf": {"rnn_type": "rnn"}}, "rnn_type must be one of lstm, gru"),
        (Decoder, {"decoder_conf": {"rnn_type": "gru"}}, "weight_hh_l0 must have shape"),
        (Joint, {"joint_network_conf": {"joint_activation_type": "mish"}}, "found 'mish'"),
        (Joint, {"joint_network_conf": {"joint_act_type": "smish"}}, "found 'smish'"),
    ],
)
def test_what_is_left_out_is_named(make, change, message):
    state, configuration = recogniser()
    with pytest.raises(CheckpointError, match=message):
        make(state, configuration | change)
