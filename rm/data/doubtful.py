"""Pairs that occur twice, that contradict each other, or that an evaluation has as well."""

import numpy as np
from jaxtyping import Bool, Int64

from .comparisons import TokenizedComparisons

Keys = Int64[np.ndarray, "B 2"]


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
