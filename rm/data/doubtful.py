"""Doubtful pairs: what their sides say, and whether they occur twice, contradict each other, or are an evaluation's."""

import re
from itertools import takewhile
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from .comparisons import TokenizedComparisons
from .questions import turns
from .render import Messages, as_messages

Keys = Int64[np.ndarray, "B 2"]


def doubts(first: Any, second: Any, *, prompt_apart: bool) -> list[str]:
    """What is doubtful about a pair by its responses as they stand in the row, texts or messages.

    `without_prompt`: the prompt is not apart, and they have no turn of a user in common at their beginning; of texts
    without marks of turns, not even a character. `begins_the_other`: the one goes on where the other ends.
    `ends_with_user`: the last turn is the user's, in a chat or a transcript. `messages_as_text`: a text is a list of
    messages as JSON or Python writes it.

    >>> doubts("4", "4, because", prompt_apart=True)
    ['begins_the_other']
    """
    one, other = _turns(first), _turns(second)
    shared = [a for a, _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))]
    plain = _TEXT in (one[0].get("role"), other[0].get("role"))
    alike = first[:1] == second[:1] if plain else any(turn.get("role") == "user" for turn in shared)
    found = {
        "without_prompt": not prompt_apart and not alike,
        "begins_the_other": _begins(one, other, len(shared)) or _begins(other, one, len(shared)),
        "ends_with_user": "user" in (one[-1].get("role"), other[-1].get("role")),
        "messages_as_text": any(isinstance(text, str) and _MESSAGES.match(text) for text in (first, second)),
    }
    return [name for name, holds in found.items() if holds]


_TEXT = "text"  # the role of a text without turns
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


def _turns(response: Any) -> Messages:
    if isinstance(response, str):
        return turns(response) if response.startswith("\n\nHuman:") else [{"role": _TEXT, "content": response}]
    return as_messages(response) or [{"role": _TEXT, "content": ""}]


def _begins(side: Messages, other: Messages, shared: int) -> bool:
    """True if the last turn of a side, the first that is not shared, is the beginning of the other's turn there."""
    if shared == len(side):
        return True
    if shared != len(side) - 1 or shared >= len(other) or side[-1].get("role") != other[shared].get("role"):
        return False
    said, more = side[-1].get("content"), other[shared].get("content")
    return isinstance(said, str) and isinstance(more, str) and bool(said) and more.startswith(said)


def repeated(comparisons: TokenizedComparisons) -> Bool[np.ndarray, "B"]:
    """The mask of pairs that stand before already, the same side chosen."""
    if not _are_pairs(comparisons):
        return np.zeros(len(comparisons), bool)
    _, first = np.unique(comparisons.keys, axis=0, return_index=True)
    mask = np.ones(len(comparisons), bool)
    mask[first] = False
    return mask


def contradicting(comparisons: TokenizedComparisons) -> Bool[np.ndarray, "B"]:
    """The mask of pairs that occur the other way round as well."""
    if not _are_pairs(comparisons):
        return np.zeros(len(comparisons), bool)
    return _among(comparisons.keys, comparisons.keys[:, ::-1])


def shared(comparisons: TokenizedComparisons, others: TokenizedComparisons) -> Bool[np.ndarray, "B"]:
    """The mask of pairs that other data have too, either way round."""
    if not (_are_pairs(comparisons) and _are_pairs(others)):
        return np.zeros(len(comparisons), bool)
    return _among(np.sort(comparisons.keys), np.sort(others.keys))


def _are_pairs(comparisons: TokenizedComparisons) -> bool:
    return comparisons.keys.shape[1] == 2


def _among(keys: Keys, others: Keys) -> Bool[np.ndarray, "B"]:
    """The mask of the rows of `keys` that are rows of `others`."""
    both = np.concatenate([keys, others])
    _, number = np.unique(both, axis=0, return_inverse=True)
    number = number.reshape(-1)  # NumPy 2.0 gives it a second axis
    return np.isin(number[: len(keys)], number[len(keys) :])
