"""Packing of comparisons into rows, in both layouts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from ..data.comparisons import TokenizedComparisons
from ..model.batch import PreferenceBatch
from .bin_packing import pack_bins
from .groups import Group, make_group, make_items
from .row_shapes import RowShape


def pack(
    comparisons: TokenizedComparisons,
    indices: Sequence[int] | np.ndarray,
    shapes: Sequence[RowShape],
    *,
    rows: slice = slice(None),
) -> list[PreferenceBatch]:
    """Packs the comparisons at `indices` into the cheapest micro-batches of `shapes` that best-fit decreasing finds.

    **Arguments:** `shapes`, the first with room for any comparison; `rows`, the rows of each micro-batch to return.

    **Raises:** `ValueError` if a comparison does not fit the regions of the first shape.

    >>> comparisons = TokenizedComparisons(
    ...     tokens=np.array([5, 6, 7, 8, 9], np.int32), offsets=np.array([[0, 2, 3, 5]]),
    ...     ends=np.array([[2, 3]], np.int32), keys=np.array([[0, 1]]), margin=np.zeros(1, np.float32),
    ...     row=np.zeros(1, np.int64), source=np.zeros(1, np.int32))
    >>> batch, = pack(comparisons, [0], [RowShape(rows=1, slots=1, regions=(3, 3, 3))])
    >>> batch.tokens.tolist(), batch.ends.tolist()  # the longer response comes first
    ([[5, 6, 0, 8, 9, 0, 7, 0, 0]], [[[6, 4]]])
    """
    shapes, chosen = tuple(shapes), np.asarray(indices, np.int64)
    if not len(chosen):
        return []
    items = make_items(comparisons, chosen[None], shapes[0])
    (counts,), (row_of,) = pack_bins(items.needs, shapes)
    contents: dict[int, list[np.ndarray]] = {}  # the items of each row, as positions in `indices`
    for first, row in zip(items.first[0].tolist(), row_of.tolist(), strict=True):
        members = np.flatnonzero(items.leader[0] == first)
        if len(members):
            contents.setdefault(row, []).append(members)
    batches, start = [], 0
    for shape in (shape for shape, count in zip(shapes, counts, strict=True) for _ in range(count)):
        numbers = range(start, start + shape.rows)
        if any(number in contents for number in numbers):
            taken = [contents.get(number, []) for number in numbers[rows]]
            batches.append(fill_rows(comparisons, chosen, taken, shape))
        start += shape.rows
    return batches


def fill_rows(
    comparisons: TokenizedComparisons,
    indices: Int64[np.ndarray, "B"],
    rows: Sequence[Sequence[np.ndarray]],
    shape: RowShape,
) -> PreferenceBatch:
    """A micro-batch of `shape`; each of `rows` lists its groups of comparisons, as positions in `indices`."""
    K = comparisons.ends.shape[1]
    tokens, segments, parts, positions = np.zeros((4, len(rows), sum(shape.regions)), np.int32)
    ends = np.zeros((len(rows), shape.slots, K), np.int32)
    index = np.full((len(rows), shape.slots), -1, np.int32)
    margin = np.zeros((len(rows), shape.slots), np.float32)
    for r, row in enumerate(rows):
        cursor, slot, segment = np.cumsum((0, *shape.regions[:-1])).tolist(), 0, 1
        stops = np.cumsum(shape.regions).tolist()
        for members in row:
            group, starts = _place(comparisons, indices[members], cursor, stops)
            for source, length, at, number, part, position in _pieces(comparisons, indices[members], group, starts):
                tokens[r, at : at + length] = comparisons.tokens[source : source + length]
                segments[r, at : at + length] = segment + number
                parts[r, at : at + length] = part
                positions[r, at : at + length] = np.arange(position, position + length)
            slots = slice(slot, slot + len(members))
            index[r, slots], margin[r, slots] = indices[members], comparisons.margin[indices[members]]
            ends[r, slots] = _ends(comparisons, indices[members], group, starts)
            slot, segment = slots.stop, segment + group.segments
    return PreferenceBatch(tokens, segments, parts, positions, ends, index, margin, shape.regions, shape.longest)


class Starts(NamedTuple):
    """The places in the row where the parts of a group begin."""

    prefixes: list[int]  # of each segment
    responses: list[int]
    parts: list[int]  # the part number of each response in its segment


def _place(
    comparisons: TokenizedComparisons, indices: Int64[np.ndarray, "B"], cursor: list[int], stops: list[int]
) -> tuple[Group, Starts]:
    """Groups the comparisons at `indices` and places the group in a row; advances the row's `cursor`."""
    lengths = np.diff(comparisons.offsets[indices]).tolist()
    whole = len(stops) == 1
    group = make_group(lengths, comparisons.keys[indices].tolist(), range(len(indices)), whole=whole)
    return group, _place_whole(group, cursor) if whole else _place_in_regions(group, cursor, stops)


def _place_whole(group: Group, cursor: list[int]) -> Starts:
    """Places one segment after the other, each as its prefix followed by its responses."""
    starts = Starts([], [], [1 + number % group.K for number in range(len(group.lengths))])
    for number, length in enumerate(group.lengths):
        if number % group.K == 0:
            starts.prefixes.append(cursor[0])
            cursor[0] += group.prefix
        starts.responses.append(cursor[0])
        cursor[0] += length
    return starts


def _place_in_regions(group: Group, cursor: list[int], stops: list[int]) -> Starts:
    needs = group.region_lengths
    longest = sorted(range(group.K), key=lambda k: -needs[k])
    roomiest = sorted(range(1, group.K + 1), key=lambda region: cursor[region] - stops[region])
    region_of = dict(zip(longest, roomiest, strict=True))  # as `pack_bins` assumes
    prefixes = [cursor[0] + segment * group.prefix for segment in range(group.segments)]
    starts = Starts(prefixes, [], [region_of[group.region(number)] for number in range(len(group.lengths))])
    for region, length in zip(starts.parts, group.lengths, strict=True):
        starts.responses.append(cursor[region])
        cursor[region] += length
    cursor[0] += group.segments * group.prefix
    return starts


def _pieces(
    comparisons: TokenizedComparisons, indices: Int64[np.ndarray, "B"], group: Group, starts: Starts
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yields every span of tokens: its start in the data, length, start in the row, segment, part, first position."""
    offsets = comparisons.offsets[indices].tolist()
    for segment, start in enumerate(starts.prefixes):
        yield offsets[0][0], group.prefix, start, segment, 0, 0
    for number, (start, part, (i, k)) in enumerate(zip(starts.responses, starts.parts, group.responses, strict=True)):
        beyond = offsets[i][1] - offsets[i][0] - group.prefix  # tokens shared beyond the group's prefix
        segment = number // group.K
        yield offsets[i][1] - beyond, beyond, start, segment, part, group.prefix
        length = offsets[i][k + 2] - offsets[i][k + 1]
        yield offsets[i][k + 1], length, start + beyond, segment, part, group.prefix + beyond


def _ends(
    comparisons: TokenizedComparisons, indices: Int64[np.ndarray, "B"], group: Group, starts: Starts
) -> list[list[int]]:
    """The places where the rewards of the group's comparisons are read: in a response, or in the prefix before it."""

    def place(i: int, k: int, end: int) -> int:
        number = group.places[i, k]
        inside = end < group.prefix
        return starts.prefixes[number // group.K] + end if inside else starts.responses[number] + end - group.prefix

    return [
        [place(i, k, end) for k, end in enumerate(ends)] for i, ends in enumerate(comparisons.ends[indices].tolist())
    ]
