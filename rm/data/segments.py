"""Encodes rendered conversations to token ids, each segment between special tokens only once.

A tokenizer first splits a text at its special tokens and encodes each segment separately. The prompt of a comparison
and the turns that a template repeats can therefore be encoded once, with the same ids.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import tokenizers
from jaxtyping import Int32

from ..text.tokenizer import Tokenizer

_REMEMBERED = 16_000_000  # characters of segments; with their ids about 60 MB


class Segments:
    """Encodes texts by segments; the ids of a segment are reused while it is remembered."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.pattern = tokenizer, split_pattern(tokenizer.backend)
        self._ids: dict[str, Int32[np.ndarray, "_"]] = {}
        self._size = 0  # characters

    def encode(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """The ids of texts without added special tokens, as `Tokenizer.encode_batch` gives them."""
        split = [self._split(text) for text in texts]
        new = list(dict.fromkeys(segment for segments in split for segment in segments if segment not in self._ids))
        encoded = self.tokenizer.encode_batch(new, add_special_tokens=False)
        self._ids |= {segment: np.array(ids, np.int32) for segment, ids in zip(new, encoded, strict=True)}
        self._size += sum(map(len, new))
        joined = [np.concatenate([self._ids[segment] for segment in segments]) for segments in split]
        if self._size > _REMEMBERED:
            self._ids, self._size = {}, 0
        return joined

    def _split(self, text: str) -> list[str]:
        cuts = [token.start() for token in self.pattern.finditer(text)] if self.pattern else []
        return [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)]) if stop > start] or [text]


def split_pattern(backend: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """A pattern of the special tokens before which texts may be split; `None` if there is no such token.

    A token qualifies if it is matched before any normalization and takes no text to its left, and if no other token
    can begin before it and reach into it.
    """
    added = list(backend.get_added_tokens_decoder().values())
    if backend.encode_special_tokens:
        return None
    contents = [token.content for token in added]
    plain = [
        token.content
        for token in added
        if token.special and not (token.normalized or token.lstrip or token.single_word) and len(token.content) > 1
    ]
    cuts = [text for text in plain if not any(_reaches_into(other, text) for other in contents)]
    return re.compile("|".join(map(re.escape, sorted(cuts, reverse=True)))) if cuts else None


def _reaches_into(other: str, token: str) -> bool:
    """True if `other` can begin before `token` and end inside or after it."""
    tails = (other[start:] for start in range(1, len(other)))
    return any(token.startswith(tail) or tail.startswith(token) for tail in tails)
