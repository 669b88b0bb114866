"""An update to plan: the shapes of its model state, and its traffic by formula."""

import dataclasses
import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ..devices.mesh import AXES
from ..errors import ConfigError
from ..model.adapters import Training, split_model
from ..model.attention_choice import Attention
from ..model.compute import Remat
from ..model.config import LlamaConfig
from ..model.llama import RewardModel, init_reward_model
from ..model.sharding import check_mesh, context_order, partition_specs, state_specs
from ..training.optimizers import Dtype, OptimizerName, make_optimizer
from .flops import Work, count_work, forward_flops, update_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An update to plan: `rows` rows of `max_length` tokens, one quarter prompt, the rest two equal responses."""

    config: LlamaConfig
    mesh: dict[str, int]
    rows: int
    max_length: int = 2048
    dtype: Dtype = "bfloat16"
    remat: Remat = "full"
    optimizer: OptimizerName = "adamw"
    moments: Dtype = "float32"
    parameters: Dtype = "float32"
    attention: Attention = "auto"
    offload: bool = False  # whether the optimizer's state stays in host memory
    part: Training = dataclasses.field(default_factory=Training)

    @property
    def regions(self) -> tuple[int, int, int]:
        """The lengths of a row's prompt and responses."""
        return self.max_length // 4, self.max_length * 3 // 8, self.max_length * 3 // 8

    @property
    def work(self) -> Work:
        """The tokens and visible pairs of the update."""
        return count_work(np.array([self.regions] * self.rows, np.int64).reshape(-1, 3), self.config.sliding_window)


class Kept(NamedTuple):
    """The shapes and partition specs of the model state, which lives from update to update."""

    model: RewardModel  # the part that trains
    frozen: RewardModel  # the other part
    moments: Any
    specs: Any
    frozen_specs: Any
    moment_specs: Any


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
    """A mesh without devices."""
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


def check_case(case: Case) -> None:
    """Checks that an update can run.

    **Raises:** `ConfigError` if there are no rows, or if the mesh does not divide heads, rows, weights or regions.
    """
    size = abstract_mesh(case.mesh).shape
    if case.rows < 1 or case.rows % (size["data"] * size["fsdp"]):
        found = f"data·fsdp = {size['data'] * size['fsdp']}"
        raise ConfigError(f"a batch of {case.rows} rows does not divide over {found} devices; choose a multiple of it")
    if case.max_length < 8 or case.max_length % 8:
        raise ConfigError(f"rows must be a multiple of 8 tokens long, found {case.max_length}")
    check_mesh(case.config, abstract_mesh(case.mesh))
    context_order(case.regions, size["context"])


def kept(case: Case) -> Kept:
    """The shapes and specs of the model and of the optimizer's state; allocates nothing."""
    optimizer = case.optimizer, case.moments, case.offload
    return _kept(case.config, tuple(case.mesh.items()), case.parameters, case.part, *optimizer)


@lru_cache(maxsize=16)  # a plan asks a dozen times
def _kept(
    config: LlamaConfig,
    sizes: tuple[tuple[str, int], ...],
    parameters: Dtype,
    part: Training,
    name: OptimizerName,
    moments: Dtype,
    offload: bool,
) -> Kept:
    mesh, optimizer = abstract_mesh(dict(sizes)), make_optimizer(name, 1e-5, moments=moments, offload=offload)

    def init() -> tuple[RewardModel, RewardModel, Any]:
        model = init_reward_model(config, key=jax.random.key(0), dtype=jnp.dtype(parameters))
        model, frozen = split_model(model, part, key=jax.random.key(0))
        return model, frozen, optimizer.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model))  # pyright: ignore

    model, frozen, state = jax.eval_shape(init)
    specs = partition_specs(model, mesh)
    return Kept(model, frozen, state, specs, partition_specs(frozen, mesh), state_specs(state, model, specs))


def bytes_of(tree: Any, specs: Any, sizes: dict[str, int], itemsize: int | None = None) -> int:
    """The bytes of one device's shards of a tree."""
    total = 0
    for leaf, spec in zip(
        jax.tree.leaves(tree), jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)), strict=True
    ):
        axes = [axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)]
        total += leaf.size * (itemsize or leaf.dtype.itemsize) // math.prod(sizes.get(axis, 1) for axis in axes)
    return total


def communication(case: Case) -> dict[str, int]:
    """The bytes that one device sends along each mesh axis in one update, with ring algorithms.

    A gather or a scatter over `n` devices sends `(n-1)/n` of the array, a sum twice that. `fsdp` gathers every matrix
    for the forward and the backward pass (once more with `full` remat) and scatters float32 gradients; `data` sums
    gradients; `tensor` sums two activations per block and pass; `context` gathers keys and values.
    """
    config, size, shapes = case.config, abstract_mesh(case.mesh).shape, kept(case)
    itemsize, recomputes = jnp.dtype(case.dtype).itemsize, case.remat == "full"
    share = {axis: (size[axis] - 1) / size[axis] for axis in AXES}
    trained, frozen = (_block_parameters(part) // size["tensor"] for part in (shapes.model, shapes.frozen))
    tokens = case.rows * case.max_length // (size["data"] * size["fsdp"] * size["context"])
    gradients = bytes_of(shapes.model, shapes.specs, case.mesh, itemsize=4)
    heads = 2 * config.num_key_value_heads * config.head_dim // size["tensor"]
    layers, passes = config.num_hidden_layers, 2 + recomputes
    sent = {
        "data": 2 * share["data"] * gradients,
        "fsdp": share["fsdp"]
        * ((trained + frozen) * passes * itemsize + 4 * trained + 2 * tokens * config.hidden_size * itemsize),
        "context": share["context"] * layers * passes * tokens * size["context"] * heads * itemsize
        + 2 * share["context"] * gradients,
        "tensor": 2 * share["tensor"] * layers * (4 + recomputes) * tokens * config.hidden_size * itemsize,
    }
    return {axis: int(sent[axis]) for axis in AXES if size[axis] > 1}


def _block_parameters(model: RewardModel) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves((model.first_blocks, model.blocks, model.last_block)))


def operations(case: Case) -> int:
    """The floating-point operations of all devices in one update, with the recomputation of `remat`.

    Frozen layers have a forward pass alone, and layers with adapters no gradient of their weights; the products with
    the adapters themselves are left out.
    """
    forward = forward_flops(case.config, case.work)
    update = update_flops(case.config, case.work, remat=case.remat).total
    if case.part.part == "head":
        return forward.total
    backward = update - forward.total - forward.products * bool(case.part.lora_rank)
    layers = case.config.num_hidden_layers
    return forward.total + backward * (layers - case.part.freeze_layers) // layers
