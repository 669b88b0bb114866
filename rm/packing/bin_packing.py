"""Best-fit decreasing for items of several dimensions, for many updates at once.

An item needs a slot for each comparison, prefix tokens, and tokens in each of K response regions. The responses of an
item may take any regions of a row: its longest goes where the row has most room, its second where it has second most.
With both sorted, an item fits exactly where it fits in every place. Where rows are of a single region, an item needs
slots and tokens.
"""

import numpy as np
from jaxtyping import Bool, Int32, Int64

from .row_shapes import Combinations, RowShape, combinations, costs, totals

_AT_ONCE = 128  # attempts that cost hardly more than one, as long as few updates are left


def pack_bins(
    needs: Int32[np.ndarray, "U I needs"], shapes: tuple[RowShape, ...]
) -> tuple[Int64[np.ndarray, "U shapes"], Int64[np.ndarray, "U I"]]:
    """For each update, the cheapest combination of `shapes` that best-fit packs its items into, and the row of each.

    **Arguments:** `needs`, what each item needs: slots (0 where there is no item), prefix tokens, response tokens (the
    longest first), every update's largest item first; `shapes`, the largest first.

    **Returns:** the number of micro-batches of each shape, and the row of each item, counted over all micro-batches in
    the order of `shapes`. An update's result does not depend on the other updates.

    **Raises:** `ValueError` where an item does not fit the largest shape.
    """
    largest = shapes[0]
    if (needs > largest.room).any():
        worst = needs[(needs > largest.room).any(-1)][0]
        raise ValueError(f"a comparison of {worst[1:].tolist()} tokens does not fit regions {largest.regions}")
    counts = np.zeros((len(needs), len(shapes)), np.int64)
    rows = np.zeros(needs.shape[:2], np.int64)
    base = _base(needs, shapes)
    left = np.arange(len(needs))
    while len(left):
        found, counts[left], rows[left] = _try_combinations(needs[left], base[left], shapes)
        left = left[~found]
        base[left] += (base[left] > 0) | (np.arange(len(shapes)) == 0)  # in the end, a row of the first for each item
    return counts, rows


def _base(needs: Int32[np.ndarray, "U I needs"], shapes: tuple[RowShape, ...]) -> Int64[np.ndarray, "U shapes"]:
    """What a large update takes anyway, of the shape that suits it best, so that only the rest is chosen freely."""
    needed = np.max(_sums(needs)[:, None] / np.maximum(totals(shapes), 1), axis=2)  # micro-batches of one shape
    best = (needed * costs(shapes)).argmin(1)
    base = np.zeros((len(needs), len(shapes)), np.int64)
    each = np.arange(len(needs))
    base[each, best] = np.maximum(needed[each, best] - 2, 0)
    return base


def _sums(needs: Int32[np.ndarray, "U I needs"]) -> Int64[np.ndarray, "U 3"]:
    """Slots, prefix tokens and response tokens of each update."""
    sums = needs.sum(1, dtype=np.int64)
    return np.stack([sums[:, 0], sums[:, 1], sums[:, 2:].sum(1)], axis=1)


def _try_combinations(
    needs: Int32[np.ndarray, "U I needs"], base: Int64[np.ndarray, "U shapes"], shapes: tuple[RowShape, ...]
) -> tuple[Bool[np.ndarray, "U"], Int64[np.ndarray, "U shapes"], Int64[np.ndarray, "U I"]]:
    """The cheapest combination that, with the micro-batches of `base`, each update packs into."""
    table = combinations(shapes)
    possible = _possible(needs, base, shapes, table)
    order = np.argsort(~possible, axis=1, kind="stable")  # the possible ones first, by cost
    found = np.zeros(len(needs), bool)
    counts = np.zeros((len(needs), len(shapes)), np.int64)
    rows = np.zeros(needs.shape[:2], np.int64)
    attempt, most = 0, possible.sum(1)
    while len(left := np.flatnonzero(~found & (most > attempt))):
        width = max(1, min(_AT_ONCE // len(left), order.shape[1] - attempt))
        tried = table.counts[order[left, attempt : attempt + width]] + base[left, None]
        fits, row = _best_fit(np.repeat(needs[left], width, axis=0), tried.reshape(-1, len(shapes)), shapes)
        fits, row = fits.reshape(-1, width), row.reshape(-1, width, needs.shape[1])
        first, each = fits.argmax(1), np.arange(len(left))
        found[left], counts[left], rows[left] = fits.any(1), tried[each, first], row[each, first]
        attempt += width
    return found, counts, rows


def _possible(needs, base, shapes: tuple[RowShape, ...], table: Combinations) -> Bool[np.ndarray, "U C"]:
    """Which combinations have room for the sums and for the longest of each update: the others need not be tried."""
    rest = _sums(needs) - base @ totals(shapes)
    longest = needs[..., 1:3].max(1)
    held = np.where(base[..., None] > 0, [shape.room[1:3] for shape in shapes], 0).max(1)
    longest = np.where(longest > held, longest, 0)  # what the base has room for may lie anywhere
    bounds = np.concatenate([rest, longest], axis=1)
    room = np.concatenate([table.totals, table.longest], axis=1)
    return np.logical_and.reduce([bounds[:, d, None] <= room[None, :, d] for d in range(room.shape[1])])


def _best_fit(
    needs: Int32[np.ndarray, "U I needs"], counts: Int64[np.ndarray, "U shapes"], shapes: tuple[RowShape, ...]
) -> tuple[Bool[np.ndarray, "U"], Int64[np.ndarray, "U I"]]:
    """Each item, in the order given, into the row that it leaves least room in; whether all fit, and their rows."""
    free = _empty_rows(counts, shapes)
    items = np.ascontiguousarray(needs.transpose(1, 2, 0))  # updates last, so that every operation runs along them
    each, fits_all, rows = np.arange(len(needs)), np.ones(len(needs), bool), np.empty(needs.shape[:2], np.int64)
    for i, item in enumerate(items):
        fits = np.logical_and.reduce([free[d] >= item[d] for d in range(len(item))])
        best = np.where(fits, free[1:].sum(0), np.iinfo(np.int32).max).argmin(0)
        fits_all &= fits[best, each]
        left = free[:, best, each] - item
        left[2:] = -np.sort(-left[2:], axis=0)
        free[:, best, each] = left
        rows[:, i] = best
    return fits_all, rows


def _empty_rows(
    counts: Int64[np.ndarray, "U shapes"], shapes: tuple[RowShape, ...]
) -> Int32[np.ndarray, "needs rows U"]:
    """The room of every row; -1 where an update has fewer rows than another."""
    stops = np.cumsum(counts * [shape.rows for shape in shapes], axis=1)  # rows up to each shape
    kind = (np.arange(stops[:, -1].max())[:, None, None] >= stops).sum(-1)  # which shape a row has
    room = np.array([*(shape.room for shape in shapes), np.full_like(shapes[0].room, -1)], np.int32)
    return np.ascontiguousarray(room[kind].transpose(2, 0, 1))
