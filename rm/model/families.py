"""The families of backbones: how each differs from a Llama, and what its `config.json` has."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ..errors import ConfigError

ModelType = Literal["llama", "mistral", "qwen2", "qwen3"]
FIELDS = ("attention_bias", "mlp_bias", "sliding_window")  # of `LlamaConfig`, which only some families have


class Family(NamedTuple):
    """A family of backbones: a Llama, but for these switches."""

    name: str  # the beginning of its classes in `transformers`
    fields: tuple[str, ...]  # those of `FIELDS` that it has
    defaults: Mapping[str, int] = {}  # for keys that config.json lacks, where they are not those of a Llama
    qkv_bias: bool = False  # biases of queries, keys and values, and none of their output
    qk_norm: bool = False  # RMS norms of every head's queries and keys, before the rotary embedding


_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", ("attention_bias", "mlp_bias")),
    "mistral": Family("Mistral", ("sliding_window",), {"num_key_value_heads": 8, "max_position_embeddings": 131072}),
    "qwen2": Family("Qwen2", ("sliding_window",), _QWEN, qkv_bias=True),
    "qwen3": Family("Qwen3", ("attention_bias", "sliding_window"), _QWEN | {"head_dim": 128}, qk_norm=True),
}
_WINDOW = 4096  # where config.json does not state it
_KINDS = ("full_attention", "sliding_attention")


def read_window(hf: Mapping[str, Any], source: str) -> int | None:
    """The sliding window of all layers in tokens, as `transformers` 5.24 reads it; `None` if no layer has one.

    A Mistral has `sliding_window` in all layers. A Qwen has it if `use_sliding_window`, in the layers that
    `layer_types` names, or else from `max_window_layers` on.

    **Raises:** `ConfigError` for windows in some layers only.

    >>> read_window({"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 64}, "config.json")
    64
    """
    kind, layers = hf["model_type"], hf["num_hidden_layers"]
    if "sliding_window" not in FAMILIES[kind].fields:
        return None
    used, first = (True, 0) if kind == "mistral" else (hf.get("use_sliding_window"), hf.get("max_window_layers", 28))
    if used not in (True, False, None) or not isinstance(first, int):
        raise ConfigError(f"{source}: use_sliding_window must be true or false, and max_window_layers a whole number")
    window = hf.get("sliding_window", _WINDOW) if used else None
    implied = [_KINDS[window is not None and layer >= first] for layer in range(layers)]
    types = hf.get("layer_types") or implied
    if not isinstance(types, list) or len(types) != layers or any(each not in _KINDS for each in types):
        raise ConfigError(f"{source}: layer_types must list {layers} of {' and '.join(_KINDS)}, found {types!r:.60}")
    sliding = types.count(_KINDS[1])
    if 0 < sliding < layers:
        found = f"found {sliding} of {layers} (layer_types, max_window_layers)"
        raise ConfigError(f"{source}: a sliding window must hold in all layers or in none, {found}")
    if bool(sliding) != (window is not None) and (kind == "mistral" or sliding):
        raise ConfigError(f"{source}: layer_types contradict sliding_window and use_sliding_window")
    return window if sliding else None
