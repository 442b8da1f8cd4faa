"""Where an utterance ends while the signal goes on."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

from edgeconv.arguments import described


class EndpointRules(NamedTuple):
    """
    The rules of sherpa-onnx, in seconds: an utterance ends when one of them is met.

    Parameters
    ----------
    silence : float
        So long nothing was said, from the utterance's start.
    silence_after_text : float
        So long nothing more was said.
    length : float
        So long is the utterance.
    """

    silence: float = 2.4
    silence_after_text: float = 1.2
    length: float = 20.0

    def is_met(self, seconds: float, last: float | None) -> bool:
        """Tell whether an utterance of so many seconds ends, whose last token came at `last`."""
        if last is None:
            return seconds >= min(self.silence, self.length)
        return seconds - last >= self.silence_after_text or seconds >= self.length


def checked_rules(endpoint: object) -> EndpointRules | None:
    """Return the rules that a caller's `endpoint` means: None, True, rules or some by name."""
    if endpoint is None or endpoint is False:
        return None
    if isinstance(endpoint, Mapping):
        if unknown := set(endpoint) - set(EndpointRules._fields):
            known = ", ".join(EndpointRules._fields)
            raise ValueError(f"`endpoint` must have only {known}, got {unknown}")
        endpoint = EndpointRules(**endpoint)
    rules = EndpointRules() if endpoint is True else endpoint
    if not isinstance(rules, EndpointRules):
        raise TypeError(f"`endpoint` must be None, True or EndpointRules, got {described(rules)}")
    for name, seconds in rules._asdict().items():
        if not isinstance(seconds, Real):
            raise TypeError(f"`endpoint` must have a number as {name}, got {described(seconds)}")
    if not all(seconds > 0 for seconds in rules):
        raise ValueError(f"`endpoint` must have seconds above 0, got {rules}")
    return rules
