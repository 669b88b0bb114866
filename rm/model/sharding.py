"""The sharding of parameters, optimizer state and batches over a mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..devices.mesh import ROWS, check_rows, own_rows, shardings, standard_mesh
from ..errors import ConfigError
from .batch import PreferenceBatch
from .config import LlamaConfig

# The dimension of a weight that `tensor` splits: its heads or MLP features, at the output (0) or the input (1).
_TENSOR = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0),
    **dict.fromkeys(("o_proj", "down_proj"), 1),
}
STACKS = ("first_blocks.", "blocks.")  # how the names of leaves begin that stack the arrays of several layers
_LORA = {".lora.a": 1, ".lora.b": 0}  # the dimension of the weight that a factor of an adapter has, too


def partition_specs(model: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The `PartitionSpec` of every leaf of a `RewardModel`, or of its gradients, as a tree of the same structure.

    | leaf                       | shape    | split                                                         |
    |----------------------------|----------|---------------------------------------------------------------|
    | `embed_tokens`             | `[V, D]` | D over `tensor` and `fsdp`                                    |
    | `q k v gate up`, weights   | `[O, I]` | O over `tensor`, then O (I if O does not divide) over `fsdp`  |
    | `o down`, weights          | `[O, I]` | I over `tensor`, then O (I if O does not divide) over `fsdp`  |
    | `q k v gate up`, biases    | `[O]`    | O over `tensor`                                               |
    | `lora.a`, `lora.b`         | `[P, I]`, `[O, P]` | I and O as in their weight, P over `fsdp` if it divides |
    | norms, `o down` biases, head | small  | replicated                                                    |

    The layer axis is never split. All leaves are replicated along `data` and `context`.

    **Raises:** `ConfigError`, naming the leaf, if a size does not divide.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_spec(path, leaf.shape, mesh), model)


def _leaf_spec(path: tuple, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    layers, size = (None,) * name.startswith(STACKS), dict(mesh.shape)
    dims = list(shape[len(layers) :])
    if name == "embed_tokens":
        _divide(name, dims, 1, size["tensor"] * size["fsdp"], "tensor·fsdp")
        return P(None, ("tensor", "fsdp"))
    part = next((part for part in name.split(".") if part in _TENSOR), None)
    if part is None or (name.endswith("bias") and _TENSOR[part] == 1):
        return P()
    split: list[tuple[str, ...]] = [()] * len(dims)
    if _LORA.get(name[-7:], _TENSOR[part]) == _TENSOR[part]:  # the other factor does not have the split features
        split[_TENSOR[part]] = ("tensor",)
        dims[_TENSOR[part]] = _divide(name, dims, _TENSOR[part], size["tensor"], "tensor")
    if len(dims) == 2:
        dim = 1 if dims[0] % size["fsdp"] and dims[1] % size["fsdp"] == 0 else 0
        _divide(name, dims, dim, size["fsdp"], "fsdp")
        split[dim] = (*split[dim], "fsdp")
    return P(*layers, *(axes or None for axes in split))


def _divide(name: str, dims: list[int], dim: int, parts: int, axes: str) -> int:
    if dims[dim] % parts:
        raise ConfigError(f"{name}: size {dims[dim]} does not divide into {axes} = {parts} parts; choose another mesh")
    return dims[dim] // parts


def check_mesh(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises `ConfigError` for a mesh that splits attention heads, because `tensor` does not divide them."""
    heads, parts = config.num_key_value_heads, mesh.shape["tensor"]
    if heads % parts:
        raise ConfigError(f"mesh tensor={parts}: must divide num_key_value_heads, found {heads}; use fsdp for the rest")


def place_model(model: Any, mesh: Mesh) -> Any:
    """Places every leaf of a model on a mesh as `partition_specs` says.

    The result may share replicated arrays with the argument, so train only one of the two.
    """
    mesh = standard_mesh(mesh)
    return jax.device_put(model, shardings(partition_specs(model, mesh), mesh))


def state_specs(state: Any, model: Any, specs: Any) -> Any:
    """The specs of an optimizer's state: a leaf with the path and shape of a parameter gets that parameter's spec."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    placed = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    params = [(jax.tree_util.keystr(path), leaf.shape, spec) for (path, leaf), spec in zip(leaves, placed, strict=True)]

    def like_parameter(path: tuple, leaf: Any) -> P:
        name = jax.tree_util.keystr(path)
        return next((spec for end, shape, spec in params if name.endswith(end) and leaf.shape == shape), P())

    return jax.tree_util.tree_map_with_path(like_parameter, state)


def place_batch(batch: PreferenceBatch, mesh: Mesh, *, rows: int | None = None) -> PreferenceBatch:
    """Places a batch on a mesh, with its rows sharded over `data` and `fsdp`.

    **Arguments:** `batch`, the whole batch, or only the `own_rows` of this process if `rows`, the total, is given.

    **Raises:** `ConfigError` if the mesh does not divide the rows.
    """
    mesh = standard_mesh(mesh)
    first = 0 if rows is None else own_rows(rows, mesh).start
    count = rows or batch.tokens.shape[0]
    check_rows(count, mesh)
    sharding = NamedSharding(mesh, P(ROWS))

    def place(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return np.asarray(x[start - first : stop - first])

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


def context_order(regions: tuple[int, ...], parts: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """The token order in which each of `parts` devices gets an equal part of every region, and a device's regions.

    **Raises:** `ConfigError` if `parts` does not divide a region.

    >>> order, local_regions = context_order((2, 4), 2)
    >>> order.tolist(), local_regions  # the first device gets the first three
    ([0, 2, 3, 1, 4, 5], (1, 2))
    """
    for region in regions:
        if region % parts:
            raise ConfigError(f"mesh context={parts}: a region of {region} tokens does not divide into {parts} parts")
    places = np.split(np.arange(sum(regions)), np.cumsum(regions)[:-1])
    order = np.concatenate([place.reshape(parts, -1) for place in places], axis=1).reshape(-1)
    return order, tuple(region // parts for region in regions)
