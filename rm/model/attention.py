"""Attention with shared prefixes: the reference implementation, which runs on every platform.

A query sees a key if both belong to the same segment, the key belongs to the prefix or to the query's own part, and it
does not come later in the sequence; with a sliding window, nor `window` or more tokens earlier.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..devices.platform import on_gpu
from ..shapes import checked
from .layers import precision


class Marks(NamedTuple):
    """The segment, part and position of tokens, which determine the keys that a query sees."""

    segments: Int[Array, "R N"]
    parts: Int[Array, "R N"]
    positions: Int[Array, "R N"]  # in the sequence: a response continues from the end of its prefix


QUERIES_AT_ONCE = 256

Marked = Sequence[Array] | Array  # segments, parts and positions of any shape


@checked
def visible(queries: Marks, keys: Marks, window: int | None = None) -> Bool[Array, "R M J"]:
    """The mask of the keys that each query sees."""
    return sees([mark[..., None] for mark in queries], [mark[:, None] for mark in keys], window)


def sees(query: Marked, key: Marked, window: Array | int | None) -> Bool[Array, "..."]:
    """The visibility rule, from the segments, parts and positions of queries and keys, which broadcast."""
    (segment, part, position), (k_segment, k_part, k_position) = query, key
    seen = (segment == k_segment) & ((k_part == 0) | (part == k_part)) & (position >= k_position)
    return seen if window is None else seen & (position - k_position < window)


@checked
def attend(
    q: Float[Array, "R M G Q E"], k: Float[Array, "R J G E"], v: Float[Array, "R J G E"], visible: Bool[Array, "R M J"]
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
    window: int | None = None,
) -> Float[Array, "R N G Q E"]:
    """Attention of every token, region by region, so that several regions avoid an `N × N` score matrix.

    On a mesh with `context`, the queries are one device's part of every region, and the keys are all devices' parts.
    """
    starts = np.cumsum((0, *regions)).tolist()
    outputs = []
    for number, (start, stop) in enumerate(pairwise(starts)):
        region = slice(start, stop)
        select = partial(_with_prefix, length=q.shape[1], region=region, prefix=slice(0, regions[0] if number else 0))
        marks = Marks(*(mark[:, region] for mark in queries))
        outputs.append(_attend_region(q[:, region], select(k), select(v), marks, Marks(*map(select, keys)), window))
    return jnp.concatenate(outputs, axis=1)


def _attend_region(q: Array, k: Array, v: Array, queries: Marks, keys: Marks, window: int | None) -> Array:
    """Attention of the queries of a region; on GPUs of 256 at a time, so that scores take no more than these need."""

    @jax.checkpoint
    def some(chunk: tuple[Array, Marks]) -> Array:
        q, queries = chunk
        return attend(q, k, v, visible(queries, keys, window))

    length, size = q.shape[1], QUERIES_AT_ONCE
    if not on_gpu() or length <= size:
        return attend(q, k, v, visible(queries, keys, window))

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -length % size), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    out = jax.lax.map(some, jax.tree.map(cut, (q, queries)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def _with_prefix(x: Array, length: int, region: slice, prefix: slice) -> Array:
    x = x.reshape(x.shape[0], -1, length, *x.shape[2:])
    parts = [part.reshape(part.shape[0], -1, *part.shape[3:]) for part in (x[:, :, prefix], x[:, :, region])]
    return jnp.concatenate(parts, axis=1)
