"""Attention with shared prefixes; this lowering runs everywhere and is the one others are compared with.

A query sees a key when both belong to the same segment, the key does not come later in the row, and the key is of the
prefix or of the query's own part.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..shapes import checked
from .layers import precision


class Marks(NamedTuple):
    """What decides which tokens see each other."""

    segments: Int[Array, "R N"]
    parts: Int[Array, "R N"]
    places: Int[Array, "R N"]  # in the row


@checked
def visible(queries: Marks, keys: Marks) -> Bool[Array, "R M J"]:
    """Which keys each query sees."""
    return sees([mark[..., None] for mark in queries], [mark[:, None] for mark in keys])


def sees(query: Sequence[Array] | Array, key: Sequence[Array] | Array) -> Bool[Array, "..."]:
    """The rule, of the segment, part and place of queries and of keys, which broadcast against each other."""
    (segment, part, place), (k_segment, k_part, k_place) = query, key
    return (segment == k_segment) & ((k_part == 0) | (part == k_part)) & (place >= k_place)


@checked
def attend(
    q: Float[Array, "R M G Q E"],
    k: Float[Array, "R J G E"],
    v: Float[Array, "R J G E"],
    visible: Bool[Array, "R M J"],
) -> Float[Array, "R M G Q E"]:
    """`softmax(q kᵀ / √E) v` over the visible keys; grouped queries share keys, the softmax is float32."""
    options = {"precision": precision(q.dtype), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("RMGQE,RJGE->RGQMJ", q, k, **options) * q.shape[-1] ** -0.5
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("RGQMJ,RJGE->RMGQE", weights, v, **options).astype(q.dtype)


@checked
def shared_prefix_attention(
    q: Float[Array, "R N G Q E"],
    k: Float[Array, "R J G E"],
    v: Float[Array, "R J G E"],
    queries: Marks,
    keys: Marks,
    regions: tuple[int, ...],
) -> Float[Array, "R N G Q E"]:
    """Attention of every token, region by region, so that no `N × N` scores exist where there are several.

    The keys may come from several such rows of queries, those of the devices that each have a part of every region.
    """
    starts = np.cumsum((0, *regions)).tolist()
    outputs = []
    for number, (start, stop) in enumerate(pairwise(starts)):
        own = slice(start, stop)
        seen = partial(_with_prefix, length=q.shape[1], own=own, prefix=slice(0, regions[0] if number else 0))
        mask = visible(Marks(*(mark[:, own] for mark in queries)), Marks(*map(seen, keys)))
        outputs.append(attend(q[:, own], seen(k), seen(v), mask))
    return jnp.concatenate(outputs, axis=1)


def _with_prefix(x: Array, length: int, own: slice, prefix: slice) -> Array:
    x = x.reshape(x.shape[0], -1, length, *x.shape[2:])
    both = [part.reshape(part.shape[0], -1, *part.shape[3:]) for part in (x[:, :, prefix], x[:, :, own])]
    return jnp.concatenate(both, axis=1)
