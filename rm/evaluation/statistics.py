"""Statistics of the rewards of comparisons: accuracy, calibration, length bias, best of n."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy import ndarray

from ..shapes import checked
from .intervals import correlation_test, difference_interval, mean_interval, sign_test, slope_test, wilson

_MATCHED = 0.1  # share of the longer response that lengths may differ by to count as equal


def wilson_interval(correct: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of the share `correct / n`; it stays within 0 and 1 even for small `n`.

    `(p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)`, with `p = correct / n` and `z` the normal quantile.

    **Raises:** `ValueError` where `n` is 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    from scipy.stats import norm

    if n <= 0:
        raise ValueError(f"an interval needs at least one comparison, found {n}")
    return wilson(correct, n, float(norm.isf((1 - confidence) / 2)))


def share(correct: Bool[ndarray, "n"], prompts: Int[ndarray, "n"] | None = None) -> dict[str, Any]:
    """`n`, the number of `prompts`, `accuracy` and its `interval` (95 %); the last two are `None` if `n` is 0.

    **Arguments:** `prompts`, a number for the prompt of each comparison; by default each has its own. The interval is
    Wilson's, of as many comparisons as are independent (`rm.evaluation.intervals.evidence`).

    >>> share(np.array([True, True, False, True]), np.array([0, 0, 1, 1]))["prompts"]
    2
    """
    n = len(correct)
    return {
        "n": n,
        "prompts": n if prompts is None else len(np.unique(prompts)),
        "accuracy": float(correct.mean()) if n else None,
        "interval": mean_interval(correct.astype(np.float64), prompts) if n else None,
    }


@checked
def calibration(
    margins: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None, *, bins: int = 10
) -> dict[str, Any]:
    """Accuracy of the model's preferences against their confidence, the calibration error, and a test of it.

    The model prefers the response with the higher reward, with the confidence `c = σ(|margin|)`, from 0.5 to 1. In
    equal bins of confidence, `ECE = Σ n_b / n · |accuracy_b - confidence_b|`. A tie counts half. For few comparisons
    the ECE is far above 0 however well a model is calibrated; the test is not misled by that. It compares `σ(margin)`
    with `σ(slope · margin)` by the likelihood ratio: a slope below 1 is that of a model too sure.

    **Arguments:** `margins`, `chosen - rejected`; `prompts`, a number for the prompt of each comparison, by default
    each has its own; `bins`, their number between 0.5 and 1.

    **Returns:** `ece`; `bias`, mean confidence minus accuracy; `slope`, the most likely one, `None` where all margins
    have one sign; `z`, the signed root of the likelihood ratio, below 0 for a model too sure; its `p_value`; `bins`,
    those with comparisons, each with `n`, `confidence`, `accuracy` and its `interval`.

    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 3; `rm.evaluation.intervals.slope_test`.

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
            "interval": mean_interval(right[inside], None if prompts is None else prompts[inside]),
        }
        for inside in (number == b for b in range(bins))
        if inside.any()
    ]
    ece = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in measured) / max(len(margins), 1)
    bias = float(confidence.mean() - right.mean()) if len(margins) else math.nan
    slope, z, p_value = slope_test(margins, prompts)
    return {"ece": ece, "bias": bias, "slope": slope, "z": z, "p_value": p_value, "bins": measured}


@checked
def length_bias(
    chosen: Float[ndarray, "B"],
    rejected: Float[ndarray, "B"],
    chosen_length: Num[ndarray, "B"],
    rejected_length: Num[ndarray, "B"],
    prompts: Int[ndarray, "B"] | None = None,
) -> dict[str, Any]:
    """Measures the dependence of rewards on the length of responses.

    **Arguments:** rewards, and lengths in tokens, of both responses; `prompts`, a number for the prompt of each
    comparison, by default each has its own.

    **Returns:** `spearman` and `pearson`, correlations of margin and difference in length over comparisons, so that
    effects of the prompt cancel, and `spearman_p`; among comparisons of unequal lengths, `prefers_longer`, the share
    in which the longer response has the higher reward, and `longer_is_chosen`, the share in which it is the chosen one;
    `chosen_longer`, `chosen_shorter` and `matched` (lengths within 10 %), each as `share` returns it; `accuracy_p`,
    of the test that the accuracies of the first two are equal.
    """
    from scipy.stats import pearsonr, rankdata, spearmanr

    margins, differences = chosen - rejected, chosen_length - rejected_length
    varied = len(margins) > 2 and np.ptp(margins) > 0 and np.ptp(differences) > 0
    unequal, correct = differences != 0, margins > 0
    matched = np.abs(differences) <= _MATCHED * np.maximum(chosen_length, rejected_length)
    prefers = (margins * differences > 0)[unequal]

    def of(kept: np.ndarray) -> np.ndarray | None:
        return None if prompts is None else prompts[kept]

    sides = correct[unequal].astype(np.float64), (differences[unequal] > 0).astype(np.float64)
    return {
        "spearman": float(spearmanr(margins, differences).statistic) if varied else None,  # pyright: ignore
        "spearman_p": correlation_test(rankdata(margins), rankdata(differences), prompts) if varied else None,
        "pearson": float(pearsonr(margins, differences).statistic) if varied else None,  # pyright: ignore
        "prefers_longer": float(prefers.mean()) if unequal.any() else None,
        "longer_is_chosen": float((differences > 0)[unequal].mean()) if unequal.any() else None,
        "chosen_longer": share(correct[differences > 0], of(differences > 0)),
        "chosen_shorter": share(correct[differences < 0], of(differences < 0)),
        "matched": share(correct[matched], of(matched)),
        "accuracy_p": correlation_test(*sides, of(unequal)) if unequal.any() else None,
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


def paired_test(
    first: Bool[ndarray, "B"], second: Bool[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None
) -> dict[str, Any]:
    """McNemar's exact test of a difference between two models in ranking the same comparisons correctly.

    Only comparisons that exactly one model ranks correctly count, `b` for the first and `c` for the second: `p_value`
    is two-sided, for `b` heads in `b + c` tosses of a fair coin. `difference` is `(b - c) / n`. Its interval (95 %) is
    Tango's, extended to 0 where `p_value` is 0.05 or more: it holds 0 if and only if the test finds no difference.

    **Arguments:** `prompts`, a number for the prompt of each comparison, by default each has its own. Where several
    have one prompt, test and interval are those of as many independent comparisons
    (`rm.evaluation.intervals.evidence`).

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; Tango 1998,
    "Equivalence test and confidence interval for the difference in proportions for the paired-sample design".

    >>> found = paired_test(np.array([True] * 8 + [False] * 2), np.array([True] * 3 + [False] * 7))
    >>> found["first_only"], found["second_only"], found["difference"], found["p_value"]
    (5, 0, 0.5, 0.0625)
    """
    signs = first.astype(np.float64) - second
    p_value, (low, high) = sign_test(signs, prompts), difference_interval(signs, prompts)
    if p_value >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return {
        "n": len(first),
        "prompts": len(first) if prompts is None else len(np.unique(prompts)),
        "first_only": int((signs > 0).sum()),
        "second_only": int((signs < 0).sum()),
        "difference": float(signs.mean()),
        "interval": (low, high),
        "p_value": p_value,
    }
