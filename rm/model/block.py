"""A transformer block: its parameters, and what it computes for the tokens of packed rows."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..devices.collectives import gather_over, shards, take_tokens
from ..shapes import checked
from .attention import Marks, attend, shared_prefix_attention, visible
from .attention_choice import Attention
from .block_attention import Blocks, block_attention
from .config import LlamaConfig
from .cudnn_attention import Places, collect, cudnn_attention
from .layers import Linear, gated_linear, linear, rms_norm
from .rotary import rotate
from .splash_attention import splash_attention


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
    q_norm: Float[Array, "*L E"] | None = None  # of every head's queries, before the rotary embedding
    k_norm: Float[Array, "*L E"] | None = None


def draw_normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float, dtype=jnp.float32) -> Array:
    """Draws from `N(0, std²)` in float32, then rounds; drawn in bfloat16, values are few and end at 2.9 deviations."""
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def init_block(config: LlamaConfig, key: PRNGKeyArray, dtype) -> Block:
    """A block drawn at random: `N(0, initializer_range²)` weights, unit norms, zero biases."""
    keys = iter(jax.random.split(key, 7))
    hidden, ffn, std = config.hidden_size, config.intermediate_size, config.initializer_range
    query = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    biases = config.attention_bias or config.family.qkv_bias

    def layer(rows: int, columns: int, bias: bool) -> Linear:
        weight = draw_normal(next(keys), (rows, columns), std, dtype)
        return Linear(weight, jnp.zeros(rows, dtype) if bias else None)

    return Block(
        input_layernorm=jnp.ones(hidden, dtype),
        q_proj=layer(query, hidden, biases),
        k_proj=layer(kv, hidden, biases),
        v_proj=layer(kv, hidden, biases),
        o_proj=layer(hidden, query, config.attention_bias),
        post_attention_layernorm=jnp.ones(hidden, dtype),
        gate_proj=layer(ffn, hidden, config.mlp_bias),
        up_proj=layer(ffn, hidden, config.mlp_bias),
        down_proj=layer(hidden, ffn, config.mlp_bias),
        q_norm=jnp.ones(config.head_dim, dtype) if config.family.qk_norm else None,
        k_norm=jnp.ones(config.head_dim, dtype) if config.family.qk_norm else None,
    )


class Row(NamedTuple):
    """The inputs of a block that are the same in every layer."""

    table: tuple[Float[Array, "R N half"], Float[Array, "R N half"]]
    queries: Marks
    keys: Marks  # of the whole row; on a mesh with `context`, a device has only some of its queries
    ends: Int[Array, "R M"]
    blocks: Blocks | None  # for block attention only
    places: Places | None  # for attention by cuDNN only


def kept(function: Callable) -> Callable:
    """The same function: the backward pass keeps what it computes."""
    return function


@checked
@jax.named_scope("block")
def apply_block(
    x: Float[Array, "R N D"],
    layer: Block,
    row: Row,
    config: LlamaConfig,
    regions: tuple[int, ...],
    attention: Attention,
    window: int | None = None,
    cheap: Callable = kept,
) -> Float[Array, "R N D"]:
    """Applies one transformer block to every token; the backward pass computes again what is in `cheap`."""

    @cheap
    def projected(x: Array) -> list[Array]:
        h = rms_norm(x, layer.input_layernorm, config.rms_norm_eps)
        return [linear(h, each) for each in (layer.q_proj, layer.k_proj, layer.v_proj)]

    q, k, v = projected(x)
    q = _as_queries(q, layer, row.table, config)
    k, v = _as_keys_values(k, v, layer, row.table, config)
    if row.blocks is not None:
        out = block_attention(q, k, v, row.blocks)
    elif row.places is not None:
        gathered = cudnn_attention(q, k, v, row.places, window)
        return _finish_block(x, gathered, layer, config, cheap, partial(collect, places=row.places))
    elif attention == "splash":
        out = splash_attention(q, k, v, row.queries, row.keys, regions)
    else:
        out = shared_prefix_attention(q, k, v, row.queries, row.keys, regions, window)
    return _finish_block(x, out, layer, config, cheap)


@checked
@jax.named_scope("last_block")
def apply_last_block(
    x: Float[Array, "R N D"],
    layer: Block,
    row: Row,
    config: LlamaConfig,
    window: int | None = None,
    cheap: Callable = kept,
) -> Float[Array, "R M D"]:
    """Applies the last block: keys and values for every token, the rest at the reward positions only (exact)."""

    def at_ends(x: Array) -> Array:
        return take_tokens(x, row.ends)

    @cheap
    def projected(x: Array) -> list[Array]:
        h = rms_norm(x, layer.input_layernorm, config.rms_norm_eps)
        return [linear(at_ends(h), layer.q_proj), linear(h, layer.k_proj), linear(h, layer.v_proj)]

    q, k, v = projected(x)
    cos, sin = row.table
    q = _as_queries(q, layer, (at_ends(cos), at_ends(sin)), config)
    k, v = _as_keys_values(k, v, layer, row.table, config)
    out = attend(q, k, v, visible(Marks(*map(at_ends, row.queries)), row.keys, window))
    return _finish_block(at_ends(x), out, layer, config, cheap)


def _as_queries(q: Array, layer: Block, table: tuple[Array, Array], config: LlamaConfig) -> Float[Array, "R M G Q E"]:
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    q = q.reshape(*q.shape[:2], groups // shards("tensor"), heads // groups, config.head_dim)
    return rotate(_norm_heads(q, layer.q_norm, config), table)


def _as_keys_values(
    k: Array, v: Array, layer: Block, table: tuple[Array, Array], config: LlamaConfig
) -> tuple[Array, Array]:
    heads = (*k.shape[:2], config.num_key_value_heads // shards("tensor"), config.head_dim)
    k, v = k.reshape(heads), v.reshape(heads)
    k = rotate(_norm_heads(k, layer.k_norm, config), table)
    return gather_over(k, "context", dim=1), gather_over(v, "context", dim=1)


def _norm_heads(x: Array, weight: Array | None, config: LlamaConfig) -> Array:
    return x if weight is None else rms_norm(x, weight, config.rms_norm_eps)


def _finish_block(
    x: Array, attention: Array, layer: Block, config: LlamaConfig, cheap: Callable, in_rows: Callable = kept
) -> Array:
    """The rest of a block; `in_rows` brings the outputs of attention into rows."""

    @cheap
    def attended(attention: Array) -> Array:
        return linear(in_rows(attention).reshape(*x.shape[:2], -1), layer.o_proj, partial=True)

    @cheap
    def gates(x: Array) -> tuple[Array, Array]:
        h = rms_norm(x, layer.post_attention_layernorm, config.rms_norm_eps)
        return linear(h, layer.gate_proj), linear(h, layer.up_proj)

    x = x + attended(attention)
    return x + cheap(partial(gated_linear, down=layer.down_proj))(*gates(x))
