"""Rows of a data set to lines of scores.jsonl, and on from where that was interrupted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ..data.comparisons import TokenizedComparisons
from ..evaluate import reward_chunks
from ..model import RewardModel
from ..output import append_line, replace_file
from ..scores import read_scores

if TYPE_CHECKING:
    from datasets import Dataset

Describe = Callable[[int, np.ndarray, np.ndarray], dict[str, Any]]

_WRITTEN_TOGETHER = 16  # batches


def describe_rows(rows: "Dataset", subsets: list[str] | None) -> Describe:
    """What a line says of a row beside its rewards: subset and, of K-wise rows, the order of the responses."""
    kwise = next((name for name in ("scores", "ranks") if name in rows.column_names), None)
    values = rows[kwise] if kwise and "responses" in rows.column_names else None

    def describe(number: int, rewards: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        line: dict[str, Any] = {"row": number}
        if subsets is not None:
            line["subset"] = subsets[number]
        back = np.arange(len(rewards))
        if values is not None:
            scores = np.array(values[number], float) * (1 if kwise == "scores" else -1)
            back = np.argsort(np.argsort(-scores, kind="stable"))  # comparisons have the best response first
            line["scores"] = scores.tolist()
        return line | {"rewards": rewards[back].astype(float).tolist(), "lengths": lengths[back].tolist()}

    return describe


def score_rows(
    path: Path,
    name: str,
    model: RewardModel,
    comparisons: TokenizedComparisons,
    describe: Describe,
    *,
    batch_size: int,
    dtype: str,
) -> None:
    """Appends a line for every comparison that has none yet; what was interrupted goes on at a whole chunk."""
    lines = read_scores(path)
    done = sum(line["model"] == name for line in lines)
    if done < len(comparisons):
        keep = done - done % batch_size
        others = [line for line in lines if line["model"] != name]
        mine = [line for line in lines if line["model"] == name][:keep]
        replace_file(path, "".join(json.dumps(line) + "\n" for line in (*others, *mine)))
        done = keep
    ready: list[str] = []
    for indices, rewards in reward_chunks(model, comparisons, batch_size, jnp.dtype(dtype), start=done):
        for index, found in zip(indices, rewards, strict=True):
            entry = describe(int(comparisons.row[index]), found, comparisons.lengths[index, 1:])
            ready.append(json.dumps({"model": name, **entry}))
        if len(ready) >= _WRITTEN_TOGETHER * batch_size or indices[-1] == len(comparisons) - 1:
            append_line(path, "\n".join(ready))
            ready = []
