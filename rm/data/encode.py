"""A chunk of rows to token ids: what is kept, what is dropped and why."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..config import LlamaConfig
from ..errors import DataError
from .comparisons import TokenizedComparisons, common_prefix, flatten
from .formats import Example, Ranking, parse_row
from .render import Row, RowError
from .tokenizer import Tokenizer

Truncation = Literal["drop", "truncate-left-prompt", "truncate-right"]
Invalid = Literal["raise", "drop"]
REASONS = ("over_length", "identical", "identical_after_truncation", "empty_response", "tied", "below_min_score_margin")
REASONS += ("missing_column", "malformed", "not_needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What `tokenize_comparisons` is asked for."""

    max_length: int
    truncation: Truncation
    share_prefix: bool
    expand_pairs: bool
    margin_from_scores: bool
    min_score_margin: float | None
    drop_empty: bool
    invalid: Invalid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """The comparisons of some rows (`None` where none is kept) and how many there were of what."""

    comparisons: TokenizedComparisons | None
    counts: Counter[tuple[str, str]]


def encode_chunk(
    rows: Sequence[Row],
    first: int,
    has_margin: bool,
    tokenizer: Tokenizer,
    config: LlamaConfig,
    options: EncodeOptions,
    source: str,
) -> Chunk:
    """Tokenizes rows; `first` is the number of the first one, `has_margin` whether each must have a margin.

    **Raises:** `DataError`, naming the row and the field, unless such rows are to be dropped.
    """
    counts: Counter[tuple[str, str]] = Counter({("rows", "read"): len(rows)})

    def refuse(number: int, error: RowError) -> None:
        if options.invalid == "raise":
            raise DataError(f"{source}: row {number}: {error}") from None
        counts["dropped", error.reason] += 1

    examples: dict[int, Example] = {}
    for number, row in enumerate(rows, first):
        try:
            examples[number] = _parse(row, tokenizer, options, has_margin)
        except RowError as error:
            refuse(number, error)
    encoded = _encode(examples, tokenizer, counts)
    pairs, margins, numbers = [], [], []
    for number, example in examples.items():
        try:
            _check_ids(example, encoded[number], config)
            counts["format", example.format] += 1
        except RowError as error:
            refuse(number, error)
            continue
        for ranking in example.rankings:
            sides = [encoded[number][k] for k in ranking.order]
            empty = any(example.empty[k] for k in ranking.order)
            kept, reason = _keep(sides, ranking, empty, tokenizer, options)
            if reason:
                counts["dropped", reason] += 1
                continue
            counts["kept", "empty_response"] += empty
            counts["kept", "truncated"] += kept is not sides
            pairs.append(kept)
            numbers.append(number)
            margins.append(ranking.difference if options.margin_from_scores else ranking.margin)
    check_same_number([len(sides) for sides in pairs], source)
    if not pairs:
        return Chunk(comparisons=None, counts=counts)
    comparisons = flatten(pairs, margins, config, share_prefix=options.share_prefix, rows=numbers)
    return Chunk(comparisons=comparisons, counts=counts)


def _parse(row: Row, tokenizer: Tokenizer, options: EncodeOptions, has_margin: bool) -> Example:
    if ("margin" in row) != has_margin:
        raise RowError("field 'margin': expected in every row or in none, found in some")
    use_scores = options.margin_from_scores or options.min_score_margin is not None
    example = parse_row(row, tokenizer, expand_pairs=options.expand_pairs, use_scores=use_scores)
    if use_scores and any(ranking.difference is None for ranking in example.rankings):
        raise RowError("no scores of two responses to make a margin or a filter of", "missing_column")
    return example


def _encode(
    examples: dict[int, Example], tokenizer: Tokenizer, counts: Counter[tuple[str, str]]
) -> dict[int, list[list[int]]]:
    """The token ids of every sequence; whatever the template and the tokenizer add, none begins with two BOS."""
    encoded = {number: list(example.sequences) for number, example in examples.items()}
    bos = tokenizer.token_id(tokenizer.bos_token)
    for kind in ("text", "chat"):
        where = [(n, k) for n, example in examples.items() if example.kind == kind for k in range(len(encoded[n]))]
        batch = tokenizer.encode_batch([encoded[n][k] for n, k in where], add_special_tokens=kind == "text")
        for (n, k), ids in zip(where, batch, strict=True):
            once = without_double_bos(ids, bos)
            counts["kept", "double_bos_removed"] += len(once) < len(ids)
            encoded[n][k] = once
    return encoded


def without_double_bos(ids: list[int], bos: int | None) -> list[int]:
    """The ids with one beginning-of-sequence token where they began with several."""
    extra = 0
    while extra + 1 < len(ids) and ids[extra] == ids[extra + 1] == bos:
        extra += 1
    return ids[extra:]


def _check_ids(example: Example, sequences: Sequence[Sequence[int]], config: LlamaConfig) -> None:
    for k, ids in enumerate(sequences):
        if not ids:
            raise RowError(f"response {k} has no tokens; expected at least one")
        if example.kind == "ids" and max(ids) >= config.vocab_size:
            raise RowError(
                f"token id {max(ids)} in response {k}; expected ids below {config.vocab_size}, the vocabulary"
            )


def _keep(
    sides: list[list[int]], ranking: Ranking, empty: bool, tokenizer: Tokenizer, options: EncodeOptions
) -> tuple[list[list[int]], str | None]:
    """The sequences of a comparison as they are trained on, or the reason to drop it."""
    if ranking.tied:
        return sides, "tied"
    if all(side == sides[0] for side in sides):
        return sides, "identical"
    if empty and options.drop_empty:
        return sides, "empty_response"
    if options.min_score_margin is not None and (ranking.difference or 0.0) < options.min_score_margin:
        return sides, "below_min_score_margin"
    cut = truncate(sides, options.max_length, options.truncation, bos=tokenizer.token_id(tokenizer.bos_token))
    if cut is None:
        return sides, "over_length"
    return cut, "identical_after_truncation" if all(side == cut[0] for side in cut) else None


def truncate(
    sides: list[list[int]], max_length: int, how: Truncation, *, bos: int | None = None
) -> list[list[int]] | None:
    """The sides within `max_length` tokens, `None` where they cannot be.

    `truncate-left-prompt` takes the beginning of the shared prefix away, but for BOS, from every side alike, so that
    the end of the prompt and the responses stay whole; `truncate-right` takes the ends of over-long sides away.

    >>> truncate([[1, 5, 6, 7, 8], [1, 5, 6, 9]], 4, "truncate-left-prompt", bos=1)
    [[1, 6, 7, 8], [1, 6, 9]]
    >>> truncate([[1, 5, 6, 7, 8], [1, 5, 6, 9]], 4, "truncate-right")
    [[1, 5, 6, 7], [1, 5, 6, 9]]
    """
    excess = max(map(len, sides)) - max_length
    if excess <= 0:
        return sides
    if how == "truncate-right":
        return [side[:max_length] for side in sides]
    start = int(sides[0][0] == bos)
    if how == "drop" or start + excess > common_prefix([np.asarray(side) for side in sides]):
        return None
    return [side[:start] + side[start + excess :] for side in sides]


def check_same_number(numbers: Sequence[int], source: str) -> None:
    """Raises `DataError` where comparisons do not all have the same number of responses."""
    if len(set(numbers)) > 1:
        found = " and ".join(map(str, sorted(set(numbers))))
        raise DataError(
            f"{source}: rows with {found} responses; comparisons of K need the same K, or pairs made of them"
        )
