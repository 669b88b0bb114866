"""Figures of runs and evaluations: each function takes arrays or runs, draws on an `Axes` and returns it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy import ndarray

from ..errors import DataError
from ..files.row_files import read_lines
from .statistics import best_of_n as best_of_n_statistics
from .statistics import calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# after Okabe and Ito: distinct for every kind of colour vision, readable on white and on black
COLOURS = ("#0084d1", "#e07b00", "#009e73", "#cc79a7", "#a07c00", "#7f7f7f")
_CHOSEN, _REJECTED, _REFERENCE = COLOURS[0], COLOURS[1], COLOURS[5]
_LABELS = {
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
    "margin": "margin (chosen − rejected)",
    "mean_reward": "mean reward",
    "pairs_per_second": "pairs a second",
}
_FEW = 15  # bins of lengths with fewer responses are not drawn


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(3.6, 2.7), layout="constrained")[1]


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without a last one that was cut short.

    **Raises:** `DataError` where the file is missing or a line is not a JSON object.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: cannot be read (no such file); name the directory of a run")
    return read_lines(path)


def training_curves(
    *runs: str | Path | Sequence[Mapping[str, Any]],
    metric: str = "loss",
    labels: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """A metric over the updates of one or several runs; its values on held-out sets (`eval_…_metric`) are dashed.

    **Arguments:** `runs`, directories of runs, or the lines of `metrics.jsonl`; `metric`, a field of these lines such
    as `loss`, `accuracy`, `margin`; `labels`, a name for each run, by default that of its directory (a single run is
    labelled `train`, and its held-out sets by their names).

    **Raises:** `DataError` where a run has no such field.

    >>> ax = training_curves([{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}])
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('update', 'loss')
    """
    ax = _axes(ax)
    for number, run in enumerate(runs):
        lines = read_metrics(run) if isinstance(run, str | Path) else run
        name = labels[number] if labels else Path(run).name if isinstance(run, str | Path) else f"run {number + 1}"
        fields = {field for line in lines for field in line if field == metric or _evaluates(field, metric)}
        if not fields:
            present = sorted({field for line in lines for field in line} - {"step", "epoch"})
            raise DataError(f"{name}: no field {metric!r} in its metrics; found {', '.join(present) or 'none'}")
        for field in sorted(fields, key=len):
            points = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
            held_out = field != metric
            label = field.removeprefix("eval_").removesuffix(f"_{metric}") if held_out else "train"
            if len(runs) > 1 or labels:
                label = f"{name}, {label}" if held_out else name
            style = {"linestyle": "--", "marker": "o", "markersize": 3} if held_out else {}
            ax.plot(*np.array(points).reshape(-1, 2).T, color=COLOURS[number % 5], label=label, **style)
    if metric == "accuracy":
        ax.axhline(0.5, color=_REFERENCE, linewidth=0.8, linestyle=":")
    ax.set(xlabel="update", ylabel=_LABELS.get(metric, metric))
    if len(ax.get_lines()) > 1:
        _legend_above(ax)
    return ax


def _evaluates(field: str, metric: str) -> bool:
    return field.startswith("eval_") and field.endswith(f"_{metric}")


def reward_histogram(
    chosen: Float[ndarray, "B"], rejected: Float[ndarray, "B"], *, bins: int = 30, ax: "Axes | None" = None
) -> "Axes":
    """The distributions of chosen and rejected rewards, with their means."""
    ax = _axes(ax)
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins).tolist()
    for name, values, colour in (("chosen", chosen, _CHOSEN), ("rejected", rejected, _REJECTED)):
        ax.hist(values, edges, color=colour, alpha=0.5, label=f"{name}, mean {values.mean():.2f}")
        ax.axvline(float(values.mean()), color=colour, linewidth=1.2)
    ax.set(xlabel="reward", ylabel="responses")
    _legend_above(ax)
    return ax


def reliability(
    margins: Float[ndarray, "B"],
    prompts: Int[ndarray, "B"] | None = None,
    *,
    bins: int = 10,
    ax: "Axes | None" = None,
) -> "Axes":
    """Accuracy of the model's preferences against their confidence (`calibration`); the diagonal is ideal."""
    ax = _axes(ax)
    measured = calibration(margins, prompts, bins=bins)
    x = np.array([b["confidence"] for b in measured["bins"]])
    y = np.array([b["accuracy"] for b in measured["bins"]])
    bounds = np.array([b["interval"] for b in measured["bins"]])
    ax.plot([0.5, 1], [0.5, 1], color=_REFERENCE, linestyle=":", label="ideal")
    errors = np.clip(np.stack([y - bounds[:, 0], bounds[:, 1] - y]), 0, None)
    label = f"model, ECE {measured['ece']:.3f}"
    ax.errorbar(x, y, errors, color=_CHOSEN, marker="o", markersize=4, capsize=2, label=label)
    ax.set(xlabel="confidence σ(|margin|)", ylabel="accuracy", xlim=(0.49, 1.01), ylim=(min(0.3, *bounds[:, 0]), 1.02))
    _legend_above(ax)
    return ax


def accuracy_by_subset(subsets: Mapping[str, Mapping[str, Any]], *, ax: "Axes | None" = None) -> "Axes":
    """The accuracy of every subset with its interval; `subsets` is that field of `summarize` or `evaluation.json`."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(3.6, 0.9 + 0.22 * len(subsets)), layout="constrained")
    names = list(subsets)
    y = np.arange(len(names))[::-1]
    accuracy = np.array([subsets[name]["accuracy"] for name in names])
    bounds = np.array([subsets[name]["interval"] for name in names])
    errors = np.clip([accuracy - bounds[:, 0], bounds[:, 1] - accuracy], 0, None)
    ax.errorbar(accuracy, y, xerr=errors, color=_CHOSEN, marker="o", markersize=4, capsize=2, linestyle="")
    ax.axvline(0.5, color=_REFERENCE, linewidth=0.8, linestyle=":")
    ax.set_yticks(y, [f"{_shorten(name)} ({_number(subsets[name])})" for name in names])
    ax.set(xlabel="accuracy, 95 % interval", xlim=(-0.02, 1.02), ylim=(-0.7, len(names) - 0.3))
    return ax


def reward_against_length(
    rewards: Float[ndarray, "n"], lengths: Num[ndarray, "n"], *, bins: int = 8, ax: "Axes | None" = None
) -> "Axes":
    """Rewards of responses against their lengths in tokens, with the mean reward in each of `bins` quantile bins.

    Bins with fewer than 15 responses are left out of the line; equal quantiles make fewer bins.
    """
    ax = _axes(ax)
    ax.scatter(lengths, rewards, s=4, color=_CHOSEN, alpha=0.35, linewidths=0, rasterized=True)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)))
    which = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(len(edges) - 2, 0))
    means = [
        (lengths[which == b].mean(), rewards[which == b].mean()) for b in range(bins) if (which == b).sum() >= _FEW
    ]
    if means:
        ax.plot(
            *zip(*means, strict=True),
            color=_REJECTED,
            marker="o",
            markersize=4,
            label=f"means by length, {len(means)} bins",
        )
        _legend_above(ax)
    ax.set(xlabel="length of the response (tokens)", ylabel="reward")
    if lengths.min() > 0 and lengths.max() > 20 * np.median(lengths):
        ax.set_xscale("log")
    return ax


def best_of_n(rewards: Float[ndarray, "B K"], scores: Float[ndarray, "B K"], *, ax: "Axes | None" = None) -> "Axes":
    """The expected score of the best of `n` by reward, between a random response and the best one by score."""
    ax = _axes(ax)
    expected = best_of_n_statistics(rewards, scores)
    for name, colour, style in (("oracle", COLOURS[2], "--"), ("model", _CHOSEN, "-"), ("random", _REFERENCE, ":")):
        ax.plot(expected["n"], expected[name], color=colour, linestyle=style, marker="o", markersize=4, label=name)
    ax.set(xlabel="n (responses to choose from, by reward)", ylabel="expected score")
    if len(expected["n"]) <= 10:
        ax.set_xticks(expected["n"])
    _legend_above(ax)
    return ax


def _legend_above(ax: "Axes") -> None:
    """Puts the legend above the axes, where it hides no data."""
    labels = ax.get_legend_handles_labels()[1]
    columns = 3 if len(labels) == 3 and max(map(len, labels)) < 9 else 2
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        ncols=min(columns, len(labels)),
        frameon=False,
        fontsize="small",
        handlelength=1.5,
        columnspacing=1.0,
    )


def _number(subset: Mapping[str, Any]) -> str:
    n, prompts = subset["n"], subset.get("prompts", subset["n"])
    return str(n) if n == prompts else f"{n} of {prompts} prompts"


def _shorten(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
