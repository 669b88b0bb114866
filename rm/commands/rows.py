"""Scores the rows of a data set into scores.jsonl, and continues there after an interruption."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.comparisons import TokenizedComparisons
from ..data.encode import without_double_bos
from ..data.public_forms import find_form
from ..data.render import Row, RowError
from ..data.table import dropped_by_reason
from ..data.tokenize import NoComparisons, tokenize_comparisons
from ..errors import RmError
from ..evaluation.scoring import reward_chunks
from ..files.output import append_line
from ..files.row_files import UNREADABLE, read_lines, write_lines
from ..model.compute import Compute
from ..model.config import LlamaConfig
from ..model.llama import RewardModel
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

Describe = Callable[[int, np.ndarray, np.ndarray], dict[str, Any]]

_WRITTEN_TOGETHER = 16  # batches


def rewardbench_rows(rows: "Dataset", tokenizer: Tokenizer) -> list[Row]:
    """The rows, with pairs of texts as the token ids that RewardBench's own tool makes of them.

    A text prompt is the turn of a user, a text response that of an assistant. The template renders them, and the
    tokenizer adds what it adds to any text, but no second beginning-of-sequence token.

    Source: rewardbench 0.1.4, `prepare_dialogue_from_tokenizer` (utils.py), `RewardBenchPipeline` (models/pipeline.py).
    """
    bos = tokenizer.token_id(tokenizer.bos_token)

    def as_ids(row: Row) -> Row:
        texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(text, str) for text in texts) or row.get("system"):
            return row
        prompt, *responses = texts
        kept = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}
        turns = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": each}] for each in responses]
        try:
            sides = [without_double_bos(tokenizer.encode(tokenizer.apply_chat_template(chat)), bos) for chat in turns]
        except RmError:  # said, or counted, with the name of the row where it is rendered again
            return {**kept, "chosen": turns[0], "rejected": turns[1]}
        return {**kept, "chosen_ids": sides[0], "rejected_ids": sides[1]}

    return [as_ids(row) for row in rows]  # pyright: ignore[reportArgumentType]


def as_ranked(rows: "Dataset") -> "Dataset":
    """Rows of a public form with `prompt`, `responses` and `scores`, which statistics of K responses read."""
    import datasets

    first = next(iter(rows))
    if find_form(first) is None:  # pyright: ignore[reportArgumentType]
        return rows

    def read(row: dict[str, Any]) -> dict[str, Any]:
        form = find_form({name: value for name, value in row.items() if value is not None})
        if form is None:
            return row
        kept = {name: value for name, value in row.items() if name not in (*form.columns, *form.beside)}
        try:
            return kept | form.read(row)
        except RowError as error:  # said, or counted, with the name of the row where it is read again
            return kept | {UNREADABLE: str(error)}

    found = [read(dict(row)) for row in rows]  # pyright: ignore[reportArgumentType, reportCallIssue]
    names = dict.fromkeys(name for row in found for name in row)  # `datasets` takes those of the first row
    return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in found])  # pyright: ignore[reportArgumentType, reportCallIssue]


def tokenize_by_size(
    rows: "Dataset | list[Row]", tokenizer: Tokenizer, config: LlamaConfig, *, source: str, **options: Any
) -> tuple[list[TokenizedComparisons], dict[str, Any]]:
    """The comparisons of all rows, in one part for every number of responses, and a table of what was read.

    Of several parts the table has the sums, and that of each in `by_responses`.
    """
    sizes, parts, tables, nothing = _by_size(rows), [], {}, None
    if isinstance(rows, list) or len(sizes) < 2:
        part, table = tokenize_comparisons(rows, tokenizer, config, expand_pairs=False, source=source, **options)
        return [part], table
    for size, numbers in sizes.items():
        name = f"{source}, rows of {size} responses"
        try:
            part, tables[str(size)] = tokenize_comparisons(
                rows.select(numbers), tokenizer, config, expand_pairs=False, source=name, **options
            )
            parts.append(dataclasses.replace(part, row=np.array(numbers)[part.row]))
        except NoComparisons as error:
            read, dropped = error.counts["rows", "read"], dropped_by_reason(error.counts)
            tables[str(size)] = {"read": read, "comparisons": sum(dropped.values()), "kept": 0, "dropped": dropped}
            nothing = error
    if nothing and not parts:
        raise nothing
    return parts, _sum_tables(tables)


def _by_size(rows: "Dataset | list[Row]") -> dict[int, list[int]]:
    """The numbers of the rows with as many responses, by that number."""
    if isinstance(rows, list) or "responses" not in rows.column_names:
        return {}
    sizes = [len(value) if isinstance(value, list) else 2 for value in rows["responses"]]
    return {size: [i for i, found in enumerate(sizes) if found == size] for size in sorted(set(sizes))}


def _sum_tables(tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    dropped = sum((Counter(table["dropped"]) for table in tables.values()), Counter())
    sums = {name: sum(table[name] for table in tables.values()) for name in ("read", "comparisons", "kept")}
    return {**sums, "dropped": dict(dropped), "by_responses": tables}


def describe_rows(rows: "Dataset", subsets: list[str] | None) -> Describe:
    """The fields of a line beside the rewards: the subset and, for K-wise rows, the scores in the order of the row."""
    kwise = [name for name in ("scores", "ranks") if {name, "responses"} <= set(rows.column_names)]
    columns = {name: rows[name] for name in ("responses", *kwise)} if kwise else {}

    def describe(number: int, rewards: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        line: dict[str, Any] = {"row": number}
        if subsets is not None:
            line["subset"] = subsets[number]
        back = np.arange(len(rewards))
        name = next((name for name in kwise if columns[name][number] is not None), None)
        if name is not None and columns["responses"][number] is not None:
            scores = np.array(columns[name][number], float) * (1 if name == "scores" else -1)
            back = np.argsort(np.argsort(-scores, kind="stable"))  # comparisons have the best response first
            line["scores"] = scores.tolist()
        return line | {"rewards": rewards[back].astype(float).tolist(), "lengths": lengths[back].tolist()}

    return describe


def score_rows(
    path: Path,
    name: str,
    model: RewardModel,
    comparisons: TokenizedComparisons,
    prompts: np.ndarray,
    describe: Describe,
    *,
    batch_size: int,
    compute: Compute,
) -> None:
    """Appends a line for every comparison, all of one size, that has none yet; goes on after the last whole chunk."""
    lines, size = read_lines(path), comparisons.ends.shape[1]
    mine = [line for line in lines if line["model"] == name and len(line["rewards"]) == size]
    done = len(mine)
    if done < len(comparisons):
        done -= done % batch_size
        others = [line for line in lines if line["model"] != name or len(line["rewards"]) != size]
        write_lines(path, [*others, *mine[:done]])
    ready: list[str] = []
    for indices, rewards in reward_chunks(model, comparisons, batch_size, compute, start=done):
        for index, found in zip(indices, rewards, strict=True):
            entry = describe(int(comparisons.row[index]), found, comparisons.lengths[index, 1:])
            ready.append(json.dumps({"model": name, **entry, "prompt": int(prompts[index])}))
        if len(ready) >= _WRITTEN_TOGETHER * batch_size or indices[-1] == len(comparisons) - 1:
            append_line(path, "\n".join(ready))
            ready = []
