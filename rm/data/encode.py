"""Encodes chunks of rows to token ids; counts the kept and the dropped comparisons, by reason."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from ..errors import DataError
from ..files.row_files import LINE
from ..model.config import LlamaConfig
from ..text.tokenizer import Tokenizer
from .comparisons import TokenizedComparisons, common_prefix, flatten, with_reward_token
from .doubtful import doubts
from .formats import Example, Ranking, parse_row, unread
from .left_out import count_fields
from .render import NoPair, Row, RowError
from .segments import Segments

Ids = Int32[np.ndarray, "_"]
Counts = Counter[tuple[str, str]]
Chunk = tuple[TokenizedComparisons | None, Counts]  # of some rows; no comparisons if none is kept
Truncation = Literal["drop", "truncate-left-prompt", "truncate-right"]
Invalid = Literal["raise", "drop"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Options for turning rows into comparisons; they are also flags of the commands."""

    max_length: int = 1024
    """Longest sequence (prompt and response), in tokens."""
    truncation: Truncation = "drop"
    """Treatment of longer sequences: drop the comparison, or cut the beginning of the prompt, or the sequence's end."""
    margin_from_scores: bool = False
    """Take the margin from score_chosen - score_rejected, or from the scores of a K-wise row."""
    min_score_margin: float | None = None
    """Drop comparisons whose scores differ by less."""
    drop_empty: bool = False
    """Drop comparisons with an empty response."""
    drop_duplicates: bool = False
    """Drop pairs that occur before already."""
    drop_contradictions: bool = False
    """Drop pairs that occur the other way round as well, both of them."""
    invalid: Invalid = "raise"
    """Treatment of malformed rows: the first one ends the run, or they are dropped and counted."""
    share_prefix: bool = True
    """Compute the shared prefix of a comparison's sequences once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions(RowOptions):
    """All options that determine the result of `tokenize_comparisons`."""

    expand_pairs: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parsed:
    """The examples of a chunk by row number, and the counts so far."""

    examples: dict[int, Example]
    names: dict[int, str]  # of rows in errors
    counts: Counts


def parse_chunk(
    rows: Sequence[Row], first: int, has_margin: bool, tokenizer: Tokenizer, options: EncodeOptions, source: str
) -> Parsed:
    """Parses rows to texts; `first` is the number of the first row; `has_margin` tells if each must have a margin."""
    parsed = Parsed(examples={}, names={}, counts=Counter({("rows", "read"): len(rows)}))
    for number, row in enumerate(rows, first):
        parsed.names[number] = row.get(LINE) or f"{source}: row {number}"
        parsed.counts.update(("unread", name) for name in unread(row))
        try:
            parsed.examples[number] = _parse(row, tokenizer, options, has_margin)
        except RowError as error:
            _refuse(parsed, number, error, options)
    parsed.counts.update(count_fields(rows, parsed.examples, first, tokenizer))
    return parsed


def _refuse(parsed: Parsed, number: int, error: RowError, options: EncodeOptions) -> None:
    """Raises `DataError`, naming the row and the field, unless malformed rows are dropped and counted."""
    if options.invalid == "raise" and not isinstance(error, NoPair):
        raise DataError(f"{parsed.names[number]}: {error}") from None
    parsed.counts["dropped", error.reason] += 1


def encode_chunk(
    parsed: Parsed,
    encoded: Mapping[int, Sequence[Ids]],
    tokenizer: Tokenizer,
    config: LlamaConfig,
    options: EncodeOptions,
    source: str,
) -> Chunk:
    """The comparisons of parsed rows, whose token ids are `encoded`."""
    counts, bos = parsed.counts, tokenizer.token_id(tokenizer.bos_token)
    appended = config.reward_token_id is not None
    options = dataclasses.replace(options, max_length=options.max_length - appended)
    pairs, margins, numbers = [], [], []
    for number, example in parsed.examples.items():
        sequences = given = encoded[number]
        if example.kind != "ids":
            sequences = [without_double_bos(ids, bos) for ids in given]
        counts["kept", "double_bos_removed"] += sum(len(a) < len(b) for a, b in zip(sequences, given, strict=True))
        try:
            _check_ids(example, sequences, config)
            counts["format", example.format] += 1
        except RowError as error:
            _refuse(parsed, number, error, options)
            continue
        for ranking in example.rankings:
            sides = [_without_end(sequences[k], config.reward_token_id) for k in ranking.order]
            empty = any(example.empty[k] for k in ranking.order)
            kept, reason = _keep(sides, ranking, empty, bos, options)
            if reason == "identical" and not all(example.responses[k] == example.responses[0] for k in ranking.order):
                reason = "identical_as_rendered"
            if reason:
                counts["dropped", reason] += 1
                continue
            counts["kept", "empty_response"] += empty
            counts["kept", "truncated"] += kept is not sides
            counts.update(("kept", doubt) for doubt in _doubts(example, ranking))
            pairs.append([with_reward_token(ids, config) for ids in kept])
            numbers.append(number)
            margins.append(ranking.difference if options.margin_from_scores else ranking.margin)
    check_same_number([len(sides) for sides in pairs], source)
    if not pairs:
        return None, counts
    return flatten(pairs, margins, config, share_prefix=options.share_prefix, rows=numbers), counts


def _doubts(example: Example, ranking: Ranking) -> list[str]:
    if example.kind == "ids" or len(ranking.order) != 2:
        return []
    chosen, rejected = (example.responses[k] for k in ranking.order)
    return doubts(chosen, rejected, prompt_apart=example.prompt_apart)


def _parse(row: Row, tokenizer: Tokenizer, options: EncodeOptions, has_margin: bool) -> Example:
    if (row.get("margin") is not None) != has_margin:
        raise RowError("field 'margin': expected in every row or in none, found in some")
    use_scores = options.margin_from_scores or options.min_score_margin is not None
    example = parse_row(row, tokenizer, expand_pairs=options.expand_pairs, use_scores=use_scores)
    if use_scores and any(ranking.difference is None for ranking in example.rankings):
        raise RowError("a margin or filter from scores needs the scores of two responses", "missing_column")
    return example


def encode_examples(examples: Mapping[int, Example], segments: Segments) -> dict[int, list[Ids]]:
    """The token ids of every sequence of every example."""
    encoded: dict[int, list[Ids]] = {
        number: [np.asarray(ids, np.int32) for ids in example.sequences] if example.kind == "ids" else []
        for number, example in examples.items()
    }
    for kind in ("text", "chat"):
        where = [(n, text) for n, example in examples.items() if example.kind == kind for text in example.sequences]
        texts = [text for _, text in where]
        if kind == "chat":
            encodings = segments.encode(texts)
        else:
            encodings = [np.array(ids, np.int32) for ids in segments.tokenizer.encode_batch(texts)]
        for (n, _), ids in zip(where, encodings, strict=True):
            encoded[n].append(ids)
    return encoded


def without_double_bos(ids: Any, bos: int | None) -> Any:
    """The ids with repeated beginning-of-sequence tokens at the start reduced to one."""
    extra = 0
    while extra + 1 < len(ids) and ids[extra] == ids[extra + 1] == bos:
        extra += 1
    return ids[extra:]


def _without_end(ids: Ids, token: int | None) -> Ids:
    """The ids without the token at their end, which is appended when they have been cut."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == token else ids


def _check_ids(example: Example, sequences: Sequence[Ids], config: LlamaConfig) -> None:
    for k, ids in enumerate(sequences):
        if not len(ids):
            raise RowError(f"response {k} has no tokens; expected at least one")
        if example.kind == "ids" and max(ids) >= config.vocab_size:
            raise RowError(f"token id {max(ids)} in response {k}; expected ids below {config.vocab_size} (vocabulary)")


def _keep(
    sides: list[Ids], ranking: Ranking, empty: bool, bos: int | None, options: EncodeOptions
) -> tuple[list[Ids], str | None]:
    """The sequences of a comparison, truncated if needed, and the reason to drop it, if any."""
    if ranking.tied:
        return sides, "tied"
    if _identical(sides):
        return sides, "identical"
    if empty and options.drop_empty:
        return sides, "empty_response"
    if options.min_score_margin is not None and (ranking.difference or 0.0) < options.min_score_margin:
        return sides, "below_min_score_margin"
    cut = truncate(sides, options.max_length, options.truncation, bos=bos)
    if cut is None:
        return sides, "over_length"
    return cut, "identical_after_truncation" if cut is not sides and _identical(cut) else None


def _identical(sides: Sequence[Ids]) -> bool:
    return all(np.array_equal(side, sides[0]) for side in sides[1:])


def truncate(sides: list[Ids], max_length: int, how: Truncation, *, bos: int | None = None) -> list[Ids] | None:
    """Truncates the sequences of a comparison to `max_length` tokens; `None` if it must be dropped.

    `truncate-left-prompt` removes the beginning of the shared prefix, except BOS, from all sequences alike, so that
    the end of the prompt and the responses stay whole; `truncate-right` removes the ends of longer sequences.

    >>> sides = [np.array([1, 5, 6, 7, 8]), np.array([1, 5, 6, 9])]
    >>> truncate(sides, 4, "truncate-left-prompt", bos=1)
    [array([1, 6, 7, 8]), array([1, 6, 9])]
    >>> truncate(sides, 4, "truncate-right")
    [array([1, 5, 6, 7]), array([1, 5, 6, 9])]
    """
    excess = max(map(len, sides)) - max_length
    if excess <= 0:
        return sides
    if how == "truncate-right":
        return [side[:max_length] for side in sides]
    start = int(sides[0][0] == bos)
    if how == "drop" or start + excess > common_prefix(sides):
        return None
    return [np.concatenate([side[:start], side[start + excess :]]) for side in sides]


def check_same_number(numbers: Sequence[int], source: str) -> None:
    """Raises `DataError` where comparisons do not all have the same number of responses."""
    if len(set(numbers)) > 1:
        found = " and ".join(map(str, sorted(set(numbers))))
        raise DataError(f"{source}: rows with {found} responses; expected as many in every row, or pairs made of them")
