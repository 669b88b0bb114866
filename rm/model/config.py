"""The configuration of a backbone: frozen, hashable, with Hugging Face's field names."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .families import FAMILIES, FIELDS, Family, ModelType, read_window
from .rope import Rope, read_rope, write_rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The architecture of a Llama or of one of its relatives, static under `jax.jit`.

    `model_type` says the family: `llama`, `mistral`, `qwen2` (biases on queries, keys and values) or `qwen3` (RMS norms
    of every head's queries and keys). With `sliding_window` a token sees itself and the `sliding_window - 1` tokens
    before it. `pad_token_id` is also the pooling rule: the reward is read at the rightmost token whose id differs from
    it, as `LlamaForSequenceClassification` does, and at the last token if it is `None`. `reward_token_id` is a token
    that is appended to every sequence that does not end in it, for models whose reward is read there.

    **Raises:** `ConfigError` if fields contradict each other, or for a field that the family does not have.

    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> config.head_dim
    4
    """

    model_type: ModelType = "llama"
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
    attention_bias: bool = False  # of queries, keys, values and output
    mlp_bias: bool = False
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    rope: Rope = Rope()
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    reward_token_id: int | None = None

    def __post_init__(self):
        if self.model_type not in FAMILIES:
            raise ConfigError(f"model_type must be one of {', '.join(FAMILIES)}; found {self.model_type!r}")
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
        for name in FIELDS:
            if getattr(self, name) and name not in self.family.fields:
                raise ConfigError(f"{name} is not a field of {self.model_type}, found {getattr(self, name)}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window must be at least 1 token, found {self.sliding_window}")
        for name in ("short_factor", "long_factor") if self.rope.type == "longrope" else ():
            if (found := len(getattr(self.rope, name))) != self.head_dim // 2:
                raise ConfigError(f"{name} must have head_dim / 2 = {self.head_dim // 2} numbers, found {found}")

    @property
    def family(self) -> Family:
        """The differences between this family and a Llama."""
        return FAMILIES[self.model_type]

    @property
    def fixed_rope_length(self) -> float:
        """The longest sequence whose rotary frequencies do not depend on its length; infinite for most types."""
        lengths = {"dynamic": self.max_position_embeddings, "longrope": self.rope.original_max_position_embeddings}
        return lengths.get(self.rope.type, math.inf)

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
        family = FAMILIES[hf["model_type"]]
        optional = {**family.defaults, **{name: hf[name] for name in (*_OPTIONAL, *family.fields) if name in hf}}
        eos = hf.get("eos_token_id")
        fields = dict(
            {name: hf[name] for name in ("model_type", *_REQUIRED)},
            **{name: value for name, value in optional.items() if value is not None},
            bos_token_id=hf.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=None if (pad := hf.get("pad_token_id")) == -1 else pad,  # -1 means no token
            reward_token_id=hf.get("reward_token_id"),
        )
        _check_values(fields, source)
        fields |= {name: float(fields[name]) for name in ("rms_norm_eps", "initializer_range") if name in fields}
        positions = fields.get("max_position_embeddings", cls.max_position_embeddings)
        fields |= {"sliding_window": read_window(hf, source), "rope": read_rope(hf, positions, source)}
        try:
            return cls(**fields)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of a sequence classifier with one label, such as `LlamaForSequenceClassification`."""
        family = self.family
        left_out = {"rope", *FIELDS} - {*family.fields}
        left_out |= {"reward_token_id"} if self.reward_token_id is None else set()
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        if self.model_type.startswith("qwen"):  # windows in the layers from `max_window_layers` on
            used = self.sliding_window is not None
            fields |= {"use_sliding_window": used, "max_window_layers": 0 if used else self.num_hidden_layers}
        return {
            "architectures": [f"{family.name}ForSequenceClassification"],
            "num_labels": 1,
            "problem_type": "regression",  # else pipelines and servers put a sigmoid over the reward
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "hidden_act": "silu",
            **fields,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            **write_rope(self.rope),
        }


_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range")
_OPTIONAL += ("tie_word_embeddings",)
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
    if (found := hf.get("model_type")) not in (*FAMILIES,):
        raise ConfigError(f"{source}: model_type must be one of {', '.join(FAMILIES)}; found {found!r}")
    missing = [name for name in _REQUIRED if hf.get(name) is None]
    if missing:
        raise ConfigError(f"{source}: missing {', '.join(missing)}; the config.json of every backbone states them")
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
