"""Packing comparisons into rows of the region layout."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ..batch import PreferenceBatch
from .comparisons import TokenizedComparisons

_MULTIPLE = 32  # region lengths are multiples of this, which vector units like
_MICRO_BATCH_TOKENS = 4096  # beyond that, more rows only cost memory
_MICRO_BATCH_SURCHARGE = 128  # what starting a micro-batch costs, in tokens
_SAMPLES = 32  # updates that a shape is tried on


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """The static shape of a micro-batch: `rows` rows of `regions` (prefix first), `slots` comparisons each at most."""

    rows: int
    slots: int
    regions: tuple[int, ...]


def fit_row_shape(comparisons: TokenizedComparisons, batch_size: int) -> RowShape:
    """One shape for a whole data set: of those with room for its longest comparison, the cheapest on sampled updates.

    Candidate rows have room for `c` average comparisons, `c` from 1 to `batch_size`. The cost of an update is the
    tokens that it computes, with a fixed surcharge for every micro-batch.
    """
    lengths = comparisons.lengths
    order = np.random.default_rng(0).permutation(len(lengths))[: _SAMPLES * batch_size]
    samples = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    best, least = RowShape(rows=1, slots=1, regions=_regions_for(lengths, 1)), np.inf
    for count in np.unique(np.geomspace(1, batch_size, 8).round()):
        regions = _regions_for(lengths, count)
        slots = min(batch_size, int(4 * count) + 1)
        rows_needed = [len(_first_fit(sample, regions, slots)) for sample in samples]
        for rows in (1, 2, 4, 8, 16, 32):
            micro_batches = sum(-(-needed // rows) for needed in rows_needed)
            cost = micro_batches * (rows * sum(regions) + _MICRO_BATCH_SURCHARGE)
            if cost < least and (rows == 1 or rows * sum(regions) <= _MICRO_BATCH_TOKENS):
                best, least = RowShape(rows=rows, slots=slots, regions=regions), cost
    return best


def _regions_for(lengths: Int64[np.ndarray, "B K+1"], count: float) -> tuple[int, ...]:
    """Region lengths with room for any one comparison and for `count` average ones; responses get regions alike."""
    parts = (lengths[:, :1], lengths[:, 1:])
    needs = [max(part.max(), 1.1 * count * part.mean()) for part in parts]
    prefix, response = (int(np.ceil(need / _MULTIPLE)) * _MULTIPLE for need in needs)
    return (prefix, *[response] * (lengths.shape[1] - 1))


def pack(
    comparisons: TokenizedComparisons, indices: Sequence[int] | np.ndarray, shape: RowShape
) -> list[PreferenceBatch]:
    """The comparisons at `indices` in as few rows as first-fit-decreasing finds, cut into micro-batches of one shape.

    **Raises:** `ValueError` where a comparison is longer than the regions of `shape`.
    """
    rows = _first_fit(comparisons.lengths[np.asarray(indices)], shape.regions, shape.slots)
    rows = [[int(indices[i]) for i in row] for row in rows]
    return [_fill(comparisons, rows[i : i + shape.rows], shape) for i in range(0, len(rows), shape.rows)]


def _first_fit(lengths: Int64[np.ndarray, "B K+1"], regions: tuple[int, ...], slots: int) -> list[list[int]]:
    """Which comparisons go in which row, the longest first."""
    free, room, rows = np.empty((0, len(regions)), int), np.empty(0, int), []
    for i in np.argsort(-lengths.sum(1), kind="stable"):
        if (lengths[i] > regions).any():
            raise ValueError(f"a comparison of {lengths[i].tolist()} tokens does not fit regions {regions}")
        fits = np.flatnonzero((free >= lengths[i]).all(1) & (room > 0))
        if not len(fits):
            free, room = np.vstack([free, regions]), np.append(room, slots)
            rows.append([])
        row = fits[0] if len(fits) else len(rows) - 1
        rows[row].append(int(i))
        free[row] -= lengths[i]
        room[row] -= 1
    return rows


def _fill(comparisons: TokenizedComparisons, rows: Sequence[Sequence[int]], shape: RowShape) -> PreferenceBatch:
    K = comparisons.ends.shape[1]
    tokens, segments, positions = np.zeros((3, shape.rows, sum(shape.regions)), np.int32)
    ends = np.zeros((shape.rows, shape.slots, K), np.int32)
    index = np.full((shape.rows, shape.slots), -1, np.int32)
    margin = np.zeros((shape.rows, shape.slots), np.float32)
    starts = np.cumsum((0, *shape.regions[:-1]))
    for r, row in enumerate(rows):
        cursor = starts.copy()
        for s, i in enumerate(row):
            offsets, lengths = comparisons.offsets[i], np.diff(comparisons.offsets[i])
            for region, length in enumerate(lengths):
                where = slice(cursor[region], cursor[region] + length)
                tokens[r, where] = comparisons.tokens[offsets[region] : offsets[region + 1]]
                segments[r, where] = s + 1
                positions[r, where] = np.arange(length) + (lengths[0] if region else 0)
            own = comparisons.ends[i] - lengths[0]  # negative where the reward is read inside the prefix
            ends[r, s] = np.where(own >= 0, cursor[1:] + own, cursor[0] + comparisons.ends[i])
            index[r, s], margin[r, s] = i, comparisons.margin[i]
            cursor += lengths
    return PreferenceBatch(tokens, segments, positions, ends, index, margin, shape.regions)
