"""Training a part of a model: low-rank adapters, the last layers, the head alone."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..devices.mesh import mesh_of
from ..errors import ConfigError, check_list
from .block import Block
from .layers import Linear, Lora
from .llama import RewardModel
from .sharding import place_model

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
TARGETS: tuple[Target, ...] = get_args(Target)
Part = Literal["model", "head"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The part of a model that trains, for `split_model`."""

    part: Part = "model"
    freeze_layers: int = 0  # blocks, the first ones
    lora_rank: int = 0  # 0: no adapters
    lora_alpha: float | None = None
    lora_targets: tuple[Target, ...] = TARGETS
    rslora: bool = False

    def __post_init__(self):
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))  # as JSON files do not have them

    @property
    def whole(self) -> bool:
        """True where every array trains."""
        return self.part == "model" and not self.freeze_layers and not self.lora_rank


def split_model(model: RewardModel, training: Training, *, key: PRNGKeyArray) -> tuple[RewardModel, RewardModel]:
    """Adds adapters and freezes layers as asked; returns the part that trains and the other, `None` for each other.

    `equinox.combine` puts them together.

    **Raises:** `ConfigError` where `freeze_layers` or `add_lora` does.
    """
    if training.freeze_layers:
        model = freeze_layers(model, training.freeze_layers)
    if training.lora_rank:
        options = {"targets": training.lora_targets, "rslora": training.rslora}
        model = add_lora(model, training.lora_rank, training.lora_alpha, key=key, **options)
    return eqx.partition(model, trainable(model, training.part))


def add_lora(
    model: RewardModel,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[Target] = TARGETS,
    *,
    key: PRNGKeyArray,
    rslora: bool = False,
) -> RewardModel:
    """Adds low-rank adapters to the layers that train: `W x + (α/P) B A x`; the rewards are the same until they train.

    `A` is drawn from `U(-1/√I, 1/√I)`, as `peft` does, and `B` is zero; both are float32, whatever the type of `W`.

    **Arguments:** `rank`, the `P` of the formula; `alpha`, `2 · rank` by default; `targets`, the matrices that get one;
    `rslora`, whether to scale by `α/√P` in place of `α/P`.

    **Raises:** `ConfigError` for an unknown target, a rank below 1, and a model that has adapters already.

    >>> from rm import LlamaConfig, init_reward_model
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> model = init_reward_model(config, key=jax.random.key(0))
    >>> add_lora(model, rank=4, key=jax.random.key(1)).last_block.q_proj.lora.a.shape
    (4, 16)

    **Source:** Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732 (rsLoRA).
    """
    check_list("targets", targets)
    check_lora(rank, targets)
    if has_lora(model):
        raise ConfigError("add_lora: the model has adapters already; merge_lora merges them into the weights")
    alpha = 2.0 * rank if alpha is None else alpha
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    keys = iter(jax.random.split(key, 2 * len(TARGETS)))

    def add(block: Block | None) -> Block | None:
        drawn = {f"{name}_proj": next(keys) for name in TARGETS}  # of all, so that `targets` changes no other draw
        if block is None:
            return None
        layers = {f"{name}_proj": getattr(block, f"{name}_proj") for name in targets}
        changed = {name: _with_lora(layer, rank, scale, drawn[name]) for name, layer in layers.items()}
        return dataclasses.replace(block, **changed)

    return _on_mesh_of(model, dataclasses.replace(model, blocks=add(model.blocks), last_block=add(model.last_block)))


def check_lora(rank: int, targets: Sequence[str]) -> None:
    """Raises `ConfigError` for a rank below 1, and for targets that are unknown or none."""
    if rank < 1:
        raise ConfigError(f"a LoRA rank must be at least 1, found {rank}")
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets:
        raise ConfigError(
            f"LoRA targets must be some of {', '.join(TARGETS)}; found {unknown[0] if unknown else 'none'}"
        )


def _with_lora(layer: Linear, rank: int, scale: float, key: PRNGKeyArray) -> Linear:
    *layers, rows, columns = layer.weight.shape
    bound = columns**-0.5
    a = jax.random.uniform(key, (*layers, rank, columns), jnp.float32, -bound, bound)
    return dataclasses.replace(layer, lora=Lora(a, jnp.zeros((*layers, rows, rank)), scale))


def frozen_layers(model: RewardModel) -> int:
    """The number of layers that `freeze_layers` has split off."""
    return 0 if model.first_blocks is None else len(model.first_blocks.input_layernorm)


def has_lora(model: RewardModel) -> bool:
    """True where a layer has an adapter."""
    return any(_is_lora(path) for path, _ in jax.tree_util.tree_leaves_with_path(model))


def _is_lora(path: tuple) -> bool:
    return ".lora." in jax.tree_util.keystr(path, simple=True, separator=".")


def merge_lora(model: RewardModel) -> RewardModel:
    """A model without adapters and with all blocks in one stack, which computes the same: `W ← W + (α/P) B A`.

    The sum is computed in float32 and rounded to the type of `W`. `save_reward_model` merges by itself.

    >>> from rm import LlamaConfig, init_reward_model
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> model = add_lora(init_reward_model(config, key=jax.random.key(0)), rank=4, key=jax.random.key(1))
    >>> merge_lora(model).last_block.q_proj.lora is None
    True
    """
    if model.first_blocks is None and not has_lora(model):
        return model
    stacks = [stack for stack in (model.first_blocks, model.blocks) if stack is not None]
    merged = [_merge_block(block) for block in (*stacks, model.last_block)]
    blocks = jax.tree.map(lambda *layers: jnp.concatenate(layers), *merged[:-1]) if stacks else None
    return _on_mesh_of(model, dataclasses.replace(model, first_blocks=None, blocks=blocks, last_block=merged[-1]))


def _merge_block(block: Block) -> Block:
    def merge(layer: Any) -> Any:
        return Linear(merged_weight(layer), layer.bias) if isinstance(layer, Linear) else layer

    return jax.tree.map(merge, block, is_leaf=lambda node: isinstance(node, Linear))


def merged_weight(layer: Linear) -> Float[Array, "*L O I"]:
    """The weight with the adapter added, `W + scale · B A`, computed in float32 and rounded to the type of `W`."""
    if layer.lora is None:
        return layer.weight
    low = jnp.matmul(layer.lora.b, layer.lora.a, precision=jax.lax.Precision.HIGHEST)
    return (layer.weight.astype(jnp.float32) + layer.lora.scale * low).astype(layer.weight.dtype)


def _on_mesh_of(model: RewardModel, other: RewardModel) -> RewardModel:
    mesh = mesh_of(model.embed_tokens)
    return other if mesh is None else place_model(other, mesh)


def freeze_layers(model: RewardModel, count: int) -> RewardModel:
    """Splits off the first `count` blocks, which `trainable` leaves out together with the embedding.

    No gradient passes through them, so an update neither stores their activations nor computes their backward pass.

    **Raises:** `ConfigError` unless `count` is from 1 to the number of layers less one; the last block always trains.

    >>> from rm import LlamaConfig, init_reward_model
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4,
    ...                      num_attention_heads=4)
    >>> model = freeze_layers(init_reward_model(config, key=jax.random.key(0)), 2)
    >>> model.first_blocks.input_layernorm.shape, model.blocks.input_layernorm.shape
    ((2, 16), (1, 16))
    """
    most = model.config.num_hidden_layers - 1
    if not 1 <= count <= most:
        raise ConfigError(f"layers to freeze: expected from 1 to {most}, all but the last, found {count}")
    if model.first_blocks is not None:
        raise ConfigError("freeze_layers: the model has frozen layers already; merge_lora joins them with the others")
    first = jax.tree.map(lambda leaf: leaf[:count], model.blocks)
    rest = jax.tree.map(lambda leaf: leaf[count:], model.blocks) if count < most else None
    return _on_mesh_of(model, dataclasses.replace(model, first_blocks=first, blocks=rest))


def trainable(model: RewardModel, part: Part = "model") -> Any:
    """The tree of booleans for `equinox.partition` that is true for the arrays that train.

    With adapters these are the adapters and the head; without, all but the embedding and the blocks of `freeze_layers`.
    `part="head"` is the head alone.

    >>> import equinox as eqx
    >>> from rm import LlamaConfig, init_reward_model
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> base = init_reward_model(config, key=jax.random.key(0))
    >>> model = add_lora(base, rank=4, targets=["q"], key=jax.random.key(1))
    >>> trained, frozen = eqx.partition(model, trainable(model))
    >>> [leaf.shape for leaf in jax.tree.leaves(trained)]  # of a stack of one block, of the last block, the head
    [(1, 4, 16), (1, 16, 4), (4, 16), (16, 4), (1, 16)]
    """
    adapters, frozen = has_lora(model), ("first_blocks",) + ("embed_tokens",) * (model.first_blocks is not None)

    def trains(path: tuple, _: Any) -> bool:
        field = path[0].name
        if part == "head" or adapters:
            return field.startswith("score") or (part != "head" and _is_lora(path))
        return field not in frozen

    return jax.tree_util.tree_map_with_path(trains, model)
