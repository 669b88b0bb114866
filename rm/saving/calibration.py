"""The mean and standard deviation of a model's rewards, to normalize rewards of several models to one scale."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import ConfigError
from ..files.hub import RECORD, read_record, resolve_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Mean and standard deviation of chosen and rejected rewards, over all evaluation sets together."""

    mean: float
    std: float


def load_calibration(source: str | Path, *, revision: str | None = None) -> Calibration | None:
    """The calibration in the field `reward` of an exported model's `rm.json`; `None` if there is no such field.

    **Arguments:** `source`, a directory or a hub id; `revision`, of a hub repository.

    **Raises:** `ConfigError` where the field is not a finite `mean` with a `std` above 0.
    """
    reward = read_record(resolve_directory(source, (RECORD,), revision=revision)).get("reward")
    if reward in (None, {}):
        return None
    numbers = [reward.get("mean"), reward.get("std")] if isinstance(reward, dict) else []
    finite = [float(number) for number in numbers if isinstance(number, int | float) and math.isfinite(number)]
    if len(finite) < 2 or finite[1] <= 0:
        expected = "expected an object with a finite mean and a finite std above 0"
        raise ConfigError(f"{source}: {RECORD}: field 'reward': {expected}, found {reward!r}")
    return Calibration(mean=finite[0], std=finite[1])


def require_calibration(source: str | Path, *, revision: str | None = None) -> Calibration:
    """`load_calibration` for callers that need one.

    **Raises:** `ConfigError` also where there is none.
    """
    calibration = load_calibration(source, revision=revision)
    if calibration is None:
        advice = "train with --eval-dataset, which writes it, or leave --normalize out"
        raise ConfigError(f"{source}: {RECORD} has no field 'reward', so rewards cannot be normalized; {advice}")
    return calibration


def normalize(rewards: Float[np.ndarray, "n"], calibration: Calibration) -> Float[np.ndarray, "n"]:
    """`(reward - mean) / std`, as float32.

    >>> normalize(np.array([1.0, 4.0], np.float32), Calibration(mean=2.0, std=0.5)).tolist()
    [-2.0, 4.0]
    """
    scaled = (np.asarray(rewards, np.float64) - calibration.mean) / calibration.std
    return scaled.astype(np.float32)
