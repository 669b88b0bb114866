"""The report of an evaluation: tables, figures and findings on one HTML page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

from . import plots
from .scores import Pairs, kwise_of, pairs_of
from .statistics import wilson_interval

_INK = "#010203"  # a placeholder that becomes the page's text colour, light or dark
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rm",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def findings(statistics: Mapping[str, Any]) -> list[str]:
    """Warnings for a reader of the accuracy, one sentence each: chance level, length bias, calibration, ties, few data.

    **Arguments:** `statistics`, the result of `summarize`.
    """
    n, length, sure = statistics["n"], statistics["length"], statistics["calibration"]
    low, high = statistics["interval"]
    sentences = []
    if low <= 0.5 <= high:
        sentences.append(f"Accuracy cannot be told from chance: 0.5 lies in its interval, {low:.3f} to {high:.3f}.")
    elif high < 0.5:
        why = "are chosen and rejected exchanged?" if _prefers_rejected(statistics) else "ties count as wrong."
        sentences.append(f"Accuracy is below chance ({statistics['accuracy']:.3f}): {why}")
    if length["spearman"] is not None and abs(length["spearman"]) >= 0.4:
        kind = "longer" if length["spearman"] > 0 else "shorter"
        sentences.append(
            f"Length bias: it rewards {kind} responses (Spearman of margin and difference in length "
            f"{length['spearman']:+.2f}); it prefers the longer one in {length['prefers_longer']:.1%} of comparisons, "
            f"the data in {length['longer_is_chosen']:.1%}."
        )
    sides = [length[name] for name in ("chosen_longer", "chosen_shorter")]
    if all(side["n"] >= 20 for side in sides) and abs(sides[0]["accuracy"] - sides[1]["accuracy"]) >= 0.2:
        sentences.append(
            f"Accuracy depends on length: {sides[0]['accuracy']:.1%} where the chosen response is longer, "
            f"{sides[1]['accuracy']:.1%} where it is shorter."
        )
    if sure["ece"] >= 0.1:
        kind = "too sure" if sure["bias"] > 0 else "not sure enough"
        sentences.append(
            f"Badly calibrated: ECE {sure['ece']:.3f}; the model is {kind}, so σ(margin) is no probability."
        )
    if statistics["ties"] > 0.01 * n:
        sentences.append(f"{statistics['ties']} of {n} comparisons are ties, which count as wrong.")
    below = [name for name, subset in statistics.get("subsets", {}).items() if _prefers_rejected(subset)]
    if below:
        sentences.append(f"Worse than chance in {', '.join(below)}.")
    if n < 200:
        sentences.append(f"Only {n} comparisons: differences of less than {high - low:.2f} in accuracy mean little.")
    return sentences


def _prefers_rejected(statistics: Mapping[str, Any]) -> bool:
    """True if rejected responses win more often than chance explains, among comparisons without ties."""
    decided, right = statistics["n"] - statistics["ties"], round(statistics["accuracy"] * statistics["n"])
    return decided > 0 and wilson_interval(right, decided)[1] < 0.5


def figures(lines: Sequence[dict[str, Any]], statistics: Mapping[str, Any]) -> dict[str, str]:
    """The figures of one model as SVG, by title."""
    pairs = pairs_of(lines)
    drawn = {
        "Rewards": _svg(lambda ax: plots.reward_histogram(pairs.chosen, pairs.rejected, ax=ax)),
        "Reliability": _svg(lambda ax: plots.reliability(pairs.chosen - pairs.rejected, ax=ax)),
        "Reward against length": _svg(lambda ax: plots.reward_against_length(*_responses(pairs), ax=ax)),
    }
    subsets, kwise = statistics.get("subsets"), kwise_of(lines)
    if subsets:
        height = 0.9 + 0.22 * len(subsets)
        drawn["Accuracy by subset"] = _svg(lambda ax: plots.accuracy_by_subset(subsets, ax=ax), height)
    for size, (rewards, scores) in kwise.items():
        title = "Best of n" if len(kwise) == 1 else f"Best of n, rows of {size} responses"
        drawn[title] = _svg(partial(plots.best_of_n, rewards, scores))
    return drawn


def _responses(pairs: Pairs) -> tuple[Any, Any]:
    both = np.stack([pairs.chosen, pairs.rejected]), np.stack([pairs.chosen_length, pairs.rejected_length])
    unique = np.unique(np.stack([both[0].ravel(), both[1].ravel()]), axis=1)  # each response of a K-wise row once
    return unique[0], unique[1]


def _svg(draw: Callable[..., Any], height: float = 2.7) -> str:
    """A figure as inline SVG, drawn in the page's text colour."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), io.StringIO() as out:
        figure = Figure(figsize=(3.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(ax=figure.add_subplot())
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return drawing.replace(_INK, "currentColor")


def render_report(evaluation: Mapping[str, Any], scores: Sequence[dict[str, Any]]) -> str:
    """Renders the report as one self-contained HTML page, which follows the reader's light or dark mode.

    **Arguments:** `evaluation`, the content of `evaluation.json`; `scores`, the lines of `scores.jsonl`.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("rm").joinpath("report.html.jinja").read_text(encoding="utf-8"))
    models = {
        name: {
            "statistics": statistics,
            "findings": findings(statistics),
            "figures": figures([line for line in scores if line["model"] == name], statistics),
        }
        for name, statistics in evaluation["models"].items()
    }
    return template.render(evaluation=evaluation, models=models)
