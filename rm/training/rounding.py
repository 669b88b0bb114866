"""Stochastic rounding to bfloat16, which is exact on average, so that small changes to bfloat16 values add up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, BFloat16, Float, Float32, Int, PRNGKeyArray

from ..shapes import checked
from .transformation import Optimizer, as_transformation


class Rounded(NamedTuple):
    """The state of `keep_moments`: that of the wrapped optimizer, with its arrays in bfloat16."""

    step: Int[Array, ""]
    state: optax.OptState


@checked
def stochastic_round(x: Float32[Array, "*B"], key: PRNGKeyArray) -> BFloat16[Array, "*B"]:
    """Rounds `x` to one of its two bfloat16 neighbours, the nearer one more likely, so that `E[round(x)] = x`.

    Rounding to nearest would lose every change below 1/256 of a value, and most changes of AdamW are smaller.

    >>> x = jnp.full(10_000, 1 + 1 / 512)  # a quarter of the way from 1 to 1 + 1/128
    >>> bool(abs(stochastic_round(x, jax.random.key(0)).astype(jnp.float32).mean() - x[0]) < 1e-4)
    True

    **Source:** Gupta et al. 2015, arXiv 1502.02551, section 3.1.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> 16
    kept = lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), kept, x).astype(jnp.bfloat16)


def round_tree(tree: Any, like: Any, step: Int[Array, ""]) -> Any:
    """Casts a tree to the types of `like`, with stochastic rounding to bfloat16 and new random bits at each step."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), max(1, len(leaves)))

    def rounded(leaf: Array, key: PRNGKeyArray, dtype) -> Array:
        if leaf.dtype == dtype:
            return leaf
        return stochastic_round(leaf, key) if dtype == jnp.bfloat16 else leaf.astype(dtype)

    types = [leaf.dtype for leaf in jax.tree.leaves(like)]
    return structure.unflatten([rounded(*args) for args in zip(leaves, keys, types, strict=True)])


def add_updates(model: Any, updates: Any, step: Int[Array, ""]) -> Any:
    """Computes `θ + Δθ` in float32 and casts each leaf back to its own type, to bfloat16 by stochastic rounding."""

    def add(leaf: Float[Array, "..."], change: Float[Array, "..."]) -> Float32[Array, "..."]:
        return leaf.astype(jnp.float32) + change.astype(jnp.float32)

    return round_tree(jax.tree.map(add, model, updates), model, step)


def keep_moments(optimizer: Optimizer) -> optax.GradientTransformation:
    """Wraps an optimizer to store its moments in bfloat16, in half the memory; it still computes in float32.

    >>> state = keep_moments(optax.adam(1e-3)).init(jnp.zeros(3))
    >>> state.state[0].nu.dtype
    dtype(bfloat16)
    """

    inner = as_transformation(optimizer)

    def is_moment(leaf: Array) -> bool:
        return leaf.ndim > 0 and leaf.dtype == jnp.float32

    def smaller(leaf: Array) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if is_moment(leaf) else leaf.dtype)

    def init(params: optax.Params) -> Rounded:
        state = inner.init(params)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if is_moment(leaf) else leaf, state)
        return Rounded(jnp.zeros((), jnp.int32), state)

    def update(updates: optax.Updates, state: Rounded, params: optax.Params | None = None, **extra: Any):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state.state)
        updates, new = inner.update(updates, wide, params, **extra)
        kept = round_tree(new, jax.tree.map(smaller, new), state.step)
        return updates, Rounded(state.step + 1, kept)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
