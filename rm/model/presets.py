"""Configurations by name, to plan with."""

from typing import Any

from .config import LlamaConfig
from .rope import Rope


def _backbone(size: int, mlp: int, layers: int, heads: int, key_value_heads: int = 8, **fields: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=size,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        **fields,
    )


_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope": Rope(theta=500000.0),
}
_QWEN: dict[str, Any] = {"vocab_size": 151936, "max_position_embeddings": 40960, "rope": Rope(theta=1000000.0)}
_QWEN_3: dict[str, Any] = {**_QWEN, "model_type": "qwen3", "head_dim": 128}
_QWEN_2_5: dict[str, Any] = {**_QWEN, "model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 131072}
_MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
}

PRESETS = {
    # Llama 3.2 1B and 3B; Llama 3.1 8B, 70B and 405B (Grattafiori et al. 2024, arXiv 2407.21783, table 3)
    "llama-1b": _backbone(2048, 8192, 16, 32, **_LLAMA_3),
    "llama-3b": _backbone(3072, 8192, 28, 24, **_LLAMA_3),
    "llama-8b": _backbone(4096, 14336, 32, 32, **_LLAMA_3),
    "llama-70b": _backbone(8192, 28672, 80, 64, **_LLAMA_3),
    "llama-405b": _backbone(16384, 53248, 126, 128, **_LLAMA_3),
    # config.json of Qwen/Qwen3-0.6B, Qwen/Qwen3-4B, Qwen/Qwen3-8B and Qwen/Qwen2.5-7B on the hub
    "qwen3-0.6b": _backbone(1024, 3072, 28, 16, tie_word_embeddings=True, **_QWEN_3),
    "qwen3-4b": _backbone(2560, 9728, 36, 32, tie_word_embeddings=True, **_QWEN_3),
    "qwen3-8b": _backbone(4096, 12288, 36, 32, **_QWEN_3),
    "qwen2.5-7b": _backbone(3584, 18944, 28, 28, 4, **_QWEN_2_5),
    # version 0.1 (Jiang et al. 2023, arXiv 2310.06825, table 1), and its config.json on the hub
    "mistral-7b": _backbone(4096, 14336, 32, 32, **_MISTRAL),
}
