"""Statistics of the rewards of comparisons: accuracy, calibration, length bias, best of n."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num
from numpy import ndarray

from ..shapes import checked

_MATCHED = 0.1  # share of the longer response that lengths may differ by to count as equal


def wilson_interval(correct: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of the share `correct / n`; it stays within 0 and 1 even for small `n`.

    `(p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)`, with `p = correct / n` and `z` the normal quantile.

    **Raises:** `ValueError` where `n` is 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    from scipy.stats import binomtest

    if n < 1:
        raise ValueError(f"an interval needs at least one comparison, found {n}")
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def share(correct: Bool[ndarray, "n"]) -> dict[str, Any]:
    """`n`, `accuracy` and its Wilson `interval` (95 %); the last two are `None` if `n` is 0."""
    n, hits = len(correct), int(correct.sum())
    return {"n": n, "accuracy": hits / n if n else None, "interval": wilson_interval(hits, n) if n else None}


@checked
def calibration(margins: Float[ndarray, "B"], *, bins: int = 10) -> dict[str, Any]:
    """Accuracy of the model's preferences against their confidence, and the expected calibration error.

    The model prefers the response with the higher reward, with the confidence `c = σ(|margin|)`, from 0.5 to 1. In
    equal bins of confidence, `ECE = Σ n_b / n · |accuracy_b - confidence_b|`. A tie counts half.

    **Arguments:** `margins`, `chosen - rejected`; `bins`, their number between 0.5 and 1.

    **Returns:** `ece`; `bias`, mean confidence minus accuracy, above 0 for a model too sure; `bins`, those with
    comparisons, each with `n`, `confidence` and `accuracy`.

    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 3.

    >>> calibration(np.array([np.log(3), np.log(3), np.log(3), -np.log(3)]))["ece"]  # 0.75 sure, 3 of 4 right
    0.0
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins.astype(np.float64))))
    right = np.where(margins == 0, 0.5, margins > 0)
    number = np.minimum((2 * bins * (confidence - 0.5)).astype(int), bins - 1)
    measured = [
        {
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for inside in (number == b for b in range(bins))
        if inside.any()
    ]
    ece = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in measured) / max(len(margins), 1)
    bias = float(confidence.mean() - right.mean()) if len(margins) else math.nan
    return {"ece": ece, "bias": bias, "bins": measured}


@checked
def length_bias(
    chosen: Float[ndarray, "B"],
    rejected: Float[ndarray, "B"],
    chosen_length: Num[ndarray, "B"],
    rejected_length: Num[ndarray, "B"],
) -> dict[str, Any]:
    """Measures the dependence of rewards on the length of responses.

    **Arguments:** rewards, and lengths in tokens, of both responses.

    **Returns:** `spearman` and `pearson`, correlations of margin and difference in length over comparisons, so that
    effects of the prompt cancel; among comparisons of unequal lengths, `prefers_longer`, the share in which the longer
    response has the higher reward, and `longer_is_chosen`, the share in which it is the chosen one; `chosen_longer`,
    `chosen_shorter` and `matched` (lengths within 10 %), each with `n`, `accuracy` and `interval`.
    """
    from scipy.stats import pearsonr, spearmanr

    margins, differences = chosen - rejected, chosen_length - rejected_length
    varied = len(margins) > 2 and np.ptp(margins) > 0 and np.ptp(differences) > 0
    unequal, correct = differences != 0, margins > 0
    matched = np.abs(differences) <= _MATCHED * np.maximum(chosen_length, rejected_length)
    prefers = (margins * differences > 0)[unequal]
    return {
        "spearman": float(spearmanr(margins, differences).statistic) if varied else None,  # pyright: ignore
        "pearson": float(pearsonr(margins, differences).statistic) if varied else None,  # pyright: ignore
        "prefers_longer": float(prefers.mean()) if unequal.any() else None,
        "longer_is_chosen": float((differences > 0)[unequal].mean()) if unequal.any() else None,
        "chosen_longer": share(correct[differences > 0]),
        "chosen_shorter": share(correct[differences < 0]),
        "matched": share(correct[matched]),
    }


@checked
def auc(chosen: Float[ndarray, "B"], rejected: Float[ndarray, "B"]) -> float:
    """The share of all pairs of a chosen and a rejected response, across prompts too, that rewards order correctly.

    A tie counts half. Unlike accuracy, it falls where rewards of different prompts are not on one scale.

    >>> auc(np.array([2.0, 0.5]), np.array([1.0, 0.0]))
    0.75
    """
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(chosen, rejected).statistic) / (len(chosen) * len(rejected))


@checked
def best_of_n(rewards: Float[ndarray, "B K"], scores: Float[ndarray, "B K"]) -> dict[str, list[Any]]:
    """The expected score of the response with the highest reward among `n` drawn from the `K`, for every `n`.

    With the responses of a prompt in order of falling reward, the j-th (from 0) is the best of `n` with probability
    `C(K - 1 - j, n - 1) / C(K, n)`, so no sampling is needed. Equal rewards share their probabilities.

    **Arguments:** `rewards`, of the model; `scores`, of people or a checker, higher is better.

    **Returns:** for `n` from 1 to `K`: `model`; `oracle`, with the scores as rewards; `random`, a random response.

    Source: Nakano et al. 2021, "WebGPT", section 3.2 and appendix (the estimator of best-of-n).

    >>> best_of_n(np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 1.0, 0.0]]))["model"]
    [0.3333333333333333, 0.3333333333333333, 0.0]
    """
    K = rewards.shape[1]
    chance = np.array([[math.comb(K - 1 - j, n - 1) / math.comb(K, n) for j in range(K)] for n in range(1, K + 1)])
    return {
        "n": list(range(1, K + 1)),
        "model": (chance @ _sorted_scores(rewards, scores).mean(0)).tolist(),
        "oracle": (chance @ _sorted_scores(scores, scores).mean(0)).tolist(),
        "random": [float(scores.mean())] * K,
    }


def _sorted_scores(rewards: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The scores in order of falling reward; responses with equal rewards get the mean of their scores."""
    out = np.empty(scores.shape, np.float64)
    for row, (r, s) in enumerate(zip(rewards, scores, strict=True)):
        values, group = np.unique(-r, return_inverse=True)
        means = np.bincount(group, s, len(values)) / np.bincount(group, minlength=len(values))
        out[row] = means[np.sort(group)]
    return out


def paired_test(first: Bool[ndarray, "B"], second: Bool[ndarray, "B"]) -> dict[str, Any]:
    """McNemar's exact test of a difference between two models in ranking the same comparisons correctly.

    Only comparisons that exactly one model ranks correctly count, `b` for the first and `c` for the second: `p_value`
    is two-sided, for `b` heads in `b + c` tosses of a fair coin. `difference` is `(b - c) / n`, its interval (95 %)
    `± 1.96 √(b + c - (b - c)²/n) / n`.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions".

    >>> found = paired_test(np.array([True] * 8 + [False] * 2), np.array([True] * 3 + [False] * 7))
    >>> found["first_only"], found["second_only"], found["difference"], found["p_value"]
    (5, 0, 0.5, 0.0625)
    """
    from scipy.stats import binomtest, norm

    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    half = float(norm.ppf(0.975)) * math.sqrt(max(b + c - (b - c) ** 2 / n, 0.0)) / n
    return {
        "n": n,
        "first_only": b,
        "second_only": c,
        "difference": (b - c) / n,
        "interval": ((b - c) / n - half, (b - c) / n + half),
        "p_value": float(binomtest(b, b + c).pvalue) if b + c else 1.0,
    }
