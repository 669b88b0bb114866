"""Best-fit decreasing bin packing of items with several dimensions, for many updates at once.

An item needs a slot for each comparison, prefix tokens, and tokens in each of K response regions. The responses of an
item may go into any response regions: the longest into the region with the most room, the second into the next, and so
on. With both sorted, an item fits a row if and only if it fits in every dimension. In rows of a single region, an item
needs only slots and tokens.
"""

import numpy as np
from jaxtyping import Bool, Int32, Int64

from .row_shapes import Combinations, RowShape, combinations, costs, totals

_AT_ONCE = 128  # attempts at a time; while few updates are left, so many cost hardly more than one


def pack_bins(
    needs: Int32[np.ndarray, "U I needs"], shapes: tuple[RowShape, ...]
) -> tuple[Int64[np.ndarray, "U shapes"], Int64[np.ndarray, "U I"]]:
    """Packs each update's items by best fit into the cheapest combination of `shapes` that holds them.

    **Arguments:** `needs`, the slots (0 if there is no item), prefix tokens and response tokens (the longest first) of
    each item, every update's largest item first; `shapes`, the largest first.

    **Returns:** the number of micro-batches of each shape, and the row of each item, counted over all micro-batches in
    the order of `shapes`. An update's result does not depend on the other updates.

    **Raises:** `ValueError` if an item does not fit the largest shape.
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
        packed, counts[left], rows[left] = _try_combinations(needs[left], base[left], shapes)
        left = left[~packed]
        base[left] += (base[left] > 0) | (np.arange(len(shapes)) == 0)  # at worst, each item gets a row of the first
    return counts, rows


def _base(needs: Int32[np.ndarray, "U I needs"], shapes: tuple[RowShape, ...]) -> Int64[np.ndarray, "U shapes"]:
    """The micro-batches that a large update needs in any case, of its best shape; only the rest is searched."""
    needed = np.max(_sums(needs)[:, None] / np.maximum(totals(shapes), 1), axis=2)  # micro-batches of one shape
    best = (needed * costs(shapes)).argmin(1)
    base = np.zeros((len(needs), len(shapes)), np.int64)
    updates = np.arange(len(needs))
    base[updates, best] = np.maximum(needed[updates, best] - 2, 0)
    return base


def _sums(needs: Int32[np.ndarray, "U I needs"]) -> Int64[np.ndarray, "U 3"]:
    """The slots, prefix tokens and response tokens of each update."""
    sums = needs.sum(1, dtype=np.int64)
    return np.stack([sums[:, 0], sums[:, 1], sums[:, 2:].sum(1)], axis=1)


def _try_combinations(
    needs: Int32[np.ndarray, "U I needs"], base: Int64[np.ndarray, "U shapes"], shapes: tuple[RowShape, ...]
) -> tuple[Bool[np.ndarray, "U"], Int64[np.ndarray, "U shapes"], Int64[np.ndarray, "U I"]]:
    """Finds the cheapest combination that, together with the micro-batches of `base`, holds each update."""
    table = combinations(shapes)
    possible = _possible(needs, base, shapes, table)
    order = np.argsort(~possible, axis=1, kind="stable")  # possible ones first, by cost
    packed = np.zeros(len(needs), bool)
    counts = np.zeros((len(needs), len(shapes)), np.int64)
    rows = np.zeros(needs.shape[:2], np.int64)
    attempt, most = 0, possible.sum(1)
    while len(left := np.flatnonzero(~packed & (most > attempt))):
        width = max(1, min(_AT_ONCE // len(left), order.shape[1] - attempt))
        tried = table.counts[order[left, attempt : attempt + width]] + base[left, None]
        fits, row = _best_fit(np.repeat(needs[left], width, axis=0), tried.reshape(-1, len(shapes)), shapes)
        fits, row = fits.reshape(-1, width), row.reshape(-1, width, needs.shape[1])
        first, updates = fits.argmax(1), np.arange(len(left))
        packed[left], counts[left], rows[left] = fits.any(1), tried[updates, first], row[updates, first]
        attempt += width
    return packed, counts, rows


def _possible(needs, base, shapes: tuple[RowShape, ...], table: Combinations) -> Bool[np.ndarray, "U C"]:
    """The combinations with room for each update's sums and longest parts; the others need not be tried."""
    rest = _sums(needs) - base @ totals(shapes)
    longest = needs[..., 1:3].max(1)
    held = np.where(base[..., None] > 0, [shape.room[1:3] for shape in shapes], 0).max(1)
    longest = np.where(longest > held, longest, 0)  # 0 if it fits into the base
    bounds = np.concatenate([rest, longest], axis=1)
    room = np.concatenate([table.totals, table.longest], axis=1)
    return np.logical_and.reduce([bounds[:, d, None] <= room[None, :, d] for d in range(room.shape[1])])


def _best_fit(
    needs: Int32[np.ndarray, "U I needs"], counts: Int64[np.ndarray, "U shapes"], shapes: tuple[RowShape, ...]
) -> tuple[Bool[np.ndarray, "U"], Int64[np.ndarray, "U I"]]:
    """Puts each item, in order, into the row where it leaves least room; returns whether all fit, and their rows."""
    free = _empty_rows(counts, shapes)
    items = np.ascontiguousarray(needs.transpose(1, 2, 0))  # updates last, so that every operation runs along them
    updates, fits_all, rows = np.arange(len(needs)), np.ones(len(needs), bool), np.empty(needs.shape[:2], np.int64)
    for i, item in enumerate(items):
        fits = np.logical_and.reduce([free[d] >= item[d] for d in range(len(item))])
        best = np.where(fits, free[1:].sum(0), np.iinfo(np.int32).max).argmin(0)
        fits_all &= fits[best, updates]
        left = free[:, best, updates] - item
        left[2:] = -np.sort(-left[2:], axis=0)
        free[:, best, updates] = left
        rows[:, i] = best
    return fits_all, rows


def _empty_rows(
    counts: Int64[np.ndarray, "U shapes"], shapes: tuple[RowShape, ...]
) -> Int32[np.ndarray, "needs rows U"]:
    """The room of every empty row; -1 for rows that an update does not have."""
    stops = np.cumsum(counts * [shape.rows for shape in shapes], axis=1)  # rows up to each shape
    kind = (np.arange(stops[:, -1].max())[:, None, None] >= stops).sum(-1)  # the shape of each row
    room = np.array([*(shape.room for shape in shapes), np.full_like(shapes[0].room, -1)], np.int32)
    return np.ascontiguousarray(room[kind].transpose(2, 0, 1))
