"""Rotary position embeddings as `config.json` describes them: their types, the fields of each, and both spellings."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ..errors import ConfigError

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]

_LENGTH = "original_max_position_embeddings"
_FIELDS: dict[RopeType, tuple[str, ...]] = {  # what each type reads besides theta
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (_LENGTH, "factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (_LENGTH, "factor", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    "longrope": (_LENGTH, "factor", "attention_factor", "short_factor", "long_factor"),
}
_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "truncate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embeddings and their scaling; a type ignores the fields of others.

    | type       | frequencies                                                | source                             |
    |------------|------------------------------------------------------------|------------------------------------|
    | `default`  | as they are                                                | Su et al. 2021, arXiv 2104.09864   |
    | `linear`   | divided by `factor`                                        | Chen et al. 2023, arXiv 2306.15595 |
    | `dynamic`  | of a larger `theta` in longer sequences                    | `transformers` 5.24                |
    | `llama3`   | low ones divided by `factor`, high ones kept               | `transformers` 5.24                |
    | `yarn`     | the same, with a ramp between them                         | Peng et al. 2023, arXiv 2309.00071 |
    | `longrope` | divided by `short_factor`, in longer ones by `long_factor` | Ding et al. 2024, arXiv 2402.13753 |

    Longer sequences have more than `max_position_embeddings` tokens for `dynamic`, and more than
    `original_max_position_embeddings` for `longrope`. `yarn` and `longrope` multiply cosines and sines by
    `attention_factor`, or by a function of `factor` if it is `None`.

    **Raises:** `ConfigError` if a type does not work with its fields.

    >>> Rope(type="yarn", factor=4.0, original_max_position_embeddings=32768).amplitude
    1.138629436111989
    """

    theta: float = 10000.0
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # whether the ramp of `yarn` begins and ends at whole indices
    short_factor: tuple[float, ...] = ()  # one for each frequency
    long_factor: tuple[float, ...] = ()

    def __post_init__(self):
        if self.type == "yarn" and self.theta == 1:
            raise ConfigError("rope type 'yarn' needs another rope_theta than 1")
        least, found = {"yarn": 1, "longrope": 2}.get(self.type, 0), self.original_max_position_embeddings
        if found < least:
            raise ConfigError(f"rope type {self.type!r} needs {_LENGTH} of at least {least}, found {found}")

    @property
    def amplitude(self) -> float:
        """The factor of cosines and sines."""
        if "attention_factor" not in _FIELDS[self.type]:
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.type == "yarn":
            return _yarn_amplitude(self.factor)
        return math.sqrt(1 + math.log(max(self.factor, 1.0)) / math.log(self.original_max_position_embeddings))


def _yarn_amplitude(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(max(factor, 1.0)) + 1.0


def read_rope(hf: Mapping[str, Any], max_positions: int, source: str) -> Rope:
    """Reads both spellings: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).

    **Arguments:** `max_positions`, which stands for a missing original length, as in `transformers` 5.24.
    """
    scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"{source}: rope_scaling must be an object, found {scaling!r}")
    if nested := [key for key, value in scaling.items() if isinstance(value, Mapping)]:
        raise ConfigError(f"{source}: rope_parameters must be the same for all layers, found some for {nested[0]!r}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in get_args(RopeType):
        raise ConfigError(f"{source}: rope type must be one of {', '.join(get_args(RopeType))}; found {kind!r}")
    if scaling.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(f"{source}: partial_rotary_factor must be 1.0, found another value")
    theta = scaling.get("rope_theta") or hf.get("rope_theta") or Rope.theta
    if not _is_number(theta):
        raise ConfigError(f"{source}: rope_theta must be a number greater than 0, found {theta!r}")
    # transformers 5 prefers a length beside the object, where Phi 3 has it
    length = hf.get(_LENGTH) or scaling.get(_LENGTH) or max_positions
    try:
        rope = Rope(theta=float(theta), type=kind, **_fields(kind, {**scaling, _LENGTH: length}, max_positions))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    # versions of transformers infer it differently for longrope, so an export states it
    return dataclasses.replace(rope, attention_factor=rope.amplitude) if kind == "longrope" else rope


def _fields(kind: RopeType, scaling: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key in _FIELDS[kind]:
        value = scaling.get(key)
        if value is None and key == "factor" and _LENGTH in fields:
            value = max_positions / fields[_LENGTH]
        if value is not None or key not in _OPTIONAL:
            fields[key] = _read(kind, key, value)
    scales = [scaling.get(key) for key in ("mscale", "mscale_all_dim")]
    if kind == "yarn" and "attention_factor" not in fields and all(scales):
        over, under = (_yarn_amplitude(fields["factor"], _read(kind, "mscale", scale)) for scale in scales)
        fields["attention_factor"] = over / under
    return fields


def _read(kind: str, key: str, value: Any) -> Any:
    expected = f"the number {key!r}, greater than 0"
    if key == "truncate":
        expected = f"true or false for {key!r}"
        if isinstance(value, bool):
            return value
    elif key in ("short_factor", "long_factor"):
        expected = f"the list {key!r} of numbers greater than 0"
        if isinstance(value, list) and all(map(_is_number, value)):
            return tuple(map(float, value))
    elif _is_number(value):
        return int(value) if key == _LENGTH else float(value)  # a whole number may stand for a float
    raise ConfigError(f"rope type {kind!r} needs {expected}; found {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-30 < value < 1e30


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys of `config.json` for rotary embeddings, in the older spelling, which `transformers` 4 and 5 read."""
    scaling = {key: getattr(rope, key) for key in _FIELDS[rope.type]}
    beside = {}
    if rope.type == "longrope":
        scaling |= {"attention_factor": rope.amplitude, "short_factor": [*rope.short_factor]}
        scaling |= {"long_factor": [*rope.long_factor]}
        beside = {_LENGTH: rope.original_max_position_embeddings}  # transformers 4.57 reads it here only
    scaling = {key: value for key, value in scaling.items() if value is not None}
    written = {"rope_type": rope.type, **scaling} if scaling else None
    return {"rope_theta": rope.theta, "rope_scaling": written, **beside}
