"""The report of an evaluation: tables, figures and findings on one HTML page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

from ..errors import DataError
from . import plots
from .scores import Pairs, kwise_of, pairs_of

FALSE_ALARMS = 0.02  # share of pages that say something wrong of models with which nothing is wrong
_CLAIMS = 5  # below chance, length bias, accuracy by length, calibration, subsets
_INK = "#010203"  # a placeholder that becomes the page's text colour, light or dark
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rm",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def findings(statistics: Mapping[str, Any], *, models: int = 1) -> list[str]:
    """Sentences for a reader of the accuracy: chance level, length bias, calibration, ties, few data.

    What is said to be wrong with a model has been tested. Of pages on which nothing is wrong, at most 2 % say that
    something is: the rate is divided among the five claims and the models of a page (Bonferroni).

    **Arguments:** `statistics`, the result of `summarize`; `models`, their number on the page.

    **Raises:** `DataError` for the statistics of an older version, which lack what is tested here.
    """
    missing = {"p_value", "prompts", "ties"} - statistics.keys()
    if missing:
        raise DataError(
            f"statistics without {', '.join(sorted(missing))}: they are of an older version; evaluate the model again"
        )
    n, level = statistics["n"], FALSE_ALARMS / _CLAIMS / models
    low, high = statistics["interval"]
    if statistics["ties"] == n:
        sentences = [f"All {n} comparisons are ties: rewards are equal, so they tell no response from another."]
    else:
        sentences = [*_against_chance(statistics, level), *_length(statistics["length"], level)]
        sentences += _confidence(statistics["calibration"], level)
        if statistics["ties"] > 0.01 * n:
            right, decided = _decided(statistics)
            sentences.append(
                f"{statistics['ties']} of {n} comparisons are ties, which count as wrong; {right / decided:.1%} of the "
                "others are right."
            )
    subsets = statistics.get("subsets", {})
    below = [name for name, subset in subsets.items() if _below_chance(subset, level / len(subsets))]
    if below:
        sentences.append(f"Worse than chance in {', '.join(below)}.")
    if statistics["prompts"] < 200:
        few = f"{n} comparisons" if statistics["prompts"] == n else f"{statistics['prompts']} prompts, {n} pairs"
        sentences.append(f"Only {few}: differences of less than {high - low:.2f} in accuracy mean little.")
    return sentences


def _decided(statistics: Mapping[str, Any]) -> tuple[int, int]:
    """The number of comparisons that are right, and of those that are no ties."""
    return round(statistics["accuracy"] * statistics["n"]), statistics["n"] - statistics["ties"]


def _below_chance(statistics: Mapping[str, Any], level: float) -> bool:
    right, decided = _decided(statistics)
    return 2 * right < decided and statistics["p_value"] / 2 < level  # the p-value is that of both sides


def _against_chance(statistics: Mapping[str, Any], level: float) -> list[str]:
    right, decided = _decided(statistics)
    counted = f"{right} of {decided} comparisons" + (" without ties" if statistics["ties"] else "")
    if _below_chance(statistics, level):
        return [f"Accuracy is below chance ({counted} are right): are chosen and rejected exchanged?"]
    if 2 * right <= decided or statistics["p_value"] >= 0.05:
        return [f"Accuracy is not shown to be above chance: {counted} are right."]
    return []


def _length(length: Mapping[str, Any], level: float) -> list[str]:
    sentences, sides = [], [length[name] for name in ("chosen_longer", "chosen_shorter")]
    if length["spearman"] is not None and abs(length["spearman"]) >= 0.4 and length["spearman_p"] < level:
        kind = "longer" if length["spearman"] > 0 else "shorter"
        sentences.append(
            f"Length bias: it rewards {kind} responses (Spearman of margin and difference in length "
            f"{length['spearman']:+.2f}); it prefers the longer one in {length['prefers_longer']:.1%} of comparisons, "
            f"the data in {length['longer_is_chosen']:.1%}."
        )
    enough = all(side["n"] >= 20 for side in sides)
    if enough and abs(sides[0]["accuracy"] - sides[1]["accuracy"]) >= 0.2 and length["accuracy_p"] < level:
        sentences.append(
            f"Accuracy depends on length: {sides[0]['accuracy']:.1%} where the chosen response is longer, "
            f"{sides[1]['accuracy']:.1%} where it is shorter."
        )
    return sentences


def _confidence(sure: Mapping[str, Any], level: float) -> list[str]:
    if sure["ece"] < 0.1 or sure["p_value"] >= level:
        return []
    kind = "too sure" if sure["z"] < 0 else "not sure enough"
    return [f"Badly calibrated: ECE {sure['ece']:.3f}; the model is {kind}, so σ(margin) is no probability."]


def figures(lines: Sequence[dict[str, Any]], statistics: Mapping[str, Any]) -> dict[str, str]:
    """The figures of one model as SVG, by title."""
    pairs = pairs_of(lines)
    drawn = {
        "Rewards": _svg(lambda ax: plots.reward_histogram(pairs.chosen, pairs.rejected, ax=ax)),
        "Reliability": _svg(lambda ax: plots.reliability(pairs.chosen - pairs.rejected, pairs.prompts, ax=ax)),
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
            "findings": findings(statistics, models=len(evaluation["models"])),
            "figures": figures([line for line in scores if line["model"] == name], statistics),
        }
        for name, statistics in evaluation["models"].items()
    }
    return template.render(evaluation=evaluation, models=models)
