"""The static shapes of micro-batches, and the combinations of shapes that an update may use."""

import dataclasses
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
from jaxtyping import Int32, Int64

_MICRO_BATCH_SURCHARGE = 128  # the cost of starting a micro-batch, in tokens
_GATHERED_FOR_ONE = 16  # places that are gathered for attention cost as much as one token in all other products
_MOST_FREELY_CHOSEN = 4  # micro-batches in a combination; the sizes that four can add up to are close together


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """The static shape of a micro-batch: `rows` rows of `regions` (prefix first), each for up to `slots` comparisons.

    A single region holds prefixes and responses alike. `longest` is the most tokens of a prefix and a response
    together, where attention gathers each such sequence.
    """

    rows: int
    slots: int
    regions: tuple[int, ...]
    longest: int | None = None

    @property
    def whole(self) -> bool:
        """True if a single region holds whole segments."""
        return len(self.regions) == 1

    @property
    def positions(self) -> int:
        """The number of tokens that a micro-batch computes, padding included."""
        return self.rows * sum(self.regions)

    @property
    def gathered(self) -> int:
        """The number of places that attention gathers."""
        return 0 if self.longest is None else self.rows * self.slots * (len(self.regions) - 1) * self.longest

    @property
    def room(self) -> Int32[np.ndarray, "needs"]:
        """The room of an empty row: slots, prefix tokens, and tokens of each response region, the longest first.

        >>> RowShape(rows=1, slots=4, regions=(64, 32, 96)).room.tolist()
        [4, 64, 96, 32]
        """
        prefix, *responses = self.regions
        return np.array([self.slots, prefix, *sorted(responses, reverse=True)], np.int32)

    def needs(self, needs: Int32[np.ndarray, "*items 2+K"]) -> Int32[np.ndarray, "*items needs"]:
        """The room that items need in a row, from slots, prefix and response tokens; one region adds up the tokens."""
        if not self.whole:
            return needs
        return np.concatenate([needs[..., :1], needs[..., 1:].sum(-1, keepdims=True, dtype=np.int32)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Combinations:
    """Multisets of shapes, the cheapest first: the count of each shape, and the total room."""

    counts: Int64[np.ndarray, "C shapes"]
    totals: Int64[np.ndarray, "C 3"]  # slots, prefix tokens, response tokens
    longest: Int64[np.ndarray, "C 2"]  # prefix and response


@lru_cache(maxsize=64)
def combinations(shapes: tuple[RowShape, ...]) -> Combinations:
    """All combinations of one to four micro-batches."""
    kinds, sizes = range(len(shapes)), range(1, _MOST_FREELY_CHOSEN + 1)
    picks = [pick for size in sizes for pick in combinations_with_replacement(kinds, size)]
    counts = np.array([[pick.count(kind) for kind in kinds] for pick in picks])
    cheapest = np.argsort(counts @ costs(shapes), kind="stable")
    counts = counts[cheapest]
    longest = np.stack([shape.room[1:3] for shape in shapes]).astype(np.int64)
    return Combinations(counts, counts @ totals(shapes), np.where(counts[..., None] > 0, longest, 0).max(axis=1))


def totals(shapes: tuple[RowShape, ...]) -> Int64[np.ndarray, "shapes 3"]:
    """The slots, prefix tokens and response tokens of a micro-batch of each shape."""
    return np.array([[s.rows * s.slots, s.rows * s.regions[0], s.rows * sum(s.regions[1:])] for s in shapes], np.int64)


def costs(shapes: tuple[RowShape, ...]) -> Int64[np.ndarray, "shapes"]:
    """The cost of a micro-batch of each shape: its positions, a share of those gathered, and a surcharge."""
    return np.array([s.positions + s.gathered // _GATHERED_FOR_ONE + _MICRO_BATCH_SURCHARGE for s in shapes], np.int64)
