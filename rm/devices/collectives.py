"""Collectives of the forward pass on a mesh; without a mesh they do nothing.

They run inside `jax.shard_map` without replication checks, where the cotangent of a replicated value is the sum over
the devices that hold it. JAX's transposes of sums, gathers and all-to-alls are then correct as they are.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ..shapes import checked


def shards(axis: str) -> int:
    """The number of devices along a mesh axis, 1 outside of `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def sum_over(x: Array, axis: str) -> Array:
    """Sums `x` over the devices along a mesh axis."""
    return lax.psum(x, axis) if shards(axis) > 1 else x


def gather_over(x: Array, axis: str, dim: int) -> Array:
    """Concatenates the shards of the devices along a mesh axis, along dimension `dim`."""
    return lax.all_gather(x, axis, axis=dim, tiled=True) if shards(axis) > 1 else x


def exchange_over(x: Array, axis: str, split: int, join: int) -> Array:
    """Splits `x` along `split`, sends each device along a mesh axis its part, and concatenates along `join`."""
    return lax.all_to_all(x, axis, split_axis=split, concat_axis=join, tiled=True) if shards(axis) > 1 else x


@checked
def gather_weight(weight: Float[Array, "_ _"], columns: int) -> Float[Array, "O I"]:
    """Gathers a matrix with `columns` columns from its shards along `fsdp`, which split its rows or its columns."""
    return gather_over(weight, "fsdp", dim=0 if weight.shape[1] == columns else 1)


@checked
def scatter_gradient(gradient: Float[Array, "O I"], shape: tuple[int, ...]) -> Float[Array, "_ _"]:
    """Sums the gradient of a gathered matrix along `fsdp` and returns this device's shard, of the given shape."""
    if shards("fsdp") == 1:
        return gradient
    dim = 0 if shape[1] == gradient.shape[1] else 1
    return lax.psum_scatter(gradient, "fsdp", scatter_dimension=dim, tiled=True)


@checked
def take_tokens(x: Float[Array, "R N *rest"] | Int[Array, "R N"], places: Int[Array, "R M"]) -> Array:
    """Gathers the values of `x` at some places of the whole row; `x` is sharded over `context`."""
    start = lax.axis_index("context") * x.shape[1] if shards("context") > 1 else 0
    local = jnp.clip(places - start, 0, x.shape[1] - 1)
    spread = (..., *(None,) * (x.ndim - 2))
    taken = jnp.take_along_axis(x, local[spread], axis=1)
    if shards("context") > 1:
        taken = jnp.where((local == places - start)[spread], taken, jnp.zeros_like(taken))
    return sum_over(taken, "context")
