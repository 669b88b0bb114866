"""The reward model: its parameters as one pytree, and how they begin."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .config import LlamaConfig
from .layers import Linear


class Block(eqx.Module):
    """The parameters of a transformer block, or of several stacked on a leading layer axis."""

    input_layernorm: Float[Array, "*L D"]
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    post_attention_layernorm: Float[Array, "*L D"]
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear


class RewardModel(eqx.Module):
    """A Llama backbone with a scalar head; every leaf is an array, the configuration is static.

    The last block stands apart from the stack because only the reward positions go through it.
    """

    embed_tokens: Float[Array, "V D"]
    blocks: Block | None  # None where the last block is the only one
    last_block: Block
    norm: Float[Array, "D"]
    score: Float[Array, "1 D"]
    config: LlamaConfig = eqx.field(static=True)


def init_reward_model(
    config: LlamaConfig, *, key: PRNGKeyArray, head_std: float | None = None, dtype=jnp.float32
) -> RewardModel:
    """A randomly initialised model: `N(0, initializer_range²)` weights, unit norms, zero biases.

    **Arguments:** `head_std`, the standard deviation of the score head, `initializer_range` when `None`; `dtype`, of
    the parameters (the head is always float32).

    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> init_reward_model(config, key=jax.random.key(0)).score.shape
    (1, 16)
    """
    keys = jax.random.split(key, 4)
    std = config.initializer_range
    *blocks, last_block = [_init_block(config, k, dtype) for k in jax.random.split(keys[1], config.num_hidden_layers)]
    return RewardModel(
        embed_tokens=std * jax.random.normal(keys[0], (config.vocab_size, config.hidden_size), dtype),
        blocks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks) if blocks else None,
        last_block=last_block,
        norm=jnp.ones(config.hidden_size, dtype),
        score=init_score_head(config, key=keys[2], std=head_std),
        config=config,
    )


def init_score_head(config: LlamaConfig, *, key: PRNGKeyArray, std: float | None = None) -> Float[Array, "1 D"]:
    """A score head `N(0, std²)`, float32; `initializer_range` when `std` is `None`, as `transformers` and TRL do."""
    std = config.initializer_range if std is None else std
    return std * jax.random.normal(key, (1, config.hidden_size), jnp.float32)


def _init_block(config: LlamaConfig, key: PRNGKeyArray, dtype) -> Block:
    keys = iter(jax.random.split(key, 7))
    hidden, ffn, std = config.hidden_size, config.intermediate_size, config.initializer_range
    query = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim

    def layer(rows: int, columns: int, bias: bool) -> Linear:
        weight = std * jax.random.normal(next(keys), (rows, columns), dtype)
        return Linear(weight, jnp.zeros(rows, dtype) if bias else None)

    return Block(
        input_layernorm=jnp.ones(hidden, dtype),
        q_proj=layer(query, hidden, config.attention_bias),
        k_proj=layer(kv, hidden, config.attention_bias),
        v_proj=layer(kv, hidden, config.attention_bias),
        o_proj=layer(hidden, query, config.attention_bias),
        post_attention_layernorm=jnp.ones(hidden, dtype),
        gate_proj=layer(ffn, hidden, config.mlp_bias),
        up_proj=layer(ffn, hidden, config.mlp_bias),
        down_proj=layer(hidden, ffn, config.mlp_bias),
    )
