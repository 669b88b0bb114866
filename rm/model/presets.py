"""Architectures by name, so that planning needs no files."""

from .config import LlamaConfig, Rope


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
