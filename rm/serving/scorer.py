"""Rewards in rows of few lengths, which a server compiles while it answers already."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from ..devices.mesh import row_shards
from ..evaluation.scoring import compile_sequences, score_sequences
from ..model.attention_choice import default_layout
from ..model.compute import Compute
from ..model.llama import RewardModel
from ..packing.sequences import ROW_TOKENS, TOKENS_OF_SLOT, round_up

Sequences = Sequence[Sequence[int] | Int32[np.ndarray, "_"]]
_FIRST = 512  # tokens of the first rows to be compiled: what is no longer is scored as soon as these are there


class Scorer:
    """`score_sequences` in rows of the lengths that are compiled, so that traffic of all kinds compiles no others.

    **Arguments:** `max_batch_size`, sequences that are scored together where a row holds one; `max_length`, tokens
    of the longest sequence.
    """

    def __init__(self, model: RewardModel, compute: Compute, *, max_batch_size: int, max_length: int):
        self._model, self._compute = model, compute
        # several sequences in a row, always with the same number of slots, or one in each of several rows
        self._whole = default_layout() == "whole" and row_shards(compute.mesh) == 1
        longest = max(max_length, ROW_TOKENS) if self._whole else max_length
        self.lengths, self._compiled = _lengths(longest), []
        self.counts = [1] if self._whole else _counts(max_batch_size)
        self._batch_size = round_up(longest) // TOKENS_OF_SLOT if self._whole else max_batch_size

    def __call__(self, sequences: Sequences) -> Float[np.ndarray, "n"]:
        """The rewards of at least one sequence; none is longer than what is compiled, or it is compiled now."""
        count = next((count for count in self.counts if count >= len(sequences)), len(sequences))
        dummies = [] if self._whole else [[0]] * (count - len(sequences))
        options: Any = {"compute": self._compute, "batch_size": self._batch_size, "lengths_of_rows": self._compiled}
        return score_sequences(self._model, [*sequences, *dummies], **options)[: len(sequences)]

    def compile(self) -> Iterator[int]:
        """Compiles the rows of one length after the other; yields the length of the longest that are there."""
        for length in self.lengths:
            for count in self.counts:
                options: Any = {"batch_size": self._batch_size, "lengths_of_rows": [length]}
                compile_sequences(self._model, [[0] * length] * count, compute=self._compute, **options)
            self._compiled = sorted([*self._compiled, length])
            yield self._compiled[-1]


def _lengths(longest: int) -> list[int]:
    """The lengths of rows in the order in which they are compiled: one to begin with, the longest, powers of two.

    >>> _lengths(100), _lengths(2000)[:4], len(_lengths(4096))
    ([128, 64, 32, 96, 48], [512, 2048, 1024, 256], 15)
    """
    lengths = [round_up(1)]
    while lengths[-1] < longest:
        lengths.append(round_up(lengths[-1] + 1))
    first = min(_FIRST, lengths[-1])
    return sorted(lengths, key=lambda each: (each != first, each != lengths[-1], each & (each - 1) > 0, -each))


def _counts(most: int) -> list[int]:
    """1, 4, 16, … and the most: up to three quarters of a batch are dummies, which accelerators hardly feel.

    >>> _counts(64), _counts(20)
    ([1, 4, 16, 64], [1, 4, 16, 20])
    """
    return [*(4**power for power in range(most.bit_length()) if 4**power < most), most]
