"""Tokens and text, as ESPnet's tokenisers join them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeconv.checkpoint.error import check_choice, listed

BLANK = 0
KINDS = ("bpe", "char", "word")


class Tokens:
    """The vocabulary of a model, from the configuration's ``token_list`` and ``token_type``."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        tokens = listed(configuration, "token_list", "tokens")
        self.kind = configuration.get("token_type", "bpe")
        check_choice("token_type", self.kind, KINDS)
        self.names = tuple(map(str, tokens))

    def text(self, tokens: Sequence[str]) -> str:
        """
        Join tokens: words by spaces, pieces and characters without.

        SentencePiece's spaces are U+2581; the first one is dropped, and what it does not know is
        its " \u2047 ". ESPnet's character for a space is ``<space>``.
        """
        if self.kind == "word":
            return " ".join(tokens)
        if self.kind == "char":
            return "".join(" " if token == "<space>" else token for token in tokens)
        pieces = [" \u2047 " if token == "<unk>" else token for token in tokens]
        text = "".join(pieces).replace("\u2581", " ")
        return text[1:] if tokens and tokens[0].startswith("\u2581") else text
