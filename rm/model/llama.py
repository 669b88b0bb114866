"""The reward model: parameters, initialisation and the forward pass over a `PreferenceBatch`, as pure functions."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..devices.collectives import gather_over, shards
from ..devices.mesh import ROWS, check_rows
from ..devices.platform import on_gpu, platform
from ..shapes import checked
from .attention import Marks
from .attention_choice import Inputs, choose_attention
from .batch import PreferenceBatch
from .block import Block, Row, apply_block, apply_last_block, draw_normal, init_block, kept
from .block_attention import find_blocks
from .compute import Compute, Remat
from .config import LlamaConfig
from .cudnn_attention import find_places
from .derivatives import providing
from .heads import apply_head, check_one_label
from .layers import PRODUCT, Linear, embed, rms_norm
from .rotary import rotary_table
from .sharding import check_mesh, context_order, partition_specs

_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class RewardModel(eqx.Module):
    """A backbone of `LlamaConfig` with a head; every leaf is an array, the configuration is static.

    The last block is not in the stack because most of it is computed at the reward positions only.
    """

    embed_tokens: Float[Array, "V D"]
    blocks: Block | None  # None if the last block is the only one
    last_block: Block
    norm: Float[Array, "D"]
    score: Float[Array, "L _"]  # a row for each label; a reward is one
    config: LlamaConfig = eqx.field(static=True)
    first_blocks: Block | None = None  # those before `blocks` that do not train, see `freeze_layers`
    score_bias: Float[Array, "L"] | None = None
    score_hidden: Linear | None = None  # a layer before `score`, with a ReLU between them


def init_reward_model(
    config: LlamaConfig, *, key: PRNGKeyArray, head_std: float | None = None, dtype=jnp.float32
) -> RewardModel:
    """A randomly initialised model: `N(0, initializer_range²)` weights, unit norms, zero biases.

    **Arguments:** `head_std`, the standard deviation of the score head (`initializer_range` if `None`); `dtype`, the
    type of the parameters (the head is always float32).

    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> init_reward_model(config, key=jax.random.key(0)).score.shape
    (1, 16)
    """
    keys = jax.random.split(key, 4)
    std = config.initializer_range
    *blocks, last_block = [init_block(config, k, dtype) for k in jax.random.split(keys[1], config.num_hidden_layers)]
    return RewardModel(
        embed_tokens=draw_normal(keys[0], (config.vocab_size, config.hidden_size), std, dtype),
        blocks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks) if blocks else None,
        last_block=last_block,
        norm=jnp.ones(config.hidden_size, dtype),
        score=init_score_head(config, key=keys[2], std=head_std),
        config=config,
    )


def init_score_head(
    config: LlamaConfig, *, key: PRNGKeyArray, std: float | None = None, labels: int = 1
) -> Float[Array, "L D"]:
    """A float32 score head from `N(0, std²)`; `std` is `initializer_range` by default, as in `transformers` and TRL."""
    std = config.initializer_range if std is None else std
    return draw_normal(key, (labels, config.hidden_size), std)


@checked
def rewards(model: RewardModel, batch: PreferenceBatch, compute: Compute = Compute()) -> Float[Array, "R S K"]:
    """The reward of every response, `score · hidden`, float32; empty slots hold finite, meaningless values.

    The head may have a bias and a hidden layer (`rm.model.heads`).

    **Arguments:** `batch`, comparisons packed into rows; `compute`, the data type, the rematerialisation, the
    attention implementation and the mesh.

    **Raises:** `ConfigError` if the mesh does not divide the heads, the rows or the regions, if the attention
    implementation is not exact for these rows or not available on this platform, or if the head has several labels.

    >>> from rm import init_reward_model
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> model = init_reward_model(config, key=jax.random.key(0))
    >>> batch = PreferenceBatch(
    ...     tokens=jnp.array([[5, 6, 7, 8]]), segments=jnp.array([[1, 1, 1, 1]]), parts=jnp.array([[0, 0, 1, 2]]),
    ...     positions=jnp.array([[0, 1, 2, 2]]), ends=jnp.array([[[2, 3]]]), index=jnp.array([[0]]),
    ...     margin=jnp.zeros((1, 1)), regions=(2, 1, 1))
    >>> rewards(model, batch).shape  # one row, one comparison, two responses of one token after a prefix of two
    (1, 1, 2)
    """
    check_one_label(len(model.score), "the head")
    return ratings(model, batch, compute)[..., 0]


@checked
def ratings(model: RewardModel, batch: PreferenceBatch, compute: Compute = Compute()) -> Float[Array, "R S K L"]:
    """Every label of every response, float32; of a model with one label, its reward.

    The arguments and errors are those of `rewards`.
    """
    features = hidden_states(model, batch, compute)
    return apply_head(features, model.score, model.score_bias, model.score_hidden)


@checked
def hidden_states(model: RewardModel, batch: PreferenceBatch, compute: Compute = Compute()) -> Float[Array, "R S K D"]:
    """The last hidden state at every reward position after the final norm, float32: the input of the score head.

    The arguments are those of `rewards`. A head of your own takes this array.
    """
    R, S, K = batch.ends.shape
    with providing(compute.derivatives):
        return _hidden_states(model, batch, compute).reshape(R, S, K, -1)


def _hidden_states(model: RewardModel, batch: PreferenceBatch, compute: Compute) -> Float[Array, "R M D"]:
    R, S, K = batch.ends.shape
    forward = partial(_forward, slots=S, longest=batch.longest, compute=compute)
    tokens, segments, parts, positions = map(jnp.asarray, (batch.tokens, batch.segments, batch.parts, batch.positions))
    by_length = model.config.fixed_rope_length < math.inf
    lengths = _sequence_lengths(segments, parts, positions) if by_length else positions
    per_token, ends = (tokens, segments, parts, positions, lengths), jnp.asarray(batch.ends).reshape(R, S * K)
    if compute.mesh is None:
        return forward(model, per_token, ends, batch.regions)
    return _on_mesh(forward, compute.mesh, model, per_token, ends, batch.regions)


def _on_mesh(forward, mesh: Mesh, model: RewardModel, per_token: tuple, ends: Array, regions: tuple[int, ...]) -> Array:
    """Runs `forward` on a mesh, where every device has its shard of the model and of the rows."""
    check_mesh(model.config, mesh)
    check_rows(ends.shape[0], mesh)
    order, local_regions = context_order(regions, mesh.shape["context"])
    per_token, ends = tuple(x[:, order] for x in per_token), jnp.asarray(np.argsort(order), ends.dtype)[ends]
    mapped = jax.shard_map(
        partial(forward, regions=local_regions),
        mesh=mesh,
        in_specs=(partition_specs(model, mesh), P(ROWS, "context"), P(ROWS)),
        out_specs=P(ROWS),
        check_vma=False,  # see `collectives`
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # whatever mesh `jax.set_mesh` has set
        return mapped(model, per_token, ends)


def _forward(
    model: RewardModel,
    per_token: tuple,
    ends: Array,
    regions: tuple[int, ...],
    *,
    slots: int,
    longest: int | None,
    compute: Compute,
) -> Float[Array, "R M D"]:
    """The last hidden state at `ends` after the final norm, from a device's shards of the model and the tokens."""
    config, (tokens, segments, parts, positions, lengths) = model.config, per_token
    queries = Marks(segments, parts, positions)
    keys = Marks(*(gather_over(mark, "context", dim=1) for mark in queries))
    table = rotary_table(config, positions, lengths)
    form = shards("context"), config.sliding_window, compute.derivatives
    inputs = Inputs(regions, config.head_dim, compute.dtype, *form)
    attention, window = choose_attention(compute.attention, inputs), inputs.shorter_window
    blocks = find_blocks(queries, keys, window) if attention == "block" else None
    places = find_places(queries, regions, slots, longest) if attention == "cudnn" else None
    row = Row(table, queries, keys, ends, blocks, places)
    cheap = _recomputed if on_gpu() and compute.remat == "none" else kept
    block = partial(apply_block, config=config, regions=regions, attention=attention, window=window, cheap=cheap)
    block = _remat(block, compute.remat)
    last_block = _remat(partial(apply_last_block, config=config, window=window, cheap=cheap), compute.remat)

    x = embed(model.embed_tokens, tokens, compute.dtype)
    # Unrolling spares XLA on CPUs the copies in and out of the stacks, but it would undo the rematerialisation and
    # keep the gathered weights of all layers.
    unroll = platform() == "cpu" and compute.remat == "none" and shards("fsdp") == 1
    for blocks in filter(None, (model.first_blocks, model.blocks)):
        x, _ = jax.lax.scan(lambda x, layer: (block(x, layer, row), None), x, blocks, unroll=unroll)
    x = last_block(x, model.last_block, row)
    return rms_norm(x.astype(jnp.float32), model.norm, config.rms_norm_eps)


# of norms, gates and gathers before a product, which itself is not computed again: GPUs write less of what they save
_recomputed = partial(jax.checkpoint, prevent_cse=False)


def _remat(function, remat: Remat):
    return function if remat == "none" else jax.checkpoint(function, policy=_POLICIES[remat])


def _sequence_lengths(
    segments: Int[Array, "R N"], parts: Int[Array, "R N"], positions: Int[Array, "R N"]
) -> Int[Array, "R N"]:
    """The length of each token's sequence; for a prefix, that of its longest sequence."""
    same = segments[:, :, None] == segments[:, None, :]
    same &= (parts[:, :, None] == parts[:, None, :]) | (parts[:, :, None] == 0)
    return jnp.max(jnp.where(same, positions[:, None, :], 0), axis=-1) + 1
