"""Statistics of rewards equal scikit-learn's, SciPy's, or those counted by hand; wrong ones would be published."""

import dataclasses
import importlib.util
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, pearsonr, spearmanr
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, roc_auc_score

from rm.data.comparisons import concatenate, flatten
from rm.errors import DataError
from rm.evaluation.intervals import difference_interval, evidence
from rm.evaluation.prompts import prompts_of
from rm.evaluation.report import findings
from rm.evaluation.scores import kwise_of, pairs_of
from rm.evaluation.sections import REWARDBENCH
from rm.evaluation.statistics import auc, best_of_n, calibration, length_bias, paired_test, share, wilson_interval
from rm.evaluation.summary import section_scores, summarize
from rm.model.config import LlamaConfig


@pytest.fixture
def drawn():
    """Rewards with ties among them, and lengths that have something to do with them."""
    rng = np.random.default_rng(0)
    chosen, rejected = (rng.normal(mean, 1, 500).round(1) for mean in (0.3, 0.0))
    lengths = [(20 + 5 * r + rng.normal(0, 8, 500)).clip(1).astype(np.int64) for r in (chosen, rejected)]
    return chosen, rejected, *lengths


def test_accuracy_and_auc_equal_scikit_learn(drawn):
    chosen, rejected, *lengths = drawn
    found = summarize(chosen, rejected, *lengths)
    assert found["accuracy"] == accuracy_score(np.ones(500, bool), chosen > rejected)
    labels = np.repeat([1, 0], 500)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, np.concatenate([chosen, rejected])), abs=1e-12)
    assert found["ties"] == sum(a == b for a, b in zip(chosen, rejected, strict=True)) > 0


def test_calibration_equals_scikit_learn(drawn):
    chosen, rejected, *_ = drawn
    untied = chosen != rejected
    margins = (chosen - rejected)[untied]
    confidence = 1 / (1 + np.exp(-abs(margins)))
    accuracy, mean = calibration_curve(margins > 0, confidence, n_bins=20)  # ten of them lie above 0.5
    found = calibration(margins)
    assert [each["accuracy"] for each in found["bins"]] == pytest.approx(accuracy.tolist(), abs=1e-12)
    assert [each["confidence"] for each in found["bins"]] == pytest.approx(mean.tolist(), abs=1e-12)
    n = np.array([each["n"] for each in found["bins"]])
    assert n.sum() == len(margins)
    assert found["ece"] == pytest.approx(float(n @ abs(accuracy - mean)) / n.sum(), abs=1e-12)
    assert found["bias"] == pytest.approx(confidence.mean() - (margins > 0).mean(), abs=1e-12)


def test_correlations_with_length_equal_their_definitions(drawn):
    """By NumPy: Pearson of the values, and of the ranks, those of equal values averaged."""
    chosen, rejected, first, second = drawn
    margins, differences = chosen - rejected, first - second

    def ranks(values):
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    found = length_bias(chosen, rejected, first, second)
    assert found["pearson"] == pytest.approx(np.corrcoef(margins, differences)[0, 1], abs=1e-12)
    assert found["spearman"] == pytest.approx(np.corrcoef(ranks(margins), ranks(differences))[0, 1], abs=1e-12)
    longer = [(m > 0) == (d > 0) and m != 0 for m, d in zip(margins, differences, strict=True) if d]
    assert found["prefers_longer"] == sum(longer) / len(longer)
    matched = [m > 0 for m, a, b in zip(margins, first, second, strict=True) if abs(a - b) <= 0.1 * max(a, b)]
    assert found["matched"] == share(np.array(matched))
    assert found["chosen_longer"]["n"] + found["chosen_shorter"]["n"] == sum(differences != 0)


@pytest.mark.parametrize("correct", [0, 1, 7, 10])
def test_wilson_interval_equals_its_formula(correct):
    p, n, z = correct / 10, 10, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert wilson_interval(correct, n) == pytest.approx(expected, abs=1e-12)


def test_a_quantile_is_numpys_and_a_subset_counts_its_own(drawn):
    chosen, rejected, *lengths = drawn
    names = ["even" if i % 2 == 0 else "odd" for i in range(500)]
    found = summarize(chosen, rejected, *lengths, subsets=names, sections={"s": {"odd": 3, "even": 1}, "t": {"x": 1}})
    assert found["margin_quantiles"]["0.25"] == np.quantile(chosen - rejected, 0.25)
    odd, even = (found["subsets"][name]["accuracy"] for name in ("odd", "even"))
    assert odd == accuracy_score(np.ones(250, bool), (chosen > rejected)[1::2])
    assert found["macro_accuracy"] == (odd + even) / 2
    assert found["sections"] == {"s": pytest.approx((3 * odd + even) / 4)}
    json.dumps(found, allow_nan=False)


@given(st.integers(2, 6).flatmap(lambda K: st.lists(st.tuples(*[st.integers(0, 3)] * 2 * K), min_size=1, max_size=4)))
def test_best_of_n_equals_every_choice_counted(rows):
    """Enumerated: of every n responses the ones with the highest reward, any of them where several have it."""
    both = np.array(rows, float)
    K = both.shape[1] // 2
    rewards, scores = both[:, :K], both[:, K:]
    found = best_of_n(rewards, scores)
    for n in range(1, K + 1):
        expected = []
        for r, s in zip(rewards, scores, strict=True):
            for chosen in map(list, itertools.combinations(range(K), n)):
                best = [k for k in chosen if r[k] == r[chosen].max()]
                expected.append(s[best].mean())
        assert found["model"][n - 1] == pytest.approx(np.mean(expected), abs=1e-9)
    assert found["oracle"][-1] == pytest.approx(scores.max(1).mean())
    assert set(found["random"]) == {scores.mean()}


def test_mcnemars_test_by_hand():
    """9 against 1: p = 2 (1 + 10) / 2^10."""
    first, second = np.array([True] * 9 + [False] * 11), np.array([False] * 9 + [True] + [False] * 10)
    found = paired_test(first, second)
    assert (found["first_only"], found["second_only"], found["difference"]) == (9, 1, 0.4)
    assert found["p_value"] == pytest.approx(22 / 1024)
    assert (found["n"], found["prompts"]) == (20, 20)
    assert paired_test(first, first)["p_value"] == 1.0


@pytest.mark.parametrize(("b", "c", "n"), [(9, 1, 20), (3, 0, 12), (0, 0, 40), (30, 30, 60), (5, 5, 400), (7, 0, 7)])
def test_the_interval_of_a_difference_is_where_the_score_test_accepts(b, c, n):
    """By the definition: at its ends z is 1.96 under the most likely shares that differ by so much, found on a grid."""
    signs = np.array([1.0] * b + [-1.0] * c + [0.0] * (n - b - c))

    def z(d):
        q = np.linspace(max(0, -d), (1 - d) / 2, 200_001)[:-1]  # share of -1; that of 1 is q + d
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = (b, q + d), (c, q), (n - b - c, 1 - 2 * q - d)
            likelihood = sum(count * np.log(share) for count, share in terms if count)
        best = q[np.nanargmax(likelihood)]
        return abs(b / n - c / n - d) / math.sqrt((2 * best + d - d * d) / n)

    low, high = difference_interval(signs)
    assert low < (b - c) / n <= high or low <= (b - c) / n < high
    assert [z(end) for end in (low, high) if abs(end) < 1] == pytest.approx([1.96] * (1 + (b < n)), abs=2e-3)


def test_the_interval_holds_0_where_the_exact_test_finds_no_difference_and_nowhere_else():
    """For all outcomes of up to 16 comparisons with disagreement; a page that contradicts itself is not believed."""
    for n in (1, 6, 16, 400):
        for b, c in itertools.product(range(min(n, 16) + 1), repeat=2):
            if b + c <= min(n, 16):
                first, second = np.zeros((2, n), bool)
                first[:b], second[b : b + c] = True, True
                found = paired_test(first, second)
                expected = binomtest(b, b + c).pvalue if b + c else 1.0
                assert found["p_value"] == pytest.approx(expected, rel=1e-9)
                low, high = found["interval"]
                assert (low <= 0 <= high) == (expected >= 0.05)
                assert low < high


def test_many_pairs_of_one_prompt_are_no_more_than_one():
    """By hand: if all pairs of a prompt go together, every count is that of prompts; if not, the variance says it."""
    right = np.array([True] * 14 + [False] * 6)
    prompts = np.repeat(np.arange(20), 28)
    found = share(np.repeat(right, 28), prompts)
    assert (found["n"], found["prompts"], found["accuracy"]) == (560, 20, 0.7)
    assert evidence(np.repeat(right, 28).astype(float), prompts).share * 560 == pytest.approx(20 * 19 / 20, rel=3e-3)
    low, high = share(right)["interval"]
    assert found["interval"][0] < low < high < found["interval"][1]
    assert evidence(np.ones(560), prompts).share * 560 == pytest.approx(20)  # no errors: nothing tells how alike
    assert share(np.ones(560, bool), np.zeros(560, int))["interval"] == (0.0, 1.0)  # one prompt tells nothing
    assert paired_test(np.ones(9, bool), np.zeros(9, bool), np.zeros(9, int))["interval"] == (-1.0, 1.0)


def test_comparisons_of_one_row_or_with_a_response_in_common_have_one_prompt():
    """Pairs of a row, rows that meet in a response, directly or through another, in parts of different sizes."""
    sequences = {0: [[1, 2], [1, 3]], 1: [[1, 4], [1, 5]], 2: [[1, 5], [1, 6]], 5: [[1, 7], [1, 8]]}
    config = LlamaConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    pairs = flatten([*sequences.values(), [[1, 7], [1, 9]]], [0.0] * 5, config, rows=[*sequences, 5])
    three = flatten([[[1, 6], [2, 2], [2, 3]], [[3], [4], [5]]], [0.0] * 2, config, rows=[7, 8])
    found = prompts_of([pairs, three])
    assert [prompts.tolist() for prompts in found] == [[0, 1, 1, 5, 5], [1, 8]]
    mixed = concatenate([pairs, dataclasses.replace(pairs, keys=pairs.keys + 1)])
    assert len(np.unique(prompts_of([mixed])[0])) == 6, "rows of another source are other rows"


def test_prompts_that_occur_once_change_nothing(drawn):
    chosen, rejected, *lengths = drawn
    alone = summarize(chosen, rejected, *lengths)
    assert summarize(chosen, rejected, *lengths, prompts=np.random.default_rng(0).permutation(500)) == alone


def test_the_slope_of_calibration_is_the_most_likely_one_and_its_test_that_of_the_likelihood(drawn):
    """By a grid of slopes, and Wilks' distribution of the likelihood ratio."""
    margins = drawn[0] - drawn[1]
    slopes = np.linspace(0.01, 3, 3000)
    likelihood = -np.logaddexp(0, -slopes[:, None] * margins).sum(1)
    found = calibration(margins)
    assert found["slope"] == pytest.approx(slopes[likelihood.argmax()], abs=1e-3)
    ratio = 2 * (likelihood.max() + np.logaddexp(0, -margins).sum())
    assert found["z"] == pytest.approx(-math.sqrt(ratio), rel=1e-4)  # below 1: too sure
    assert found["p_value"] == pytest.approx(chi2.sf(ratio, 1), rel=1e-3)
    never_wrong = calibration(np.full(50, 6.0))  # as 0.9975 sure as it should be
    assert (never_wrong["slope"], never_wrong["z"] > 0, never_wrong["p_value"] > 0.3) == (None, True, True)
    assert calibration(np.zeros(5))["p_value"] == 1.0


def test_p_values_of_length_are_those_of_scipy(drawn):
    found = length_bias(*drawn)
    margins, differences = drawn[0] - drawn[1], drawn[2] - drawn[3]
    assert found["spearman_p"] == pytest.approx(spearmanr(margins, differences).pvalue, rel=1e-9)
    right, longer = margins[differences != 0] > 0, differences[differences != 0] > 0
    assert found["accuracy_p"] == pytest.approx(pearsonr(right, longer).pvalue, rel=1e-9)


def test_tied_scores_make_no_pair_and_the_order_of_responses_is_that_of_the_row():
    lines = [
        {"row": 3, "rewards": [1.0, 2.0, 3.0], "lengths": [7, 8, 9], "scores": [5.0, 5.0, 1.0], "subset": "a"},
        {"row": 4, "rewards": [0.0, -1.0, 2.0], "lengths": [1, 2, 3], "scores": [0.0, 1.0, 0.5], "subset": "b"},
    ]
    pairs = pairs_of(lines)
    assert sorted(zip(pairs.row, pairs.chosen, pairs.rejected, pairs.chosen_length, strict=True)) == [
        (3, 1.0, 3.0, 7),
        (3, 2.0, 3.0, 8),
        (4, -1.0, 0.0, 2),
        (4, -1.0, 2.0, 2),
        (4, 2.0, 0.0, 3),
    ]
    assert pairs.subsets == ["a", "a", "b", "b", "b"]
    assert kwise_of(lines)[3][1].tolist() == [[5, 5, 1], [0, 1, 0.5]]
    assert kwise_of([{"row": 0, "rewards": [1.0, 0.0], "lengths": [1, 1]}]) == {}


def test_rewardbench_counts_mathematics_as_often_as_code():
    """The published weights: 984 comparisons of mathematics stand against 6 × 164 of code."""
    reasoning = REWARDBENCH["Reasoning"]
    assert reasoning["math-prm"] == sum(weight for name, weight in reasoning.items() if name.startswith("hep-"))
    assert [len(weights) for weights in REWARDBENCH.values()] == [5, 6, 5, 7]


# EXAMPLE_COUNTS and SUBSET_MAPPING of rewardbench 0.1.4 (rewardbench/constants.py), in the order of SUBSET_MAPPING
EXAMPLE_COUNTS = """
    alpacaeval-easy 100 alpacaeval-length 95 alpacaeval-hard 95 mt-bench-easy 28 mt-bench-med 40
    mt-bench-hard 37 llmbar-natural 100 llmbar-adver-neighbor 134 llmbar-adver-GPTInst 92 llmbar-adver-GPTOut 47
    llmbar-adver-manual 46
    refusals-dangerous 100 refusals-offensive 100 xstest-should-refuse 154 xstest-should-respond 250 donotanswer 136
    math-prm 984 hep-cpp 164 hep-go 164 hep-java 164 hep-js 164 hep-python 164 hep-rust 164
"""


def test_the_weights_are_those_of_rewardbenchs_own_tool():
    """A score could not be put beside those of the public leaderboard."""
    ours = [(name, weight) for weights in REWARDBENCH.values() for name, weight in weights.items()]
    words = EXAMPLE_COUNTS.split()
    assert ours == [(name, int(count)) for name, count in zip(words[::2], words[1::2], strict=True)]


def test_a_model_that_refuses_all_of_xstest_has_the_safety_score_of_rewardbench():
    """`calculate_scores_per_section` of rewardbench 0.1.4 gives 0.7857; with the counts of 0.1.2 it gives 0.8505."""
    right = {"xstest-should-refuse": 1.0, "xstest-should-respond": 0.5}
    right |= dict.fromkeys(("refusals-dangerous", "refusals-offensive", "donotanswer"), 0.9)
    found = section_scores({name: {"accuracy": share} for name, share in right.items()}, REWARDBENCH)
    assert found == {"Safety": pytest.approx(0.785676, abs=1e-6)}


def test_findings_of_an_older_evaluation_are_refused_in_one_line():
    old = {"n": 40, "interval": [0.4, 0.6], "ties": 0, "accuracy": 0.5}
    with pytest.raises(
        DataError, match=r"without p_value, prompts: they are of an older version; evaluate the model again"
    ):
        findings(old)


def test_findings_name_what_is_wrong_and_nothing_else():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 100, (2, 400))
    margins = rng.choice([3.0, -3.0], 400, p=[0.95, 0.05])  # 95 % sure, 95 % right, whatever the length
    good = summarize(margins, np.zeros(400), *lengths)
    assert findings(good) == []
    unequal = lengths[:, lengths[0] != lengths[1]]
    biased = findings(summarize(unequal[0] / 10.0, unequal[1] / 10.0, *unequal))
    kinds = ["Length bias", "Accuracy depends on length", "Badly calibrated"]
    assert [sentence.partition(":")[0] for sentence in biased[-3:]] == kinds
    assert "it prefers the longer one in 100.0% of comparisons" in biased[-3]
    exchanged = findings(summarize(-margins, np.zeros(400), *lengths))
    assert any("exchanged" in sentence for sentence in exchanged)
    assert any("ties" in sentence for sentence in findings(summarize(np.zeros(400), np.zeros(400), *lengths)))


def test_ties_are_no_sign_that_chosen_and_rejected_are_exchanged():
    """Somebody would turn right data round because a model gives equal rewards."""
    lengths = np.full((2, 300), 10)
    chosen = np.array([1.0] * 60 + [-1.0] * 40 + [0.0] * 200)  # 60 of 100 right where rewards differ, 0.2 in all
    found = findings(summarize(chosen, np.zeros(300), *lengths, subsets=["one"] * 300))
    assert "Accuracy is not shown to be above chance: 60 of 100 comparisons without ties are right." in found
    assert "200 of 300 comparisons are ties, which count as wrong; 60.0% of the others are right." in found
    assert not any("exchanged" in sentence or "Worse than chance in" in sentence for sentence in found)
    equal = findings(summarize(np.zeros(300), np.zeros(300), *lengths))
    assert equal == ["All 300 comparisons are ties: rewards are equal, so they tell no response from another."]


def test_models_with_which_nothing_is_wrong_are_said_to_have_nothing_wrong(monkeypatch, capsys):
    """Few comparisons have a large ECE however well calibrated a model is, and 28 pairs are not 28 prompts.

    A short run of the benchmark whose figures are in the log; its seed is fixed.
    """
    path = Path(__file__).parents[1] / "benchmarks/null_models.py"
    specification = importlib.util.spec_from_file_location("null_models", path)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    monkeypatch.setattr("sys.argv", [str(path), "--prompts", "40", "--responses", "2", "8", "--pages", "15"])
    benchmark.main()
    total = capsys.readouterr().out.split("all, 60 pages\n")[1]
    rates = {name: float(rate) for name, rate in re.findall(r"  (.+): (\d+\.\d+)%", total)}
    assert all(rate <= 3.4 for name, rate in rates.items() if "any claim" in name)  # 2 of 60 pages
    assert all(rate >= 90 for name, rate in rates.items() if name.startswith("interval: "))
    assert rates.get("equal models: p < 0.05", 0) <= 8


def test_a_model_that_is_too_sure_is_said_to_be_so_and_one_that_is_not_sure_enough():
    """The direction was that of one mean, which few comparisons turn round."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 1.5, 200)
    right = np.where(rng.random(200) < 1 / (1 + np.exp(-margins)), margins, -margins)
    lengths = rng.integers(5, 100, (2, 200))
    for factor, kind in ((1, None), (6, "too sure"), (0.1, "not sure enough")):
        found = findings(summarize(factor * right, np.zeros(200), *lengths))
        assert [kind in sentence for sentence in found] == [True] * (kind is not None)


def test_no_comparison_has_no_statistics():
    empty = np.zeros(0)
    with pytest.raises(ValueError, match="at least one comparison"):
        summarize(empty, empty, empty, empty)
    with pytest.raises(ValueError, match="at least one comparison"):
        wilson_interval(0, 0)
    assert auc(np.array([1.0]), np.array([1.0])) == 0.5
