"""Preference rows to token ids, in chunks and in parallel; the conventions are TRL's."""

import dataclasses
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from itertools import islice
from multiprocessing import get_context
from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np

from ..config import LlamaConfig
from ..errors import DataError, RmError, first_line
from .cache import ARRAYS, Result, cache_entry, load_entry, save_entry
from .comparisons import TokenizedComparisons
from .encode import Chunk, EncodeOptions, Invalid, Truncation, check_same_number, encode_chunk
from .formats import COLUMNS
from .pad_token import check_vocabulary
from .render import Row
from .table import data_table
from .tokenizer import Tokenizer, tokenizer_from_files

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1024  # rows whose texts are in memory at a time
_NO_TOKENS = np.zeros(0, np.int32)
_tokenizer: Tokenizer  # of a worker process


class NoComparisons(DataError):
    """No row gives a comparison; `counts` says why."""

    def __init__(self, message: str, counts: Counter[tuple[str, str]]):
        super().__init__(message)
        self.counts = counts


def tokenize_comparisons(
    rows: "Iterable[Row] | Dataset",
    tokenizer: Tokenizer,
    config: LlamaConfig,
    *,
    max_length: int = 1024,
    truncation: Truncation = "drop",
    share_prefix: bool = True,
    expand_pairs: bool = True,
    margin_from_scores: bool = False,
    min_score_margin: float | None = None,
    drop_empty: bool = False,
    invalid: Invalid = "raise",
    limit: int | None = None,
    num_proc: int = 1,
    cache: bool = True,
    source: str = "data",
) -> tuple[TokenizedComparisons, dict[str, Any]]:
    """Tokenizes preference rows of any form, see README.md for the columns.

    Text: the end-of-sequence token is appended where missing, prompt and response are joined as strings and tokenized
    once. Chat: the template renders prompt and response as one conversation, and no special token is added to that.
    A comparison with a side over `max_length` tokens, or with identical sides, is dropped and counted.

    **Arguments:** `rows`, a `datasets.Dataset` or dicts; `config`, for the pooling rule and the vocabulary;
    `truncation`, what happens over `max_length` tokens: `"truncate-left-prompt"` takes the beginning of the shared
    prefix away, `"truncate-right"` the ends; `share_prefix`, whether a comparison's common token prefix is kept once;
    `expand_pairs`, whether a K-wise row gives every pair of its responses (ties left out) or one comparison of K;
    `margin_from_scores`, whether the margin is the difference of the scores; `min_score_margin`, the least such
    difference to keep; `drop_empty`, whether empty responses are left out; `invalid`, whether a malformed row ends it
    all or is left out; `limit`, comparisons after which reading ends; `num_proc`, processes (more than one need
    `if __name__ == "__main__":` in a script); `cache`, whether a `Dataset` that was tokenized in the same way before
    is taken from the disk; `source`, the name that errors use.

    **Returns:** the comparisons, and a table of what was read, kept and dropped (`data_table`).

    **Raises:** `DataError`, naming the row and the field; `TokenizerError` where the tokenizer does not fit the model.

    >>> rows = [{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}]
    >>> comparisons, table = tokenize_comparisons(rows, tokenizer, model.config)  # doctest: +SKIP
    """
    check_vocabulary(tokenizer, config)
    options = EncodeOptions(
        max_length=max_length,
        truncation=truncation,
        share_prefix=share_prefix,
        expand_pairs=expand_pairs,
        margin_from_scores=margin_from_scores,
        min_score_margin=min_score_margin,
        drop_empty=drop_empty,
        invalid=invalid,
    )
    rows = _known_columns(rows)
    entry = cache_entry(rows, tokenizer, config, options) if cache and limit is None and _is_dataset(rows) else None
    found = load_entry(entry) if entry else None
    if found is None:
        chunks = _encode_all(_jobs(_read(rows, source)), tokenizer, config, options, num_proc, source)
        with tempfile.TemporaryFile() as file:
            found = _collect(chunks, file, limit, options, source)
            if entry:
                save_entry(entry, file, *found)
    comparisons, counts = found
    comparisons = dataclasses.replace(comparisons, sources=(source,))  # a cached result may have had another name
    return comparisons, data_table(comparisons, counts)


def _is_dataset(rows: Any) -> TypeGuard["Dataset"]:
    return hasattr(rows, "select_columns") and hasattr(rows, "__len__")


def _known_columns(rows: Any) -> Any:
    """A `Dataset` without the columns that are not read, so that they are not decoded."""
    known = [name for name in rows.column_names if name in COLUMNS] if _is_dataset(rows) else []
    return rows.select_columns(known) if len(known) > 1 else rows


def _read(rows: Any, source: str) -> Iterator[list[Row]]:
    """The rows in chunks; what a reader raises in the middle of them says where."""
    number = 0
    try:
        if _is_dataset(rows):
            columns: dict[str, list[Any]]
            for columns in rows.iter(_CHUNK):  # pyright: ignore[reportAssignmentType]
                chunk: list[Row] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
                number += len(chunk)
                yield chunk
        else:
            rows = iter(rows)
            while chunk := list(islice(rows, _CHUNK)):
                number += len(chunk)
                yield chunk
    except RmError:
        raise
    except Exception as error:  # every reader raises its own kind
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{source}: after row {number}: cannot be read ({reason})") from None


def _jobs(rows: Iterator[list[Row]]) -> Iterator[tuple[list[Row], int, bool]]:
    """Every chunk with the number of its first row, and whether the rows have margins (as the very first has)."""
    first, has_margin = 0, None
    for chunk in rows:
        has_margin = "margin" in chunk[0] if has_margin is None else has_margin
        yield chunk, first, has_margin
        first += len(chunk)


def _encode_all(
    jobs: Iterator[tuple[list[Row], int, bool]],
    tokenizer: Tokenizer,
    config: LlamaConfig,
    options: EncodeOptions,
    num_proc: int,
    source: str,
) -> Iterator[Chunk]:
    """The chunks encoded, in the order of the rows."""
    if num_proc == 1:
        yield from (encode_chunk(*job, tokenizer, config, options, source) for job in jobs)
        return
    # spawned and not forked, for JAX's threads do not survive a fork
    pool = ProcessPoolExecutor(
        num_proc, get_context("spawn"), initializer=_start_worker, initargs=(tokenizer.files, tokenizer.today)
    )
    pending: deque[Future[Chunk]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(_work, *job, config, options, source))
            if len(pending) > 2 * num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise RmError(f"{source}: a tokenizing process died, perhaps for want of memory; lower --num-proc") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(files: Mapping[str, bytes], today: date) -> None:
    global _tokenizer  # a process has one, built once
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _tokenizer = dataclasses.replace(tokenizer_from_files(files), today=today)


def _work(
    rows: list[Row], first: int, has_margin: bool, config: LlamaConfig, options: EncodeOptions, source: str
) -> Chunk:
    return encode_chunk(rows, first, has_margin, _tokenizer, config, options, source)


def _collect(
    chunks: Iterator[Chunk], file: IO[bytes], limit: int | None, options: EncodeOptions, source: str
) -> Result:
    """All chunks as one; tokens go by way of a file and are mapped from there, so that they need not fit in memory."""
    counts: Counter[tuple[str, str]] = Counter()
    parts: list[TokenizedComparisons] = []
    kept = size = 0
    for chunk in chunks:
        counts.update(chunk.counts)
        if chunk.comparisons is None:
            continue
        part = chunk.comparisons
        file.write(part.tokens.tobytes())
        parts.append(dataclasses.replace(part, tokens=_NO_TOKENS, offsets=part.offsets + size))
        kept, size = kept + len(part), size + len(part.tokens)
        if limit is not None and kept >= limit:
            counts["dropped", "not_needed"] += kept - limit
            kept = limit
            break
    file.flush()
    if not kept:
        raise NoComparisons(_nothing_left(counts, options, source), counts)
    check_same_number([part.ends.shape[1] for part in parts], source)
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts])[:kept] for name in ARRAYS}
    tokens = np.memmap(file, np.int32, "r")[: columns["offsets"][-1, -1]]
    return TokenizedComparisons(tokens=tokens, **columns), counts


def _nothing_left(counts: Counter[tuple[str, str]], options: EncodeOptions, source: str) -> str:
    if not counts["rows", "read"]:
        return f"{source}: no rows; expected at least one comparison"
    names = {"over_length": f"over {options.max_length} tokens"}
    dropped = [
        f"{names.get(reason, reason.replace('_', ' '))}: {count}"
        for (kind, reason), count in counts.items()
        if kind == "dropped" and count
    ]
    advice = "raise --max-length or check the data" if counts["dropped", "over_length"] else "check the data"
    return f"{source}: no comparison is left of {counts['rows', 'read']} rows ({', '.join(dropped)}); {advice}"
