"""Groups of comparisons that share whole sequences, so that each shared sequence is computed once."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from ..data.comparisons import TokenizedComparisons
from .row_shapes import RowShape


@dataclasses.dataclass(frozen=True)
class Group:
    """Comparisons packed as one item: segments with a prefix and up to K responses each, in one row.

    Comparisons that share a sequence begin alike, so all of them share the shortest of their prefixes. Each distinct
    response is in one segment. An ordinary comparison is a group of one, with one segment. In rows of a single region,
    K is the number of distinct responses.
    """

    prefix: int
    responses: list[tuple[int, int]]  # (comparison i, response k) that each is taken from; the longest first
    lengths: list[int]  # of the responses without the prefix
    places: dict[tuple[int, int], int]  # from (i, k) to the index in `responses`
    count: int  # of comparisons
    K: int

    @property
    def segments(self) -> int:
        """The number of segments, each with a copy of the prefix."""
        return -(-len(self.responses) // self.K)

    @property
    def tokens(self) -> int:
        """The number of tokens that are computed."""
        return self.segments * self.prefix + sum(self.lengths)

    def region(self, number: int) -> int:
        """The response region of response `number`; the order is reversed in every second segment, for balance.

        >>> group = Group(prefix=1, responses=[], lengths=[], places={}, count=3, K=2)
        >>> [group.region(number) for number in range(6)]
        [0, 1, 1, 0, 0, 1]
        """
        segment, place = divmod(number, self.K)
        return place if segment % 2 == 0 else self.K - 1 - place

    @property
    def region_lengths(self) -> list[int]:
        """The number of tokens in each of the K response regions."""
        totals = [0] * self.K
        for number, length in enumerate(self.lengths):
            totals[self.region(number)] += length
        return totals

    @property
    def needs(self) -> Int32[np.ndarray, "2+K"]:
        """The room that the group needs in a row of several regions, in the order of `RowShape.room`."""
        return np.array([self.count, self.segments * self.prefix, *sorted(self.region_lengths, reverse=True)], np.int32)


def make_group(
    lengths: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], members: Sequence[int], *, whole: bool = False
) -> Group:
    """Groups the comparisons `members`.

    **Arguments:** `lengths`, of the prefix and the responses of each comparison; `keys`, of its whole sequences;
    `whole`, whether to make one segment of all responses, which rows of a single region allow.

    >>> group = make_group([[5, 2, 3], [6, 1, 4]], [[10, 11], [10, 12]], [0, 1])
    >>> group.responses, group.lengths, group.places[1, 0], group.tokens
    ([(1, 1), (0, 1), (0, 0)], [5, 3, 2], 2, 20)
    """
    prefix, K = min(lengths[i][0] for i in members), len(keys[0])
    first = {}
    for i in members:
        for k in range(K):
            first.setdefault(keys[i][k], (lengths[i][0] + lengths[i][k + 1] - prefix, (i, k)))
    order = sorted(first, key=lambda key: -first[key][0])  # stable: first come, first served at equal lengths
    rank = {key: number for number, key in enumerate(order)}
    return Group(
        prefix=prefix,
        responses=[first[key][1] for key in order],
        lengths=[first[key][0] for key in order],
        places={(i, k): rank[keys[i][k]] for i in members for k in range(K)},
        count=len(members),
        K=len(order) if whole else K,
    )


@dataclasses.dataclass(frozen=True)
class Items:
    """The items (groups) of every update, the largest first."""

    needs: Int32[np.ndarray, "U I needs"]
    first: Int64[np.ndarray, "U I"]  # index in the update of an item's first comparison
    leader: Int64[np.ndarray, "U B"]  # index of the first comparison of the item that a comparison belongs to


def make_items(comparisons: TokenizedComparisons, indices: Int64[np.ndarray, "U B"], largest: RowShape) -> Items:
    """The items of updates: comparisons connected by equal sequences form one item if that saves tokens.

    **Arguments:** `indices`, the comparisons of each update, padded with -1; `largest`, the shape that an item of
    several comparisons must fit.
    """
    lengths = np.diff(comparisons.offsets[indices], axis=2).astype(np.int32)
    present = indices >= 0
    needs = np.concatenate([np.ones_like(lengths[..., :1]), lengths[..., :1], -np.sort(-lengths[..., 1:])], axis=2)
    needs = largest.needs(needs * present[..., None])
    leader = np.tile(np.arange(indices.shape[1]), (len(indices), 1))
    keys = comparisons.keys[indices]
    shared = _shares_a_sequence(keys) & present
    for u in np.flatnonzero(shared.any(1)):
        update_lengths, update_keys = lengths[u].tolist(), keys[u].tolist()
        for members in _connected(update_keys, np.flatnonzero(shared[u]).tolist()):
            group = make_group(update_lengths, update_keys, members, whole=largest.whole)
            group_needs = largest.needs(group.needs)
            if group.tokens < lengths[u, members].sum() and (group_needs <= largest.room).all():
                leader[u, members] = members[0]
                needs[u, members] = 0
                needs[u, members[0]] = group_needs
    first = np.argsort(-needs[..., 1:].sum(2), axis=1, kind="stable")
    return Items(np.take_along_axis(needs, first[..., None], axis=1), first, leader)


def _shares_a_sequence(keys: Int64[np.ndarray, "U B K"]) -> Bool[np.ndarray, "U B"]:
    """The mask of comparisons with a sequence that occurs more than once in their update."""

    def repeated(update: Int64[np.ndarray, "B K"]) -> Bool[np.ndarray, "B K"]:
        _, place, counts = np.unique(update, return_inverse=True, return_counts=True)
        return counts[place].reshape(update.shape) > 1

    return np.logical_or.reduce(np.stack([repeated(update) for update in keys]), axis=2)


def _connected(keys: Sequence[Sequence[int]], numbers: Iterable[int]) -> list[list[int]]:
    """The connected components of the numbers; two numbers are connected if they have a key in common.

    >>> _connected([[1, 2], [3, 4], [2, 5], [5, 6]], range(4))
    [[0, 2, 3], [1]]
    """
    component: dict[int, list[int]] = {}  # of each key
    for number in numbers:
        touched = {id(component[key]): component[key] for key in keys[number] if key in component}
        joined = sorted([number, *(member for part in touched.values() for member in part)])
        component |= dict.fromkeys((key for member in joined for key in keys[member]), joined)
    return sorted({id(part): part for part in component.values()}.values())
