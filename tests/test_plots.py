"""The figures: what is drawn is what was given, axes say what they show, and nothing hides."""

import json

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

import rm
from rm import plots
from rm.evaluation.statistics import best_of_n as expected_best_of_n
from rm.evaluation.statistics import calibration
from rm.evaluation.summary import by_subset


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def rewards():
    rng = np.random.default_rng(0)
    return rng.normal(0.5, 1, 300), rng.normal(0, 1, 300)


def run_directory(path, slope):
    lines = [{"step": s, "epoch": s / 10, "loss": 0.7 - slope * s, "accuracy": 0.5 + slope * s} for s in range(1, 6)]
    lines += [{"step": 5, "epoch": 0.5, "eval_test_loss": 0.6, "eval_test_accuracy": 0.75}]
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def overlaps(ax) -> bool:
    """Whether the legend lies over the data's part of the figure."""
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    return legend is not None and legend.get_window_extent().overlaps(ax.get_window_extent())


def test_curves_of_several_runs_are_drawn_from_their_logs(tmp_path):
    """A figure of the wrong column, or of one run for another, would mislead without looking wrong."""
    runs = [run_directory(tmp_path / "fast", 0.05), run_directory(tmp_path / "slow", 0.01)]
    ax = plots.training_curves(*runs, metric="accuracy")
    drawn = {line.get_label(): np.asarray(line.get_xydata()) for line in ax.get_lines()}
    np.testing.assert_allclose(drawn["fast"], [[s, 0.5 + 0.05 * s] for s in range(1, 6)])
    np.testing.assert_allclose(drawn["slow"][-1], [5, 0.55])
    np.testing.assert_allclose(drawn["slow, test"], [[5, 0.75]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("update", "accuracy")
    assert not overlaps(ax)


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(rm.DataError, match="slow: no field 'speed' in its metrics; found accuracy, eval_test_accuracy"):
        plots.training_curves(run_directory(tmp_path / "slow", 0.01), metric="speed")
    with pytest.raises(rm.DataError, match=r"nowhere/metrics.jsonl: cannot be read .*; name the directory of a run"):
        plots.training_curves(tmp_path / "nowhere")
    (tmp_path / "slow/metrics.jsonl").write_text("{}\n[1]\n", encoding="utf-8")
    with pytest.raises(rm.DataError, match=r"metrics.jsonl: line 2: expected a JSON object, found list"):
        plots.training_curves(tmp_path / "slow")


def test_the_histogram_counts_every_reward(rewards):
    ax = plots.reward_histogram(*rewards, bins=20)
    counts = [sum(patch.get_height() for patch in container) for container in ax.containers]
    assert counts == [300, 300]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"{name}, mean {values.mean():.2f}" for name, values in zip(("chosen", "rejected"), rewards, strict=True)
    ]
    assert not overlaps(ax)


def test_reliability_draws_the_bins_of_calibration(rewards):
    margins = rewards[0] - rewards[1]
    ax = plots.reliability(margins)
    (points, _, _) = ax.containers[0]
    bins = calibration(margins)["bins"]
    np.testing.assert_allclose(points.get_xydata(), [[each["confidence"], each["accuracy"]] for each in bins])
    assert not overlaps(ax)


def test_every_subset_has_its_point_and_its_number(rewards):
    subsets = by_subset(rewards[0] - rewards[1], ["a"] * 100 + ["b"] * 150 + ["a name too long for the figure"] * 50)
    ax = plots.accuracy_by_subset(subsets)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a (100)", "a name too long for the… (50)", "b (150)"]
    (points, _, _) = ax.containers[0]
    assert points.get_xdata().tolist() == [each["accuracy"] for each in subsets.values()]
    ax = plots.accuracy_by_subset(by_subset(rewards[0] - rewards[1], ["a"] * 300, np.arange(300) // 10))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a (300 of 30 prompts)"]


def test_reward_against_length_draws_all_and_the_means_of_eighths(rewards):
    lengths = np.arange(1, 301)
    ax = plots.reward_against_length(rewards[0], lengths)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.stack([lengths, rewards[0]], 1))
    (means,) = ax.get_lines()
    assert len(means.get_xdata()) == 8
    assert means.get_ydata()[0] == pytest.approx(rewards[0][:38].mean())  # the first eighth of 300: 1 to 38.375
    assert "tokens" in ax.get_xlabel()
    few = plots.reward_against_length(rewards[0], np.minimum(lengths, 100), bins=5)  # three quantiles are equal
    assert [text.get_text() for text in few.get_legend().get_texts()] == ["means by length, 2 bins"]


def test_best_of_n_draws_its_statistics():
    rng = np.random.default_rng(0)
    rewards, scores = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    ax = plots.best_of_n(rewards, scores)
    expected = expected_best_of_n(rewards, scores)
    for line in ax.get_lines():
        np.testing.assert_allclose(line.get_ydata(), expected[str(line.get_label())])
    assert not overlaps(ax)


def test_a_figure_goes_onto_the_axes_given(rewards):
    _, (left, right) = plt.subplots(1, 2)
    assert plots.reward_histogram(*rewards, ax=left) is left
    assert plots.reliability(rewards[0] - rewards[1], ax=right) is right
    assert len(plt.get_fignums()) == 1


def test_colours_are_readable_on_white_and_on_black():
    """WCAG 2 asks for a contrast of about 3 for what is drawn; the report is read on both."""

    def luminance(colour):
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colour in plots.COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 2.9, colour
        assert (luminance(colour) + 0.05) / (luminance("#161616") + 0.05) >= 3, colour
