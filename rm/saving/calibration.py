"""The mean and standard deviation of a model's rewards, to normalize rewards of several models to one scale."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import ConfigError
from ..files.hub import RECORD, own_file, read_json, read_record, resolve_directory
from ..model.config_json import reward_scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Mean and standard deviation of chosen and rejected rewards, over all evaluation sets together."""

    mean: float
    std: float


def load_calibration(source: str | Path, *, revision: str | None = None) -> Calibration | None:
    """The calibration that a model's directory states; `None` if there is none.

    It is the field `reward` of an export's `rm.json`, else `mean` and `std` (OpenRLHF), or `var` (Safe RLHF), of
    `config.json`.

    **Arguments:** `source`, a directory or a hub id; `revision`, of a hub repository.

    **Raises:** `ConfigError` where the field is not a finite `mean` with a `std` above 0.
    """
    directory = resolve_directory(source, (RECORD, "config.json"), revision=revision)
    reward, config = read_record(directory).get("reward"), own_file(directory / "config.json")
    if reward in (None, {}):
        scale = reward_scale(read_json(config)) if config.is_file() else None
        return Calibration(mean=scale[0], std=scale[1]) if scale else None
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
        found = f"{RECORD} has no field 'reward' and config.json no mean and std, so rewards cannot be normalized"
        raise ConfigError(f"{source}: {found}; {advice}")
    return calibration


def normalize(rewards: Float[np.ndarray, "n"], calibration: Calibration) -> Float[np.ndarray, "n"]:
    """`(reward - mean) / std`, as float32.

    >>> normalize(np.array([1.0, 4.0], np.float32), Calibration(mean=2.0, std=0.5)).tolist()
    [-2.0, 4.0]
    """
    scaled = (np.asarray(rewards, np.float64) - calibration.mean) / calibration.std
    return scaled.astype(np.float32)
