"""The model card of an exported reward model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

Figures = Mapping[str, float]

_FIGURES = ("accuracy", "margin", "loss", "mean_reward", "std_reward")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """How texts are built, and what reads them; `date` is what chat templates were told, where they ask."""

    chat: bool = False
    eos_token: str | None = None
    date: str | None = None
    date_is_written: bool = True
    appended: str = ""  # a token after every text, at which the reward is read
    head: Literal["linear", "bias", "hidden"] = "linear"
    labels: int = 1


def model_card(name: str, record: Mapping[str, Any], texts: Texts = Texts()) -> str:
    """The text of `README.md`: what the model is, its data and figures as far as the record has them, how to use it.

    **Arguments:** `record`, the content of `rm.json`; `texts`, what the card says of the way texts are built.
    """
    import jinja2

    repository, evaluation = record.get("repository"), record.get("evaluation") or {}
    name = (repository or name).rpartition("/")[2]
    evaluated = _evaluated(record)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(files("rm").joinpath("saving/card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        front_matter=_front_matter(name, record, evaluated),
        name=name,
        base=_name(record.get("base_model") or ""),
        place=repository or "PATH_OR_HUB_ID",
        record=record,
        texts=texts,
        trained=[(_name(table["source"]), table) for table in _tables(record, "train").values()],
        evaluated=[
            (_name(table["source"]), table, [f"{figures.get(column, math.nan):.4g}" for column in _FIGURES])
            for table, figures in evaluated
        ],
        metrics=[(key, f"{value:.4g}") for key, value in evaluation.items() if isinstance(value, int | float)],
        reward=record.get("reward"),
        hyperparameters=record.get("hyperparameters") or {},
    )


def _front_matter(name: str, record: Mapping[str, Any], evaluated: Sequence[tuple[Mapping[str, Any], Figures]]) -> str:
    """The YAML that the hub reads, as its own library writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Preference ranking",
            dataset_type=_name(table["source"]),
            dataset_name=_name(table["source"]),
            metric_type="accuracy",
            metric_value=value,
        )
        for table, figures in evaluated
        if math.isfinite(value := figures.get("accuracy", math.nan))
    ]
    hub = dict.fromkeys(table["source"] for table in _tables(record, "train").values() if table.get("hub"))
    data = ModelCardData(
        base_model=record["base_model"] if record.get("base_model_is_hub_id") else None,
        datasets=list(hub) or None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "rm-jax"],
        **({"model_name": name, "eval_results": results} if results else {}),
    )
    return data.to_yaml()


def _tables(record: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """The tables of the data sets of training (`train`) or of the evaluations (`eval`), by their names."""
    data = record.get("data")
    data = data if isinstance(data, Mapping) else {}
    return {name: table for name, table in data.items() if name == kind or name.startswith(f"{kind}_")}


def _evaluated(record: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Figures]]:
    """The table of each evaluation set with its figures."""
    values = (record.get("evaluation") or {}).items()
    return [
        (table, {key.removeprefix(f"{name}_"): value for key, value in values if key.startswith(f"{name}_")})
        for name, table in _tables(record, "eval").items()
    ]


def _name(source: str) -> str:
    """A data set or a model without its place on somebody's disk."""
    return Path(source).name if Path(source).is_absolute() else source
