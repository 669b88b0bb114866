"""Intervals and tests for comparisons of which several may belong to one prompt, so that they are not independent."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

_UPPER = 0.975  # the share below the upper end of a 95 % interval


class Evidence(NamedTuple):
    """Dependent comparisons as a share of `n` independent ones, with the degrees of freedom of its estimate.

    An interval or test for independent comparisons is applied to `share` times the counts (Rao and Scott). The share
    is estimated from few prompts, so quantiles are those of Student's t (Korn and Graubard). Where no two comparisons
    have a prompt in common, both change nothing.
    """

    share: float
    n: int
    df: float

    @property
    def quantile(self) -> float:
        """The normal quantile of a 95 % interval, times the ratio of Student's quantiles; infinite for one prompt."""
        from scipy.special import ndtri, stdtrit

        if self.df >= self.n - 1:
            return float(ndtri(_UPPER))
        return (
            float(ndtri(_UPPER) * stdtrit(self.df, _UPPER) / stdtrit(self.n - 1, _UPPER)) if self.df > 0 else math.inf
        )

    def widen(self, p: float) -> float:
        """The p-value of a test for independent comparisons, read from Student's t; 1 for one prompt."""
        from scipy.special import stdtr, stdtrit

        if self.df >= self.n - 1:
            return p
        return float(2 * stdtr(self.df, stdtrit(self.n - 1, p / 2))) if self.df > 0 else 1.0


def evidence(values: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None) -> Evidence:
    """Estimates how many independent values have a mean of the same variance.

    `share = 1 / deff`, with `deff = (n - 1)/n · G/(G - 1) · Σ_g (Σ_{i in g} e_i)² / Σ_i e_i²` for `G` prompts and
    `e_i = v_i - mean(v)`; `df = n² / Σ_g n_g² - 1`, which is `G - 1` for prompts of equal size.

    Source: Rao and Scott 1992, "A simple method for the analysis of clustered binary data"; Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data";
    `n² / Σ n_g²`: Kish 1965, "Survey sampling".

    >>> evidence(np.array([1.0, 1.0, 0.0, 0.0]), np.array([7, 7, 8, 8]))
    Evidence(share=0.3333333333333333, n=4, df=1.0)
    """
    n = len(values)
    _, number, sizes = np.unique(np.arange(n) if prompts is None else prompts, return_inverse=True, return_counts=True)
    df, groups = n**2 / float((sizes.astype(float) ** 2).sum()) - 1, len(sizes)
    if groups == n:
        return Evidence(1.0, n, df)
    errors = values - values.mean()
    total, sums = float(errors @ errors), np.bincount(number, errors)
    if groups == 1 or total == 0:  # nothing tells how alike the comparisons of a prompt are: each prompt counts once
        return Evidence((df + 1) / n, n, df)
    effect = (n - 1) / n * groups / (groups - 1) * float(sums @ sums) / total
    return Evidence(1 / max(effect, 0.5), n, df)  # sums that happen to be equal are no proof of certainty


def wilson(correct: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share; counts need not be whole; all of [0, 1] for an infinite quantile `z`."""
    if math.isinf(z):
        return 0.0, 1.0
    middle, half = correct + z * z / 2, z * math.sqrt(correct * (1 - correct / n) + z * z / 4)
    return max((middle - half) / (n + z * z), 0.0), min((middle + half) / (n + z * z), 1.0)


def mean_interval(values: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None) -> tuple[float, float]:
    """The 95 % interval of the mean of values from 0 to 1: Wilson's, of as many independent ones.

    Source: Franco et al. 2019, "Comparative study of confidence intervals for proportions in complex sample surveys".
    """
    found = evidence(values, prompts)
    return wilson(float(values.sum()) * found.share, found.n * found.share, found.quantile)


def sign_test(signs: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None) -> float:
    """The two-sided p-value of as many values above 0 as below; zeros do not count.

    Exact for independent values: `p = P(at least max(b, c) heads in b + c tosses) · 2`. For several values of a
    prompt, `b` and `c` are those of as many independent values, and the beta distribution stands for the binomial.

    >>> sign_test(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    0.0625
    """
    from scipy.special import betainc

    signs = np.sign(signs)
    found = evidence(signs, prompts)
    more, less = sorted((float((signs > 0).sum()) * found.share, float((signs < 0).sum()) * found.share), reverse=True)
    return found.widen(min(1.0, 2 * float(betainc(more, less + 1, 0.5)))) if more else 1.0


def difference_interval(signs: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None) -> tuple[float, float]:
    """The 95 % interval of the mean of values of -1, 0 and 1: Tango's score interval, of as many independent ones.

    It holds the differences `d` with `(b - c - nd)² ≤ z² n (2q + d(1 - d))`, where `q` is the most likely share of -1
    if the difference is `d`. It is wider than 0 where all values are 0.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-
    sample design".
    """
    from scipy.optimize import brentq

    found = evidence(signs, prompts)
    z, n = found.quantile, found.n * found.share
    b, c = float((signs > 0).sum()) * found.share, float((signs < 0).sum()) * found.share
    if math.isinf(z):
        return -1.0, 1.0

    def excess(d: float) -> float:
        linear = (2 * n - b + c) * d - b - c
        q = (math.sqrt(max(linear**2 + 8 * n * c * d * (1 - d), 0.0)) - linear) / (4 * n)
        return abs(b - c - n * d) - z * math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))

    middle, step = (b - c) / n, 1e-9  # at the middle itself the variance may be 0
    low = brentq(excess, -1.0, middle - step) if middle - step > -1 else -1.0
    high = brentq(excess, middle + step, 1.0) if middle + step < 1 else 1.0
    return float(low), float(high)  # pyright: ignore[reportArgumentType]


def correlation_test(x: Float[ndarray, "B"], y: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None) -> float:
    """The two-sided p-value of Pearson's correlation: `t = r √((m - 2)/(1 - r²))` for `m` independent comparisons.

    Of ranks it is the usual test of Spearman's correlation, of two binary variables that of two shares.
    """
    from scipy.special import stdtr

    x, y = x - x.mean(), y - y.mean()
    found, scale = evidence(x * y, prompts), math.sqrt(float(x @ x) * float(y @ y))
    m, df = found.n * found.share, found.df - 1
    if scale == 0 or m <= 2 or df <= 0:
        return 1.0
    r = min(abs(float(x @ y)) / scale, 1.0)
    return float(2 * stdtr(df, -r * math.sqrt((m - 2) / (1 - r * r)))) if r < 1 else 0.0


def slope_test(
    margins: Float[ndarray, "B"], prompts: Int[ndarray, "B"] | None = None
) -> tuple[float | None, float, float]:
    """Tests that a margin `d` is right with probability `σ(d)`, against `σ(s d)` for another slope `s`.

    **Returns:** the most likely slope, `None` where there is none since all margins have one sign; the signed root of
    the likelihood ratio, below 0 if the model is too sure (slope below 1); its p-value.

    Source: Cox 1958, "Two further applications of a model for binary regression" (slope of a calibration); the
    likelihood ratio has `1 / share` times the variance that it has for independent comparisons (Rao and Scott).
    """
    from scipy.optimize import brentq
    from scipy.special import expit, log_expit, ndtr

    kept = (margins != 0) & np.isfinite(margins)
    d, of = margins[kept].astype(np.float64), None if prompts is None else prompts[kept]
    if not len(d):
        return None, 0.0, 1.0
    size = np.abs(d).max()
    slope = None
    if (d > 0).any() and (d < 0).any():
        slope = _root(lambda s: float(d @ expit(-s * d / size)), brentq) / size
    best = 0.0 if slope is None else float(log_expit(slope * d).sum())
    sign = 1 if (d > 0).all() or (slope is not None and slope > 1) else -1
    found = evidence(d * expit(-d), of)
    root = sign * math.sqrt(max(2 * (best - float(log_expit(d).sum())), 0.0) * found.share)
    return slope, root, found.widen(float(2 * ndtr(-abs(root))))


def _root(falling: Callable[[float], float], solve: Callable) -> float:
    bound = 1.0
    while falling(bound) > 0 or falling(-bound) < 0:
        bound *= 2
    return float(solve(falling, -bound, bound))
