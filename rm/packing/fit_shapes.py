"""Fitting of row shapes to the lengths of a data set."""

from collections.abc import Callable, Iterator
from operator import add

import numpy as np
from jaxtyping import Int64

from ..data.comparisons import TokenizedComparisons
from ..model.attention_choice import Layout
from .bin_packing import pack_bins
from .groups import make_items
from .row_shapes import RowShape, costs

_MULTIPLE = 32  # region lengths are multiples of this, which suits vector units
_SHAPES = 8
_SAMPLED_COMPARISONS = 1024
_LARGEST_SAMPLE = 64  # comparisons in a sampled update; shapes that suit it suit larger updates too
_EVALUATIONS = 300
_COMPILATION = 4096  # the cost of compiling a shape, in tokens

# For each shape, in multiples: the lengths of its prefix and of each response, or of its only region.
Sizes = tuple[tuple[int, ...], ...]


def fit_row_shapes(
    comparisons: TokenizedComparisons,
    batch_size: int,
    *,
    rows: int = 1,
    micro_batch_tokens: int = 4096,
    layout: Layout = "regions",
) -> tuple[RowShape, ...]:
    """Fits up to eight shapes that waste little on sampled updates; the first has room for any of the comparisons.

    The fit is a hill climb over the lengths of the regions; an update costs as much as its combination of shapes. A
    small data set gets few shapes, because each has to be compiled. The same comparisons are fitted once. The arguments
    are those of `plan_batches`.
    """
    options = batch_size, rows, micro_batch_tokens, layout
    if options not in comparisons.fitted:
        comparisons.fitted[options] = _fit(comparisons, *options)
    return comparisons.fitted[options]


def _fit(
    comparisons: TokenizedComparisons, batch_size: int, rows: int, micro_batch_tokens: int, layout: Layout
) -> tuple[RowShape, ...]:
    lengths, K = comparisons.lengths, comparisons.ends.shape[1]
    comparison = float(lengths.sum(1).mean())
    if layout == "whole":
        mean, longest = (comparison,), (_multiples(lengths.sum(1).max()),)
    else:
        mean = float(lengths[:, 0].mean()), float(lengths[:, 1:].mean())
        longest = _multiples(lengths[:, 0].max()), _multiples(lengths[:, 1:].max())
    sequence = (lengths[:, 0] + lengths[:, 1:].max(1)).max() if layout == "gathered" else None
    limit = max(micro_batch_tokens // _MULTIPLE, _length(longest, K))
    indices = _sample(len(lengths), min(batch_size, _LARGEST_SAMPLE))

    def shapes_of(sizes: Sizes) -> tuple[RowShape, ...]:
        return tuple(_row_shape(size, rows, K, batch_size, comparison, sequence) for size in sizes)

    def cost_of(sizes: Sizes) -> float:
        tokens, shapes = [_length(size, K) for size in sizes], shapes_of(sizes)
        allowed = tokens[0] == max(tokens) <= limit and min(map(min, sizes)) >= 0
        if not allowed or any(a < b for a, b in zip(sizes[0], longest, strict=True)) or (needs > shapes[0].room).any():
            return np.inf
        return float((pack_bins(needs, shapes)[0] @ costs(shapes)).mean())

    start = _start(mean, K, indices.shape[1] / rows, longest, limit)
    needs = make_items(comparisons, indices, shapes_of(start)[0]).needs
    price = _COMPILATION / -(-len(lengths) // batch_size)  # of compiling a shape, per update of an epoch
    kept = _prune(_climb(start, cost_of, _EVALUATIONS), cost_of, price)
    return shapes_of(_climb(kept, cost_of, _EVALUATIONS // 4))


def _sample(count: int, batch_size: int) -> Int64[np.ndarray, "U B"]:
    """Samples full updates to try shapes on."""
    updates = max(1, min(_SAMPLED_COMPARISONS, count) // batch_size)
    return np.random.default_rng(0).permutation(count)[: updates * batch_size].reshape(updates, -1)


def _multiples(length: float) -> int:
    return int(np.ceil(length / _MULTIPLE))


def _length(size: tuple[int, ...], K: int) -> int:
    """The length of a row, in multiples."""
    return size[0] + K * sum(size[1:])


def _row_shape(
    size: tuple[int, ...], rows: int, K: int, batch_size: int, comparison: float, sequence: int | None
) -> RowShape:
    prefix, *response = (length * _MULTIPLE for length in size)
    mean = _length(size, K) * _MULTIPLE / comparison  # comparisons of average length
    if sequence is None:
        slots = min(batch_size, int(2 * mean) + 2)  # rarely used up
        return RowShape(rows=rows, slots=slots, regions=(prefix, *response * K))
    longest = min(_multiples(sequence) * _MULTIPLE, prefix + response[0])
    slots = min(batch_size, int(1.25 * mean) + 1)  # each costs the gathering of its sequences
    return RowShape(rows=rows, slots=slots, regions=(prefix, *response * K), longest=longest)


def _start(mean: tuple[float, ...], K: int, per_row: float, longest: tuple[int, ...], limit: int) -> Sizes:
    """Starting sizes, from a whole update (or the longest row) down to an eighth; the first has room for anything."""
    comparison = (mean[0] + K * sum(mean[1:])) / _MULTIPLE
    count = min(1.1 * per_row, limit / comparison)  # comparisons in the largest row
    sizes = []
    for fraction in np.geomspace(1, 1 / 8, _SHAPES):
        lengths = [int(fraction * count * length / _MULTIPLE) for length in mean]
        sizes.append((*lengths[:-1], max(1, lengths[-1])))
    first = tuple(map(max, sizes[0], longest))
    if _length(first, K) > limit:
        first = longest
    smaller = [size for size in dict.fromkeys(sizes) if _length(size, K) < _length(first, K)]
    return (first, *smaller[1 - _SHAPES :])


def _climb(sizes: Sizes, cost_of: Callable[[Sizes], float], patience: int) -> Sizes:
    """Makes every change that lowers the cost, large ones first, until none does or `patience` evaluations are done."""
    least, evaluations = cost_of(sizes), 0
    for step in (8, 4, 2, 1):
        improved = True
        while improved:
            improved = False
            for i, change in _changes(sizes, step):
                candidate = (*sizes[:i], tuple(map(add, sizes[i], change)), *sizes[i + 1 :])
                cost = cost_of(candidate)
                evaluations += cost < np.inf
                if cost < least:
                    sizes, least, improved = candidate, cost, True
                if evaluations >= patience:
                    return sizes
    return sizes


def _prune(sizes: Sizes, cost_of: Callable[[Sizes], float], price: float) -> Sizes:
    """Removes the shapes that save less than the price of compiling them; the first stays."""
    while len(sizes) > 1:
        candidates = [sizes[:i] + sizes[i + 1 :] for i in range(1, len(sizes))]
        costs = [cost_of(candidate) for candidate in candidates]
        if min(costs) > cost_of(sizes) + price:
            break
        sizes = candidates[int(np.argmin(costs))]
    return sizes


def _changes(sizes: Sizes, step: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Changes of one shape at a time: one length up or down, or one up and the other down."""
    changes = ((-1,), (1,)) if len(sizes[0]) == 1 else ((-1, 0), (0, -1), (1, 0), (0, 1), (1, -1), (-1, 1))
    for i in range(len(sizes)):
        yield from ((i, tuple(step * amount for amount in change)) for change in changes)
