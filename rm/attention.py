"""Attention with shared prefixes; this lowering runs everywhere and is the one others are compared with.

A query sees a key when both belong to the same segment, the key does not come later in the row, and the key is of the
prefix or of the query's own part.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .layers import precision
from .shapes import checked


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
    k: Float[Array, "R N G E"],
    v: Float[Array, "R N G E"],
    segments: Int[Array, "R N"],
    parts: Int[Array, "R N"],
    regions: tuple[int, ...],
) -> Float[Array, "R N G Q E"]:
    """Attention of every token, region by region, so that no `N × N` scores exist where there are several."""
    index = jnp.arange(segments.shape[1])[None]
    starts = np.cumsum((0, *regions)).tolist()
    outputs = []
    for number, (start, stop) in enumerate(pairwise(starts)):
        own = slice(start, stop)
        keys = partial(_with_prefix, own=own, prefix=slice(0, regions[0] if number else 0))
        visible = segments[:, own, None] == keys(segments)[:, None]
        visible &= index[:, own, None] >= keys(index)[:, None]
        visible &= (keys(parts)[:, None] == 0) | (parts[:, own, None] == keys(parts)[:, None])
        outputs.append(attend(q[:, own], keys(k), keys(v), visible))
    return jnp.concatenate(outputs, axis=1)


def _with_prefix(x: Array, own: slice, prefix: slice) -> Array:
    return jnp.concatenate([x[:, prefix], x[:, own]], axis=1)


@checked
def reward_attention(
    q: Float[Array, "R M G Q E"],
    k: Float[Array, "R N G E"],
    v: Float[Array, "R N G E"],
    ends: Int[Array, "R M"],
    segments: Int[Array, "R N"],
    parts: Int[Array, "R N"],
) -> Float[Array, "R M G Q E"]:
    """Attention of the tokens at `ends` alone, the only ones whose last-block output a reward needs."""
    index = jnp.arange(segments.shape[1], dtype=ends.dtype)[None, None]
    visible = jnp.take_along_axis(segments, ends, axis=1)[..., None] == segments[:, None]
    visible &= ends[..., None] >= index
    visible &= (parts[:, None] == 0) | (jnp.take_along_axis(parts, ends, axis=1)[..., None] == parts[:, None])
    return attend(q, k, v, visible)
