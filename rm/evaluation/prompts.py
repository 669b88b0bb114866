"""The prompts that comparisons belong to, as far as their rows and responses tell."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ..data.comparisons import TokenizedComparisons


def prompts_of(parts: Sequence[TokenizedComparisons]) -> list[Int64[np.ndarray, "_"]]:
    """The number of the prompt of each comparison, for every part: that of the first row with this prompt.

    Comparisons of one row have one prompt. So have those with a whole sequence (prompt and response) in common,
    directly or through others: a sequence has one reward, so they are not independent.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = [part.row + (part.source.astype(np.int64) << 40) for part in parts]
    sequences = [np.repeat(number, part.keys.shape[1]) for number, part in zip(numbers, parts, strict=True)]
    rows, row = np.unique(np.concatenate(sequences), return_inverse=True)
    keys, key = np.unique(np.concatenate([part.keys.ravel() for part in parts]), return_inverse=True)
    nodes = len(rows) + len(keys)
    edges = coo_array((np.ones(len(row), np.int8), (row, len(rows) + key)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][: len(rows)]
    _, first, of = np.unique(component, return_index=True, return_inverse=True)
    return [rows[first[of[np.searchsorted(rows, number)]]] for number in numbers]
