"""Tokenizes preference rows, in chunks and in parallel, by the conventions of TRL."""

import dataclasses
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard, Union

import numpy as np

from ..errors import DataError, RmError, check_list, first_line
from ..files.output import writing
from ..model.config import LlamaConfig
from ..text.pad_token import check_vocabulary
from ..text.tokenizer import Tokenizer, tokenizer_from_files
from .cache import Result, cache_entry, load_entry, save_entry
from .comparisons import ARRAYS, TokenizedComparisons
from .doubtful import contradicting, repeated
from .encode import (
    Chunk,
    Counts,
    EncodeOptions,
    Invalid,
    Parsed,
    Truncation,
    check_same_number,
    encode_chunk,
    encode_examples,
    parse_chunk,
)
from .formats import COLUMNS, NULLABLE, are_enough
from .joining import join_responses
from .public_forms import columns_of_forms
from .render import Row
from .segments import Segments
from .table import data_table, dropped_by_reason

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Rows = Union[list[Row], "pa.Table"]
Job = tuple[Rows, int, bool]  # rows, the number of the first one, whether they have margins

_CHUNK = 1024  # rows whose texts are in memory at a time
_NO_TOKENS = np.zeros(0, np.int32)
_segments: Segments  # of a worker process


class NoComparisons(DataError):
    """The error that no row gives a comparison; `counts` has the reasons."""

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
    drop_duplicates: bool = False,
    drop_contradictions: bool = False,
    invalid: Invalid = "raise",
    limit: int | None = None,
    num_proc: int = 1,
    cache: bool = True,
    source: str = "data",
) -> tuple[TokenizedComparisons, dict[str, Any]]:
    """Tokenizes preference rows of any known format; docs/data.md lists the columns.

    Text: the end-of-sequence token is appended where missing; prompt and response are joined as strings and tokenized
    together. Chat: the template renders prompt and response as one conversation, and no special token is added.
    A comparison with a sequence over `max_length` tokens, or with identical sequences, is dropped and counted.

    **Arguments:** `rows`, a `datasets.Dataset` or dicts; `config`, for the pad token and the vocabulary;
    `truncation`, the treatment of longer sequences: `"truncate-left-prompt"` removes the beginning of the shared
    prefix, `"truncate-right"` the ends; `share_prefix`, whether the shared prefix of a comparison is stored once;
    `expand_pairs`, whether a K-wise row gives every pair of its responses (without ties) or one comparison of K;
    `margin_from_scores`, whether the margin is the difference of the scores; `min_score_margin`, the least such
    difference to keep; `drop_empty`, whether comparisons with an empty response are dropped; `drop_duplicates`, whether
    pairs that occur before are; `drop_contradictions`, whether pairs that occur the other way round are, both of them;
    `invalid`, whether a malformed row is an error or is dropped; `limit`, the number of comparisons after which reading
    stops; `num_proc`, processes (more than one need `if __name__ == "__main__":` in a script); `cache`, whether the
    result for a `Dataset` is kept on disk and reused; `source`, the name of the data in errors.

    **Returns:** the comparisons, and a table of what was read, kept and dropped (`data_table`).

    **Raises:** `DataError`, naming the row and the field; `TokenizerError` where the tokenizer does not fit the model.

    >>> rows = [{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}]
    >>> comparisons, table = tokenize_comparisons(rows, tokenizer, model.config)  # doctest: +SKIP
    """
    check_list("rows", rows)
    rows = join_responses(rows)
    check_vocabulary(tokenizer, config)
    options = EncodeOptions(
        max_length=max_length,
        truncation=truncation,
        share_prefix=share_prefix,
        expand_pairs=expand_pairs,
        margin_from_scores=margin_from_scores,
        min_score_margin=min_score_margin,
        drop_empty=drop_empty,
        drop_duplicates=drop_duplicates,
        drop_contradictions=drop_contradictions,
        invalid=invalid,
    )
    columns, unread = _split_columns(rows) if _is_dataset(rows) else ([], Counter())
    cached = cache and limit is None
    entry = cache_entry(rows, columns, tokenizer, config, options) if cached and _is_dataset(rows) else None
    result = load_entry(entry) if entry else None
    if result is None:
        jobs = _jobs(_read(rows, columns, source))
        chunks = _encode_all(jobs, tokenizer, config, options, num_proc, source, limit is None)
        with tempfile.TemporaryFile() as file:
            result = _collect(chunks, file, limit, options, source)
            if entry:
                save_entry(entry, file, *result)
    comparisons, counts = result[0], result[1] + unread
    for reason, mask in {"duplicates": repeated, "contradictions": contradicting}.items():
        if getattr(options, f"drop_{reason}") and (left_out := mask(comparisons)).any():
            comparisons = comparisons.take(np.flatnonzero(~left_out))
            counts["dropped", reason] += int(left_out.sum())
    if not len(comparisons):
        raise NoComparisons(f"{source}: all comparisons contradict others; nothing is left", counts)
    comparisons = dataclasses.replace(comparisons, sources=(source,))  # a cached result may have had another name
    return comparisons, data_table(comparisons, counts)


def _is_dataset(rows: Any) -> TypeGuard["Dataset"]:
    return hasattr(rows, "select_columns") and hasattr(rows, "__len__")


def _split_columns(rows: "Dataset") -> tuple[list[str], Counts]:
    """The columns that are read, and counts of those that are not; a column that is all null is neither."""
    empty = {name for name in rows.column_names if rows.data.column(name).null_count == len(rows.data) > 0}
    known = COLUMNS | columns_of_forms(rows.column_names)
    read = [name for name in rows.column_names if name in known and (name not in empty or name in NULLABLE)]
    unread = [name for name in rows.column_names if name not in known and name not in empty]
    counts = Counter({("unread", name): len(rows) for name in unread})
    return (read, counts) if are_enough(set(read)) else (rows.column_names, Counter())  # errors then list all columns


def _read(rows: Any, columns: Sequence[str], source: str) -> Iterator[Rows]:
    """The rows in chunks; an error of their reader becomes a `DataError` that says after which row."""
    number = 0
    try:
        for chunk in _chunks(rows, columns):
            number += len(chunk)
            yield chunk
    except RmError:
        raise
    except Exception as error:  # every reader raises its own kind
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{source}: after row {number}: cannot be read ({reason})") from None


def _chunks(rows: Any, columns: Sequence[str]) -> Iterator[Rows]:
    if _is_dataset(rows):
        from ..files.arrow_files import read_tables

        yield from read_tables(rows, columns, _CHUNK)
        return
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _as_rows(chunk: Rows) -> Sequence[Row]:
    from ..files.columns import to_rows

    return chunk if isinstance(chunk, list) else to_rows(chunk)


def _jobs(chunks: Iterator[Rows]) -> Iterator[Job]:
    """Every chunk with the number of its first row, and whether rows have margins, as the first chunk tells."""
    first, has_margin = 0, None
    for chunk in chunks:
        if has_margin is None:
            has_margin = any(row.get("margin") is not None for row in _as_rows(chunk))
        yield chunk, first, has_margin
        first += len(chunk)


def _encode_all(
    jobs: Iterator[Job],
    tokenizer: Tokenizer,
    config: LlamaConfig,
    options: EncodeOptions,
    num_proc: int,
    source: str,
    ahead: bool,
) -> Iterator[Chunk]:
    """Encodes the chunks in order; if `ahead`, a single process reads the next rows while it encodes."""
    if num_proc == 1:
        yield from _encode(jobs, Segments(tokenizer), config, options, source, ahead=ahead)
        return
    # spawned, not forked: JAX's threads do not survive a fork
    pool = ProcessPoolExecutor(
        num_proc, get_context("spawn"), initializer=_start_worker, initargs=(tokenizer.files, tokenizer.today)
    )
    pending: deque[Future[Chunk]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(_work, job, config, options, source))
            if len(pending) > 2 * num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise RmError(f"{source}: a tokenizing process died, perhaps out of memory; lower --num-proc") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(
    jobs: Iterator[Job], segments: Segments, config: LlamaConfig, options: EncodeOptions, source: str, *, ahead: bool
) -> Iterator[Chunk]:
    """Encodes each chunk in a thread; if `ahead`, the next one is parsed and rendered meanwhile."""
    waiting: deque[tuple[Parsed, Future[Any]]] = deque()

    def finish(keep: int) -> Iterator[Chunk]:
        while len(waiting) > keep:
            parsed, encoded = waiting.popleft()
            yield encode_chunk(parsed, encoded.result(), segments.tokenizer, config, options, source)

    with ThreadPoolExecutor(1) as thread:
        for chunk, first, has_margin in jobs:
            parsed = parse_chunk(_as_rows(chunk), first, has_margin, segments.tokenizer, options, source)
            waiting.append((parsed, thread.submit(encode_examples, parsed.examples, segments)))
            yield from finish(keep=int(ahead))
        yield from finish(keep=0)


def _start_worker(files: Mapping[str, bytes], today: date) -> None:
    global _segments  # built once in each process
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _segments = Segments(dataclasses.replace(tokenizer_from_files(files), today=today))


def _work(job: Job, config: LlamaConfig, options: EncodeOptions, source: str) -> Chunk:
    return next(_encode(iter([job]), _segments, config, options, source, ahead=False))


def _collect(
    chunks: Iterator[Chunk], file: IO[bytes], limit: int | None, options: EncodeOptions, source: str
) -> Result:
    """Joins all chunks; the tokens are memory-mapped from a file, so that they need not fit in memory."""
    counts: Counter[tuple[str, str]] = Counter()
    parts: list[TokenizedComparisons] = []
    kept = size = 0
    for part, counted in chunks:
        counts.update(counted)
        if part is None:
            continue
        with writing(Path(tempfile.gettempdir())):
            file.write(part.tokens.tobytes())
            file.flush()
        parts.append(dataclasses.replace(part, tokens=_NO_TOKENS, offsets=part.offsets + size))
        kept, size = kept + len(part), size + len(part.tokens)
        if limit is not None and kept >= limit:
            counts["dropped", "not_needed"] += kept - limit
            kept = limit
            break
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
    dropped = [f"{names.get(reason, reason.replace('_', ' '))}: {n}" for reason, n in dropped_by_reason(counts).items()]
    advice = "raise --max-length or check the data" if counts["dropped", "over_length"] else "check the data"
    return f"{source}: no comparison is left of {counts['rows', 'read']} rows ({', '.join(dropped)}); {advice}"
