"""`scores.jsonl`: the rewards of every row of a data set by one or several models, one line each."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray


class Pairs(NamedTuple):
    """Rewards and lengths (tokens) of comparisons, flat; `row` says where each comes from, `prompts` its prompt."""

    chosen: Float[ndarray, "B"]
    rejected: Float[ndarray, "B"]
    chosen_length: Int64[ndarray, "B"]
    rejected_length: Int64[ndarray, "B"]
    row: Int64[ndarray, "B"]
    subsets: list[str] | None
    prompts: Int64[ndarray, "B"]


def pairs_of(lines: Sequence[dict[str, Any]]) -> Pairs:
    """The comparisons that lines make: of two responses the first is the chosen one; of K, those of unequal scores.

    >>> line = {"row": 7, "rewards": [0.5, 2.0, 1.0], "lengths": [4, 5, 6], "scores": [1.0, 0.0, 0.0]}
    >>> found = pairs_of([line])
    >>> found.chosen.tolist(), found.rejected.tolist(), found.row.tolist()
    ([0.5, 0.5], [2.0, 1.0], [7, 7])
    """
    rows: list[tuple[float, float, int, int, int, int]] = []
    subsets: list[str] = []
    for line in lines:
        r, lengths = line["rewards"], line["lengths"]
        for i, j in _ordered(line.get("scores") or [1.0, 0.0]):
            rows.append((r[i], r[j], lengths[i], lengths[j], line["row"], line.get("prompt", line["row"])))
            subsets.append(line.get("subset", ""))
    columns = np.array(rows, np.float64).reshape(-1, 6).T
    return Pairs(
        chosen=columns[0],
        rejected=columns[1],
        chosen_length=columns[2].astype(np.int64),
        rejected_length=columns[3].astype(np.int64),
        row=columns[4].astype(np.int64),
        subsets=subsets if any("subset" in line for line in lines) else None,
        prompts=columns[5].astype(np.int64),
    )


def _ordered(scores: Sequence[float]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in itertools.permutations(range(len(scores)), 2) if scores[i] > scores[j]]


def kwise_of(lines: Sequence[dict[str, Any]]) -> dict[int, tuple[Float[ndarray, "B K"], Float[ndarray, "B K"]]]:
    """Rewards and scores of K-wise rows by K, in rising order; nothing where all rows are pairs.

    >>> list(kwise_of([{"rewards": [0.5, 2.0, 1.0], "scores": [1.0, 0.0, 0.0]}, {"rewards": [1.0, 0.0]}]))
    [3]
    """
    by_size: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if "scores" in line:
            by_size.setdefault(len(line["scores"]), []).append(line)
    return {
        size: tuple(np.array([line[name] for line in by_size[size]], np.float64) for name in ("rewards", "scores"))
        for size in sorted(by_size)
    }  # pyright: ignore[reportReturnType]


def in_order_of_rows(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of each model together, in the order of the rows; models stay in their order."""
    models = {name: number for number, name in enumerate(dict.fromkeys(line["model"] for line in lines))}
    return sorted(lines, key=lambda line: (models[line["model"]], line["row"]))
