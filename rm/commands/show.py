"""An evaluation as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.report import findings


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Prints a table with a column for each model, what stands out, and the comparisons of the models."""
    models = evaluation["models"]
    table = [["", *models]]
    subsets = sorted({name for each in models.values() for name in each.get("subsets", {})})
    for subset in subsets:
        table.append(_shares(subset, [each["subsets"].get(subset) for each in models.values()]))
    table.append(_shares("all", list(models.values())))
    sections = next((each["sections"] for each in models.values() if each.get("sections")), {})
    rows = {
        "mean of subsets": "macro_accuracy",
        "mean of sections": "section_mean",
        "mean margin": "margin",
        "ties": "ties",
        "AUC": "auc",
    }
    for section in sections:
        table.append([f"section {section}", *(f"{each['sections'][section]:.3f}" for each in models.values())])
    for label, key in rows.items():
        if any(each.get(key) is not None for each in models.values()):
            table.append([label, *(_number(each.get(key)) for each in models.values())])
    table.append(["ECE", *(_number(each["calibration"]["ece"]) for each in models.values())])
    table.append(_shares("accuracy, equal lengths", [each["length"]["matched"] for each in models.values()]))
    for size in sorted({size for each in models.values() for size in each.get("best_of_n", {})}, key=int):
        found = [each.get("best_of_n", {}).get(size) for each in models.values()]
        table.append([f"best of {size} (random–oracle)", *map(_best, found)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for label, *cells in table:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print(label.ljust(widths[0]), *aligned, sep="  ")
    for name, statistics in models.items():
        for sentence in findings(statistics, models=len(models)):
            print(f"{name}: {sentence}")
    for each in evaluation["paired"]:
        print(
            f"{each['first']} against {each['second']}: {each['difference']:+.3f} in accuracy "
            f"({each['interval'][0]:+.3f} to {each['interval'][1]:+.3f}), McNemar's p {each['p_value']:.2g}"
        )


def _shares(label: str, shares: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """A row of accuracies; the number of comparisons stands beside the label, or its range where models differ."""
    found = [each for each in shares if each]
    number = _range([each["n"] for each in found])
    if any(each["n"] != each["prompts"] for each in found):
        number = f"{_range([each['prompts'] for each in found])} prompts, {number} pairs"
    return [f"{label} ({number})", *map(_share, shares)]


def _range(numbers: Sequence[int]) -> str:
    return "–".join(map(str, dict.fromkeys([min(numbers), max(numbers)])))


def _share(each: Mapping[str, Any] | None) -> str:
    if not each or each["accuracy"] is None:
        return "–"
    low, high = each["interval"]
    return f"{each['accuracy']:.3f} ({low:.3f}–{high:.3f})"


def _best(each: Mapping[str, Any] | None) -> str:
    return f"{each['model'][-1]:.3f} ({each['random'][-1]:.3f}–{each['oracle'][-1]:.3f})" if each else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
