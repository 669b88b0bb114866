"""The reward models of a server: which of them a request asks, its inputs as their token ids, and their sum."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from ..data.comparisons import cut_off
from ..data.inputs import Input, encode_inputs
from ..errors import DataError
from ..model.config import LlamaConfig
from ..saving.calibration import Calibration, normalize
from ..text.tokenizer import Tokenizer
from .batching import Batcher
from .requests import Limits
from .traffic import Metrics

SUM = "sum"  # the name of the weighted sum of several models
Ids = Int32[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A reward model of a server.

    **Arguments:** `name`, by which requests ask for it; `calibration`, to normalize with; `weight`, in the sum of
    several models; `parameter_bytes`, that its parameters take.
    """

    name: str
    tokenizer: Tokenizer
    config: LlamaConfig
    batcher: Batcher
    calibration: Calibration | None = None
    weight: float = 1.0
    parameter_bytes: int = 0

    def rewards(self, found: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """What the model says, on the scale of its calibration."""
        return found if self.calibration is None else normalize(found, self.calibration)


class Chosen(NamedTuple):
    """The models that score a request, with their weights, and what they are called together."""

    name: str
    models: list[ServedModel]
    weights: list[float]

    def add(self, found: Sequence[Float[np.ndarray, "n"]]) -> Float[np.ndarray, "n"]:
        """The weighted sum of what each of them says."""
        parts = [model.rewards(each) for model, each in zip(self.models, found, strict=True)]
        if len(parts) == 1 and self.weights == [1.0]:
            return parts[0]
        return np.einsum("m,mn->n", np.array(self.weights, np.float64), np.array(parts, np.float64))


def choose(models: Sequence[ServedModel], name: str | None) -> Chosen:
    """The model of that name; without one, or by the name of the sum, all of them.

    **Raises:** `DataError`, naming those that there are.
    """
    if name is None or (name == SUM and len(models) > 1):
        only = len(models) == 1
        return Chosen(models[0].name if only else SUM, list(models), [1.0] if only else [m.weight for m in models])
    for model in models:
        if model.name == name:
            return Chosen(name, [model], [1.0])
    raise DataError(f"model: expected one of {', '.join(names_of(models))}, found {name!r}")


def names_of(models: Sequence[ServedModel]) -> list[str]:
    """The names that requests may give: of the models, and of the sum of several."""
    return [model.name for model in models] + [SUM] * (len(models) > 1)


def encode_within(
    inputs: Mapping[str, Input], model: ServedModel, limits: Limits, metrics: Metrics, *, special_tokens: bool = True
) -> list[Ids]:
    """The token ids of inputs; one over `limits.max_length` tokens is cut off, or ends it.

    **Arguments:** `inputs`, by their names in errors; `special_tokens`, false where texts hold all of theirs.

    **Raises:** `DataError`, naming the input.
    """
    most, sequences = limits.max_length, []
    options = {"names": list(inputs), "max_length": most, "special_tokens": special_tokens}
    encoded = encode_inputs(inputs.values(), model.tokenizer, model.config, **options)
    for name, ids in zip(inputs, encoded, strict=True):
        if len(ids) > most and limits.truncation == "refuse":
            found = f"found {len(ids)}{' or more' if len(ids) > 2 * most else ''}"
            raise DataError(f"{name}: expected at most {most} tokens (--max-length, --truncation), {found}")
        metrics.truncated.inc(len(ids) > most)
        sequences.append(np.array(cut_off(ids, most, model.config), np.int32))  # no view, which would keep the rest
    return sequences
