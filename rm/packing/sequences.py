"""Packing of single sequences for scoring; sequences that begin alike share a prefix."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from ..data.comparisons import TokenizedComparisons, common_prefix
from ..model.batch import PreferenceBatch
from ..model.config import LlamaConfig
from .row_shapes import RowShape
from .rows import fill_rows

ROW_TOKENS = 4096  # the longest row, unless a sequence is longer
TOKENS_OF_SLOT = 32  # tokens of a row per slot; rows of shorter sequences run out of slots before they are full


def pack_sequences(
    sequences: TokenizedComparisons,
    config: LlamaConfig,
    *,
    batch_size: int,
    lengths_of_rows: Sequence[int] = (),
    shorten: bool = True,
) -> Iterator[PreferenceBatch]:
    """Yields rows of one region, each for about `batch_size` sequences of average length; only the last is shorter.

    Sequences (comparisons of one response, without a prefix) are sorted, so that neighbours share the longest prefixes.

    **Arguments:** `lengths_of_rows`, ascending, to choose from (by default any of `round_up`); `shorten`, whether the
    last row may have a length of its own.

    >>> from rm.data.comparisons import flatten
    >>> config = LlamaConfig(vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
    ...                      num_attention_heads=1)
    >>> sequences = flatten([[[1, 2, 3, 4]], [[5, 6]], [[1, 2, 3, 7, 8]]], [0.0] * 3, config, share_prefix=False)
    >>> batch, = pack_sequences(sequences, config, batch_size=3)
    >>> batch.tokens[0, :9].tolist(), batch.index[0].tolist(), batch.ends[0, :, 0].tolist()
    ([1, 2, 3, 7, 8, 4, 5, 6, 0], [0, 2, 1], [5, 4, 7])
    """
    lengths, longest = sequences.lengths.sum(1), int(sequences.lengths.sum(1).max())
    order, shared = _neighbours(sequences)
    if longest > config.fixed_rope_length:
        shared[:] = 0  # the rotation of a prefix then depends on the sequence's length
    capacity = round_up(max(longest, min(ROW_TOKENS, int(lengths.mean() * batch_size))))
    if lengths_of_rows:
        tokens = int(lengths.sum() - shared[_joined(shared)].sum())
        capacity = _fullest(tokens, longest, int(lengths.mean()) // 2 + TOKENS_OF_SLOT, lengths_of_rows)
    shape = RowShape(rows=1, slots=max(batch_size, capacity // TOKENS_OF_SLOT), regions=(capacity,))
    rows = _rows(order.tolist(), shared, lengths.tolist(), shape)
    offsets = sequences.offsets.copy()
    for run in itertools.chain(*rows):
        offsets[run.members, 1] += run.prefix
    split, everything = dataclasses.replace(sequences, offsets=offsets), np.arange(len(lengths))
    for row in rows:
        if shorten and row is rows[-1]:
            shape = dataclasses.replace(shape, regions=(min(capacity, row_length(_tokens(row), lengths_of_rows)),))
        yield fill_rows(split, everything, [[np.array(run.members) for run in row]], shape)


class Run(NamedTuple):
    """Sequences that share a prefix."""

    members: list[int]
    prefix: int  # tokens; 0 for a single sequence
    tokens: int  # tokens that are computed


def round_up(length: int) -> int:
    """Rounds up to one of 32, 48, 64, 96, 128, 192, …: few shapes to compile, little padding."""
    power = max(32, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 32 and length <= power * 3 // 4 else power


def row_length(length: int, lengths: Sequence[int] = ()) -> int:
    """The shortest of `lengths` (ascending) that is long enough, else `round_up`.

    >>> row_length(40), row_length(40, [32, 512]), row_length(600, [32, 512])
    (48, 512, 768)
    """
    return next((each for each in lengths if each >= length), round_up(length))


def _fullest(tokens: int, longest: int, lost: int, lengths: Sequence[int]) -> int:
    """The length of rows that takes the least to compute: `lost` tokens at the end of every row, and its dispatch.

    >>> _fullest(2305, 40, 50, [256, 512, 768, 1024, 1536, 2048, 3072]), _fullest(900, 40, 50, [512, 768, 1024])
    (2048, 1024)
    """

    def computed(length: int) -> int:
        full, rest = divmod(tokens, length - lost)
        return full * length + row_length(rest + lost, lengths)

    enough = [length for length in lengths if length >= max(longest, 2 * lost)]
    return min(enough, key=lambda length: (computed(length), -length), default=row_length(longest, lengths))


def _neighbours(sequences: TokenizedComparisons) -> tuple[Int64[np.ndarray, "B"], Int64[np.ndarray, "B"]]:
    """The order of the sequences by their tokens, and the number of tokens each shares with the one before it."""
    tokens = [sequences.tokens[start:stop] for start, stop in sequences.offsets[:, [0, -1]].tolist()]
    keys = [ids.astype(">u4").tobytes() for ids in tokens]  # big-endian bytes sort as the numbers do
    order = np.array(sorted(range(len(tokens)), key=keys.__getitem__), np.int64)
    pairs = zip(order[:-1].tolist(), order[1:].tolist(), strict=True)
    shared = [common_prefix([tokens[a], tokens[b]]) for a, b in pairs]
    return order, np.array([0, *shared], np.int64)


def _joined(shared: Int64[np.ndarray, "B"]) -> Bool[np.ndarray, "B"]:
    """The mask of sequences to join to the one before: neither shares over twice as much with its other neighbour.

    >>> _joined(np.array([0, 90, 60, 20, 80])).tolist()
    [False, True, True, False, True]
    """
    before, after = np.append(0, shared[:-1]), np.append(shared[1:], 0)
    return (shared > 0) & (2 * shared >= np.maximum(before, after))


def _rows(order: list[int], shared: Int64[np.ndarray, "B"], lengths: list[int], shape: RowShape) -> list[list[Run]]:
    """Puts each sequence into the last row if it fits there, and into the last run if the two are to be joined."""
    rows: list[list[Run]] = [[]]
    for i, with_last, common in zip(order, _joined(shared).tolist(), shared.tolist(), strict=True):
        row, alone = rows[-1], Run([i], 0, lengths[i])
        longer = [*row[:-1], _extend(row[-1], alone, common)] if row and with_last else [*row, alone]
        fits = _tokens(longer) <= shape.positions and sum(len(run.members) for run in longer) <= shape.slots
        if fits:
            rows[-1] = longer
        else:
            rows.append([alone])
    return rows


def _extend(run: Run, other: Run, common: int) -> Run:
    """Adds a sequence to a run whose last sequence shares `common` tokens with it."""
    prefix = min(common, run.prefix or common)
    unshared = run.tokens + (len(run.members) - 1) * run.prefix + other.tokens  # tokens without any sharing
    return Run([*run.members, *other.members], prefix, unshared - len(run.members) * prefix)


def _tokens(row: list[Run]) -> int:
    return sum(run.tokens for run in row)
