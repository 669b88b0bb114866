"""All statistics of a set of comparisons, in total and by subset and section."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy import ndarray

from ..errors import check_list
from ..shapes import checked
from .intervals import sign_test
from .statistics import auc, calibration, length_bias, share

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def _shares(margins: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None) -> dict[str, Any]:
    return {
        **share(margins > 0, prompts),
        "ties": int((margins == 0).sum()),
        "margin": float(margins.mean(dtype=np.float64)),
        "p_value": sign_test(margins, prompts),
    }


def by_subset(
    margins: Float[ndarray, "B"], subsets: Sequence[str], prompts: Int[ndarray, "B"] | None = None
) -> dict[str, dict[str, Any]]:
    """`n`, `prompts`, `accuracy`, `interval`, `ties`, mean `margin` and `p_value` of every subset, in order of name."""
    check_list("subsets", subsets)
    names = np.asarray(subsets)
    return {
        str(name): _shares(margins[names == name], None if prompts is None else prompts[names == name])
        for name in np.unique(names)
    }


def section_scores(
    subsets: Mapping[str, Mapping[str, Any]], sections: Mapping[str, Mapping[str, int | float]]
) -> dict[str, float]:
    """The accuracy of each section: `Σ w_s accuracy_s / Σ w_s` over the subsets of it that are present.

    >>> section_scores({"a": {"accuracy": 1.0}, "b": {"accuracy": 0.5}}, {"both": {"a": 1, "b": 3}, "none": {"c": 1}})
    {'both': 0.625}
    """
    scores = {}
    for section, weights in sections.items():
        present = {name: weight for name, weight in weights.items() if name in subsets}
        if present:
            total = sum(weight * subsets[name]["accuracy"] for name, weight in present.items())
            scores[section] = total / sum(present.values())
    return scores


@checked
def summarize(
    chosen: Float[ndarray, "B"],
    rejected: Float[ndarray, "B"],
    chosen_length: Num[ndarray, "B"],
    rejected_length: Num[ndarray, "B"],
    *,
    prompts: Int[ndarray, "B"] | None = None,
    subsets: Sequence[str] | None = None,
    sections: Mapping[str, Mapping[str, int | float]] | None = None,
) -> dict[str, Any]:
    """All statistics of the rewards of comparisons, as plain numbers for JSON.

    **Arguments:** rewards and lengths (tokens) of both sides; `prompts`, a number for the prompt of each comparison,
    by default each has its own; `subsets`, the name of each comparison's subset; `sections`, subsets and their weights
    by section.

    **Returns:** `n` comparisons of so many `prompts`; `accuracy` (over all comparisons: micro; a tie is wrong) with its
    `interval`; `ties`; `p_value`, of as many right as wrong comparisons without ties; the means `margin` and
    `mean_reward`, `std_reward` over both sides; `margin_quantiles`; `auc`; `calibration`; `length`; with subsets,
    `subsets` and `macro_accuracy`, the mean of their accuracies; with sections, `sections` and `section_mean`.

    **Raises:** `ValueError` where there is no comparison.
    """
    margins = chosen - rejected
    if not len(margins):
        raise ValueError("statistics need at least one comparison, found 0")
    quantiles, both = np.quantile(margins, _QUANTILES), np.stack([chosen, rejected]).astype(np.float64)
    summary = {
        **_shares(margins, prompts),
        "mean_reward": float(both.mean()),
        "std_reward": float(both.std()),
        "margin_quantiles": {f"{q:g}": float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        "auc": auc(chosen, rejected),
        "calibration": calibration(margins, prompts),
        "length": length_bias(chosen, rejected, chosen_length, rejected_length, prompts),
    }
    if subsets is not None:
        summary["subsets"] = by_subset(margins, subsets, prompts)
        summary["macro_accuracy"] = float(np.mean([subset["accuracy"] for subset in summary["subsets"].values()]))
        if sections is not None:
            scores = section_scores(summary["subsets"], sections)
            summary["sections"] = scores
            summary["section_mean"] = float(np.mean(list(scores.values()))) if scores else None
    return summary
