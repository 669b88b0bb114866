"""The configuration of a Llama: frozen, hashable, with Hugging Face's field names; and those of Llamas by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ..errors import ConfigError

RopeType = Literal["default", "linear", "dynamic", "llama3"]

_LLAMA3_KEYS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embeddings and their scaling; `default` ignores `factor`, only `llama3` uses the fields below."""

    theta: float = 10000.0
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A Llama architecture, static under `jax.jit`.

    `pad_token_id` is also the pooling rule: the reward is read at the rightmost token whose id differs from it, as
    `LlamaForSequenceClassification` does, and at the last token if it is `None`.

    **Raises:** `ConfigError` if the sizes contradict each other.

    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> config.head_dim
    4
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0  # 0: as many as num_attention_heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope: Rope = Rope()
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        if self.num_hidden_layers < 1 or self.num_attention_heads < 1:
            raise ConfigError("num_hidden_layers and num_attention_heads must be at least 1")
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}); correct config.json"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"head_dim must be even and at least 2 for rotary embeddings, found {self.head_dim}")

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], *, source: str = "config.json") -> "LlamaConfig":
        """The configuration that a Hugging Face `config.json` describes.

        **Arguments:** `hf`, the parsed JSON; `source`, the file name in error messages.

        **Raises:** `ConfigError` for another `model_type`, a missing or mistyped key, or an unsupported variant.

        >>> LlamaConfig.from_hf({"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
        ...                      "num_hidden_layers": 2, "num_attention_heads": 4, "rope_theta": 5e5}).rope.theta
        500000.0
        """
        _check_supported(hf, source)
        optional = {name: hf[name] for name in _OPTIONAL if hf.get(name) is not None}
        eos = hf.get("eos_token_id")
        fields = dict(
            {name: hf[name] for name in _REQUIRED},
            **optional,
            rope=_rope(hf, source),
            bos_token_id=hf.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=None if (pad := hf.get("pad_token_id")) == -1 else pad,  # -1 means no token
        )
        _check_values(fields, source)
        fields |= {name: float(fields[name]) for name in ("rms_norm_eps", "initializer_range") if name in fields}
        try:
            return cls(**fields)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of a `LlamaForSequenceClassification` with one label."""
        fields = dataclasses.asdict(self)
        rope = fields.pop("rope")
        scaling = None
        if self.rope.type != "default":
            scaling = {"rope_type": self.rope.type, "factor": self.rope.factor}
            scaling |= {key: rope[key] for key in _LLAMA3_KEYS} if self.rope.type == "llama3" else {}
        return {
            "architectures": ["LlamaForSequenceClassification"],
            "model_type": "llama",
            "num_labels": 1,
            "problem_type": "regression",  # else pipelines and servers put a sigmoid over the reward
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "hidden_act": "silu",
            **fields,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "rope_theta": self.rope.theta,
            "rope_scaling": scaling,
        }


_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range")
_OPTIONAL += ("attention_bias", "mlp_bias", "tie_word_embeddings")
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LARGEST = 2**31 - 1  # of any size, since arrays are indexed with int32
_MOST = {"num_hidden_layers": 1000, "num_attention_heads": 2**16}  # Llama 3.1 405B has 126 and 128
_MOST |= dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 2**24)
_KINDS: dict[Any, tuple[str, Any, float, float]] = {  # by a field's type: what errors say, types, smallest, largest
    bool: ("true or false", bool, 0, 1),
    int: (f"a whole number from 0 to {_LARGEST}", int, 0, _LARGEST),
    int | None: ("a whole number of 32 bits", int, -(2**31), _LARGEST),
    int | tuple[int, ...] | None: ("a whole number or a list of such", int, -(2**31), _LARGEST),
    float: ("a number that is finite and not negative", int | float, 0, 1e30),
}


def _check_supported(hf: Mapping[str, Any], source: str) -> None:
    if hf.get("model_type") != "llama":
        raise ConfigError(f"{source}: model_type must be 'llama', found {hf.get('model_type')!r}; use a Llama model")
    missing = [name for name in _REQUIRED if hf.get(name) is None]
    if missing:
        raise ConfigError(f"{source}: missing {', '.join(missing)}; a Llama config.json states them")
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"{source}: hidden_act must be 'silu', found {hf['hidden_act']!r}")
    if hf.get("quantization_config"):
        raise ConfigError(f"{source}: quantized weights are not read; use the unquantized checkpoint")


def _check_values(fields: Mapping[str, Any], source: str) -> None:
    for field in dataclasses.fields(LlamaConfig):
        value = fields.get(field.name)
        if value is None or field.type not in _KINDS:
            continue
        expected, kinds, least, most = _KINDS[field.type]
        for item in value if isinstance(value, tuple) else (value,):
            if not isinstance(item, kinds) or isinstance(item, bool) != (kinds is bool) or not least <= item <= most:
                raise ConfigError(f"{source}: {field.name} must be {expected}, found {value!r}")
    for name in _REQUIRED:
        if not 1 <= fields[name] <= _MOST.get(name, _LARGEST):
            raise ConfigError(f"{source}: {name} must be from 1 to {_MOST.get(name, _LARGEST)}, found {fields[name]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _rope(hf: Mapping[str, Any], source: str) -> Rope:
    """Reads both spellings: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5)."""
    scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"{source}: rope_scaling must be an object, found {scaling!r}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in get_args(RopeType):
        raise ConfigError(f"{source}: rope type must be one of {', '.join(get_args(RopeType))}; found {kind!r}")
    if scaling.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(f"{source}: partial_rotary_factor must be 1.0, found another value")
    needed = {"default": (), "llama3": ("factor", *_LLAMA3_KEYS)}.get(kind, ("factor",))
    for key in needed:
        if not _is_number(scaling.get(key)) or scaling[key] <= 0:
            expected = f"rope type {kind!r} needs the number {key!r}, greater than 0"
            raise ConfigError(f"{source}: {expected}; found {scaling.get(key)!r}")
    theta = scaling.get("rope_theta") or hf.get("rope_theta") or Rope.theta
    if not _is_number(theta) or theta <= 0:
        raise ConfigError(f"{source}: rope_theta must be a number greater than 0, found {theta!r}")
    rest = {key: type(getattr(Rope, key))(scaling[key]) for key in needed}  # a whole number may stand for a float
    return Rope(theta=float(theta), type=kind, **rest)


def _llama3(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope=Rope(theta=500000.0),
    )


# Llama 3.2 1B and 3B; Llama 3.1 8B, 70B and 405B (Grattafiori et al. 2024, arXiv 2407.21783, table 3)
PRESETS = {
    "llama-1b": _llama3(2048, 8192, 16, 32),
    "llama-3b": _llama3(3072, 8192, 28, 24),
    "llama-8b": _llama3(4096, 14336, 32, 32),
    "llama-70b": _llama3(8192, 28672, 80, 64),
    "llama-405b": _llama3(16384, 53248, 126, 128),
}
