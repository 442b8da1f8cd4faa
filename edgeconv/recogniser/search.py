"""The search for the likeliest tokens: greedy, and ESPnet's `maes` with a beam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from edgeconv.arguments import check_shape, described, float32, integer, integers
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array
from edgeconv.recogniser.decoder import Decoder
from edgeconv.recogniser.joint import Joint
from edgeconv.recogniser.tokens import BLANK

NONE = np.empty(0, np.float32)
Said: TypeAlias = tuple[int, int]  # a token, and the encoder frame where it came


class SearchOptions(NamedTuple):
    """
    Options of the search, with ESPnet's names and defaults.

    Parameters
    ----------
    beam_size : int
        Hypotheses that are kept; 1 is the greedy search.
    max_symbols : int
        Greedy: tokens in one encoder frame, at most.
    nstep : int
        Beam: tokens by which a hypothesis may grow in one encoder frame.
    expansion_gamma : float
        Beam: log-probability by which a token may be worse than the best one.
    expansion_beta : int
        Beam: ``beam_size + expansion_beta`` tokens, at most, continue a hypothesis.
    score_norm : bool
        Beam: whether the best hypothesis is that of the best score for each token.
    """

    beam_size: int = 1
    max_symbols: int = 5
    nstep: int = 2
    expansion_gamma: float = 2.3
    expansion_beta: int = 2
    score_norm: bool = False

    @classmethod
    def checked(
        cls, beam_size: object, search: Mapping[str, Any] | None, n_tokens: int
    ) -> SearchOptions:
        """Return a caller's options; `search_type` may say ``maes``."""
        if not isinstance(search, Mapping | None):
            raise TypeError(f"`search` must be a mapping of options, got {described(search)}")
        given = dict(search or {})
        if given.pop("search_type", "maes") != "maes":
            raise ValueError(f"`search_type` must be 'maes', got {dict(search or {})}")
        if unknown := set(given) - set(cls._fields[1:]):
            known = ", ".join(cls._fields[1:])
            raise ValueError(f"`search` must have only {known}, got {min(map(str, unknown))}")
        options = cls(**{"beam_size": beam_size, **given})
        least = {"beam_size": 1, "max_symbols": 1, "nstep": 1, "expansion_beta": 0}
        for name, low in least.items():
            integer(name, getattr(options, name), low, 2**20)
        if not isinstance(options.expansion_gamma, Real):
            got = described(options.expansion_gamma)
            raise TypeError(f"`expansion_gamma` must be a number, got {got}")
        if not options.expansion_gamma >= 0:
            raise ValueError(f"`expansion_gamma` must be at least 0, got {options.expansion_gamma}")
        if options.beam_size > 1 and options.beam_size + options.expansion_beta > n_tokens:
            raise ValueError(
                f"`beam_size` + `expansion_beta` must be at most {n_tokens}, the number of tokens, "
                f"got {options.beam_size} + {options.expansion_beta}"
            )
        return options


class Prefix:
    """
    The first tokens of hypotheses: the last of them, and the prefix before it.

    Equal prefixes are one object, and so are compared; what no hypothesis needs is freed.
    """

    __slots__ = ("__weakref__", "children", "frame", "parent", "said", "state", "token")

    def __init__(self, parent: Prefix | None, token: int, frame: int) -> None:
        self.parent, self.token, self.frame = parent, token, frame
        self.children: WeakValueDictionary[int, Prefix] = WeakValueDictionary()
        self.state = self.said = NONE  # the decoder's, once it was asked

    def extended(self, token: int, frame: int) -> Prefix:
        """Return the prefix that is one token longer; a new one came in this encoder frame."""
        child = self.children.get(token)
        if child is None:
            child = self.children[token] = Prefix(self, token, frame)
        return child

    def path(self) -> list[Prefix]:
        """Return all prefixes behind the one that has no parent, up to this one."""
        prefix, path = self, []
        while prefix.parent is not None:
            path.append(prefix)
            prefix = prefix.parent
        return path[::-1]


class Search:
    """
    What was said, up to now, in one utterance.

    What all hypotheses agree on is final and is kept once; only the rest of each is a chain of
    prefixes.

    Attributes
    ----------
    frame : int
        Encoder frames heard since the start of the signal.
    first_frame : int
        The one with which the utterance began.
    """

    def __init__(self, decoder: Decoder, joint: Joint, options: SearchOptions) -> None:
        self._decoder, self._joint, self.options = decoder, joint, options
        self._exp, self._log = Activation("exp"), Activation("log")
        self._start = Prefix(None, BLANK, 0)
        self._start.state = np.zeros(decoder.state_shape, np.float32)
        self._ask([self._start], self._start.state[None])
        self.reset()

    def reset(self) -> None:
        """Start a new signal."""
        self.frame = 0
        self.begin()

    def begin(self) -> None:
        """Start a new utterance with the next frame."""
        self.first_frame = self.frame
        self._agreed: list[Said] = []
        self._root = Prefix(None, BLANK, 0)
        self._root.state, self._root.said = self._start.state, self._start.said
        self._hypotheses = [(0.0, self._root)]

    def advance(self, encoded: Array) -> None:
        """Hear encoder frames (T, D)."""
        self._hear(self._joint.heard(encoded))
        self.frame += len(encoded)
        paths = [prefix.path() for _, prefix in self._hypotheses]
        for prefix, *others in zip(*paths, strict=False):
            if any(other is not prefix for other in others):
                break
            self._agreed.append((prefix.token, prefix.frame))
            self._root = prefix
        self._root.parent = None

    def found(self) -> tuple[list[Said], list[Said], float]:
        """Return what all agree on, one list that grows, what else the best says, and its score."""
        score, prefix = max(self._hypotheses, key=lambda each: self._norm(*each))
        return self._agreed, [(p.token, p.frame) for p in prefix.path()], score

    def _norm(self, score: float, prefix: Prefix) -> float:
        """Return what hypotheses are compared by; ESPnet counts the blank before the first one."""
        if not self.options.score_norm:
            return score
        return score / (1 + len(self._agreed) + len(prefix.path()))

    def _hear(self, heard: Array) -> None:
        raise NotImplementedError  # the searches differ in this

    def _ask(self, prefixes: Iterable[Prefix], states: Array | None = None) -> None:
        """Ask the decoder what follows prefixes of which it was not asked before."""
        new = [prefix for prefix in prefixes if not prefix.said.size]
        if not new:
            return
        if states is None:
            states = np.array([prefix.parent.state for prefix in new if prefix.parent])
        outputs, states = self._decoder.step([prefix.token for prefix in new], states)
        for prefix, said, state in zip(new, self._joint.said(outputs), states, strict=True):
            prefix.said, prefix.state = said, state

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return the state."""
        paths = [prefix.path() for _, prefix in self._hypotheses]
        pairs = [(p.token, p.frame) for path in paths for p in path]
        return {
            "frames": np.array([self.frame, self.first_frame]),
            "agreed": np.array(self._agreed, np.int64).reshape(-1, 2),
            "decoder": np.array([prefix.state for _, prefix in self._hypotheses]),
            "said": np.array([prefix.said for _, prefix in self._hypotheses]),
            "scores": np.array([score for score, _ in self._hypotheses]),
            "lengths": np.array([len(path) for path in paths]),
            "tokens": np.array(pairs, np.int64).reshape(-1, 2),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go to a state."""
        names, scores = f"{self.options}", state["scores"]
        frames = integers("state['frames']", state["frames"], 0, 2**62)
        agreed, tokens = (
            integers(f"state['{name}']", state[name], 0, 2**62) for name in ("agreed", "tokens")
        )
        lengths = integers("state['lengths']", state["lengths"], 0, len(tokens))
        check_shape("state['frames']", frames, (2,), names)
        check_shape("state['agreed']", agreed, ("n", 2), names)
        check_shape("state['tokens']", tokens, (int(lengths.sum()), 2), names)
        check_shape("state['scores']", scores, (len(lengths),), names)
        integers("len(state['scores'])", len(scores), 1, self.options.beam_size)
        n_tokens = self._decoder.n_tokens
        integers("state['tokens']", [*agreed[:, 0], *tokens[:, 0]], 0, n_tokens - 1)
        root, hypotheses, rest = Prefix(None, BLANK, 0), [], iter(tokens.tolist())
        start, n = self._start, len(lengths)
        states = float32("state['decoder']", state["decoder"], (n, *start.state.shape), names)
        said = float32("state['said']", state["said"], (n, *start.said.shape), names)
        for i, (score, length) in enumerate(zip(scores.tolist(), lengths.tolist(), strict=True)):
            prefix = root
            for _ in range(length):
                prefix = prefix.extended(*next(rest))
            prefix.state, prefix.said = states[i].copy(), said[i].copy()
            hypotheses.append((float(score), prefix))
        self.frame, self.first_frame = frames.tolist()
        self._agreed = [(token, frame) for token, frame in agreed.tolist()]
        self._root, self._hypotheses = root, hypotheses


class Greedy(Search):
    """In every frame the likeliest token, up to `max_symbols` times, until that is blank."""

    def _hear(self, heard: Array) -> None:
        (score, prefix), t, n_symbols = self._hypotheses[0], 0, 0
        while t < len(heard):
            # All frames at once, as if no token came: the weights are read once for all.
            scores = self._joint.log_probabilities(heard[t:], prefix.said)
            likeliest = scores.argmax(axis=1)
            spoken = np.flatnonzero(likeliest != BLANK)
            n_blanks = int(spoken[0]) if len(spoken) else len(scores)
            for blank in scores[:n_blanks, BLANK].tolist():
                score += blank
            t += n_blanks
            if n_blanks:
                n_symbols = 0
            if len(spoken):
                token = int(likeliest[n_blanks])
                score += float(scores[n_blanks, token])
                prefix = prefix.extended(token, self.frame + t)
                self._ask([prefix])
                n_symbols += 1
                if n_symbols == self.options.max_symbols:
                    t, n_symbols = t + 1, 0
        self._hypotheses = [(score, prefix)]


class AdaptiveExpansion(Search):
    """
    ESPnet's ``maes``, modified adaptive expansion search.

    In each frame hypotheses grow up to `nstep` times, each by those tokens that are nearly as
    likely as its likeliest one. All pay for a blank in the end; equal ones are added up.
    """

    def _hear(self, heard: Array) -> None:
        for t in range(len(heard)):
            self._hypotheses = self._heard(heard[t : t + 1], self.frame + t)

    def _heard(self, heard: Array, frame: int) -> list[tuple[float, Prefix]]:
        """Return the hypotheses after one frame."""
        options, hypotheses = self.options, self._hypotheses
        ended: dict[Prefix, float] = {}
        for _ in range(options.nstep):
            grown = []
            for (score, prefix), row in zip(hypotheses, self._rows(heard, hypotheses), strict=True):
                for token, total in self._expansions(score + row.astype(np.float64)):
                    if token == BLANK:
                        self._add(ended, prefix, total)
                    else:
                        grown.append((total, prefix.extended(token, frame)))
            if not grown:
                break
            self._ask(prefix for _, prefix in grown)
            hypotheses = grown
        else:
            for (score, prefix), row in zip(hypotheses, self._rows(heard, hypotheses), strict=True):
                self._add(ended, prefix, score + float(row[BLANK]))
        best = sorted(ended.items(), key=lambda each: each[1], reverse=True)
        return [(score, prefix) for prefix, score in best[: options.beam_size]]

    def _rows(self, heard: Array, hypotheses: Sequence[tuple[float, Prefix]]) -> Array:
        said = np.array([prefix.said for _, prefix in hypotheses])
        return self._joint.log_probabilities(heard, said)

    def _expansions(self, scores: NDArray[np.float64]) -> list[tuple[int, float]]:
        """Return the best tokens that are good enough, best first, with their scores."""
        options = self.options
        tokens = np.flatnonzero(scores >= scores.max() - options.expansion_gamma)
        order = np.argsort(-scores[tokens], kind="stable")
        tokens = tokens[order[: options.beam_size + options.expansion_beta]]
        return list(zip(tokens.tolist(), scores[tokens].tolist(), strict=True))

    def _add(self, scores: dict[Prefix, float], prefix: Prefix, score: float) -> None:
        """Add a probability to that of the same prefix: log(e ** a + e ** b), by own functions."""
        if prefix in scores:
            other = scores[prefix]
            ratio = self._exp(np.array([[-abs(other - score)]], np.float32))
            score = max(other, score) + float(self._log(ratio + np.float32(1))[0, 0])
        scores[prefix] = score
