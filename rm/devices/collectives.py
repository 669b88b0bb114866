"""What devices tell each other while a forward runs on a mesh; each of these does nothing where there is no mesh.

They run inside `jax.shard_map` without replication checks, where the cotangent of a value that several devices hold is
the sum over these devices. The transposes that JAX has for sums, gathers and exchanges are then right as they are.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ..shapes import checked


def shards(axis: str) -> int:
    """Devices along a mesh axis, 1 where it is not mapped over."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def sum_over(x: Array, axis: str) -> Array:
    """The sum of what the devices along an axis have."""
    return lax.psum(x, axis) if shards(axis) > 1 else x


def gather_over(x: Array, axis: str, dim: int) -> Array:
    """The parts of the devices along an axis, one after the other along a dimension."""
    return lax.all_gather(x, axis, axis=dim, tiled=True) if shards(axis) > 1 else x


@checked
def gather_weight(weight: Float[Array, "_ _"], columns: int) -> Float[Array, "O I"]:
    """A matrix of so many columns from the parts that the devices along `fsdp` keep, of its rows or of its columns."""
    return gather_over(weight, "fsdp", dim=0 if weight.shape[1] == columns else 1)


@checked
def scatter_gradient(gradient: Float[Array, "O I"], shape: tuple[int, ...]) -> Float[Array, "_ _"]:
    """The part of such a matrix's gradient that this device keeps, added up over those along `fsdp`."""
    if shards("fsdp") == 1:
        return gradient
    dim = 0 if shape[1] == gradient.shape[1] else 1
    return lax.psum_scatter(gradient, "fsdp", scatter_dimension=dim, tiled=True)


@checked
def look_up(table: Float[Array, "V _"], tokens: Int[Array, "R N"], dtype) -> Float[Array, "R N D"]:
    """Embeddings of tokens, from a table of which every device along `tensor` and `fsdp` keeps some columns.

    Each looks up its columns for the rows of all, so that activations travel and not the table, which is larger.
    """
    x = table[gather_over(tokens, "fsdp", dim=0)].astype(dtype)
    if shards("fsdp") > 1:
        x = lax.all_to_all(x, "fsdp", split_axis=0, concat_axis=2, tiled=True)
    return gather_over(x, "tensor", dim=2)


@checked
def take_tokens(x: Float[Array, "R N *rest"] | Int[Array, "R N"], places: Int[Array, "R M"]) -> Array:
    """What the tokens at some places of their whole row have, of which every device along `context` holds a part."""
    start = lax.axis_index("context") * x.shape[1] if shards("context") > 1 else 0
    own = jnp.clip(places - start, 0, x.shape[1] - 1)
    spread = (..., *(None,) * (x.ndim - 2))
    taken = jnp.take_along_axis(x, own[spread], axis=1)
    if shards("context") > 1:
        taken = jnp.where((own == places - start)[spread], taken, jnp.zeros_like(taken))
    return sum_over(taken, "context")
