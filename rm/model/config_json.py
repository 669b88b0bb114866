"""The `config.json` of a reward model: its architecture, and what it states of labels, pooling and scale."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, warn_once
from ..files.hub import check_unchanged, own_file, read_json, read_record
from .config import LlamaConfig

# The token that a class of its author's appends, where its configuration has no `reward_token_id`, as InternLM2's has.
_APPENDED = {"AtheneForSequenceClassification": 128003}


class Stated(NamedTuple):
    """What a `config.json` states."""

    config: LlamaConfig
    labels: int | None
    is_classifier: bool  # of sequences


def read_config(source: Path) -> Stated:
    """Reads a `config.json`; only the pad token of a classifier, or of an export of `rm`, is a pooling rule."""
    hf = read_json(own_file(source))
    architectures = str(hf.get("architectures"))
    is_classifier = "ForSequenceClassification" in architectures
    config = LlamaConfig.from_hf(hf, source=str(source))
    if config.reward_token_id is None:
        appended = (token for name, token in _APPENDED.items() if name in architectures)
        config = replace(config, reward_token_id=next(appended, None))
    if not is_classifier and "pooling" not in read_record(source.parent):
        config = replace(config, pad_token_id=None)
    labels = _labels(hf, source) if is_classifier or "ForTokenClassification" in architectures else None
    scale = reward_scale(hf)
    if scale and (hf.get("normalize_reward") or hf.get("do_normalize")):
        gives = f"(reward - {scale[0]:.4g}) / {scale[1]:.4g}"
        warn_once(
            f"{source}: rewards are given raw; --normalize (rm.normalize) gives {gives}, as its author's code does"
        )
    check_unchanged(source.parent, [source.name])
    return Stated(config, labels, is_classifier)


def _labels(hf: Mapping[str, Any], source: Path) -> int | None:
    names = hf.get("id2label")
    labels = hf.get("num_labels", len(names) if names and isinstance(names, dict | list) else None)
    if labels is not None and (not isinstance(labels, int) or isinstance(labels, bool) or not 0 < labels < 2**20):
        raise ConfigError(f"{source}: num_labels must be a whole number from 1 to {2**20 - 1}, found {labels!r}")
    return labels


def reward_scale(hf: Mapping[str, Any]) -> tuple[float, float] | None:
    """The mean and the standard deviation of rewards that a `config.json` states, as OpenRLHF and Safe RLHF write them.

    >>> reward_scale({"mean": 0.5, "std": 2.0}), reward_scale({"mean": [0.5], "var": [4.0]}), reward_scale({"mean": 1})
    ((0.5, 2.0), (0.5, 2.0), None)
    """

    def number(name: str) -> float | None:
        value = hf.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return float(value) if isinstance(value, int | float) and abs(value) < 1e30 else None

    mean, std, var = number("mean"), number("std"), number("var")
    std = var**0.5 if std is None and var is not None and var > 0 else std
    return None if mean is None or std is None or std <= 0 else (mean, std)
