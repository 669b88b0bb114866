"""The same attention in blocks, for CPUs: only pairs of blocks with something to see are computed.

Scores never exist beyond one block of queries against one of keys, and the cost follows the packed sequences rather
than the length of the row (Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4, looping over visible blocks alone).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .layers import precision
from .shapes import checked

_BLOCK = 64
_NEVER = -1e30  # a score that no sum notices, yet finite


class Blocks(NamedTuple):
    """Which blocks of a row see which: computed once for a batch, used by every layer. `n` blocks of `C` tokens."""

    segments: Int[Array, "R n C"]
    keys: Int[Array, "R n n"]  # of each query block, the key blocks it sees, first in their order
    key_counts: Int[Array, "R n"]
    queries: Int[Array, "R n n"]  # of each key block, the query blocks that see it
    query_counts: Int[Array, "R n"]


@checked
def find_blocks(segments: Int[Array, "R N"], regions: tuple[int, ...]) -> Blocks:
    """The visible pairs of blocks."""
    segments = _cut(segments)
    ids = jnp.arange(segments.shape[1])
    needed = jax.vmap(
        lambda i: jax.vmap(lambda j: _visible(segments, regions, i, j).any((1, 2)), out_axes=1)(ids), out_axes=1
    )(ids)

    def lists(needed: Bool[Array, "R n n"]) -> tuple[Array, Array]:
        return jnp.argsort(~needed, axis=2, stable=True), needed.sum(2)

    return Blocks(segments, *lists(needed), *lists(needed.swapaxes(1, 2)))


@checked
def block_attention(
    q: Float[Array, "R N G Q E"],
    k: Float[Array, "R N G E"],
    v: Float[Array, "R N G E"],
    blocks: Blocks,
    regions: tuple[int, ...],
) -> Float[Array, "R N G Q E"]:
    """What `shared_prefix_attention` computes; padding gets zeros."""
    queries, keys, values = (jnp.moveaxis(_cut(x), 2, -2) for x in (q, k, v))  # [R, n, G, (Q,) C, E]
    R, n, G, Q, C, E = queries.shape
    out: Array = _attention(queries.reshape(R, n, G, Q * C, E), keys, values, blocks, regions)
    out = jnp.moveaxis(out.reshape(R, n, G, Q, C, E), -2, 2)
    return out.reshape(R, n * C, G, Q, E)[:, : q.shape[1]]


def _cut(x: Array) -> Array:
    """`[R, N, …]` as blocks `[R, n, C, …]`, padded with zeros."""
    pad = -x.shape[1] % _BLOCK
    x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(x.shape[0], -1, _BLOCK, *x.shape[2:])


def _visible(segments: Array, regions: tuple[int, ...], i: Array, j: Array) -> Bool[Array, "R C C"]:
    """Which keys of block `j[r]` each query of block `i[r]` sees."""
    rows = jnp.arange(segments.shape[0])
    inside = jnp.arange(_BLOCK)
    length = segments.shape[1] * _BLOCK
    region = np.repeat(np.arange(len(regions) + 1), (*regions, length - sum(regions)))
    i, j = (jnp.broadcast_to(x, rows.shape) for x in (i, j))
    query, key = (x[:, None] * _BLOCK + inside[None] for x in (i, j))
    query_segment, key_segment = segments[rows, i][..., None], segments[rows, j][:, None]
    query_region, key_region = jnp.asarray(region)[query][..., None], jnp.asarray(region)[key][:, None]
    same = (query_segment == key_segment) & (query_segment > 0) & (query[..., None] >= key[:, None])
    return same & ((key_region == 0) | (key_region == query_region))


def _scores(q: Array, k: Array, visible: Bool[Array, "R C C"]) -> tuple[Array, Array]:
    """Scaled scores `[R, G, Q·C, C]` of a block pair and where they count."""
    visible = jnp.tile(visible, (1, q.shape[2] // _BLOCK, 1))[:, None]
    return _dot("RGME,RGJE->RGMJ", q, k) * q.shape[-1] ** -0.5, visible


def _dot(spec: str, a: Array, b: Array) -> Float[Array, "..."]:
    return jnp.einsum(spec, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: Array, k: Array, v: Array, blocks: Blocks, regions: tuple[int, ...]) -> Array:
    return _forward(q, k, v, blocks, regions)[0]


def _forward(q: Array, k: Array, v: Array, blocks: Blocks, regions: tuple[int, ...]):
    rows = jnp.arange(q.shape[0])

    def query_block(i: Array) -> tuple[Array, Array]:
        def key_block(t: Array, carry):
            peak, total, out = carry
            j = blocks.keys[:, i, t]
            visible = _visible(blocks.segments, regions, i, j) & (t < blocks.key_counts[:, i])[:, None, None]
            scores, visible = _scores(q[:, i], k[rows, j], visible)
            new_peak = jnp.maximum(peak, jnp.max(scores, -1, where=visible, initial=_NEVER))
            weights = jnp.where(visible, jnp.exp(scores - new_peak[..., None]), 0.0)
            shrink = jnp.exp(peak - new_peak)
            out = out * shrink[..., None] + _dot("RGMJ,RGJE->RGME", weights.astype(q.dtype), v[rows, j])
            return new_peak, total * shrink + weights.sum(-1), out

        shape = q[:, i].shape
        start = (jnp.full(shape[:-1], _NEVER), jnp.zeros(shape[:-1]), jnp.zeros(shape))
        peak, total, out = jax.lax.fori_loop(0, blocks.key_counts[:, i].max(), key_block, start)
        total = jnp.maximum(total, 1e-30)
        return (out / total[..., None]).astype(q.dtype), peak + jnp.log(total)

    out, log_total = jax.lax.map(query_block, jnp.arange(q.shape[1]))
    out, log_total = jnp.moveaxis(out, 0, 1), jnp.moveaxis(log_total, 0, 1)
    return out, (q, k, v, blocks, out, log_total)


def _backward(regions: tuple[int, ...], saved, d_out: Array):
    q, k, v, blocks, out, log_total = saved
    rows, scale = jnp.arange(q.shape[0]), q.shape[-1] ** -0.5
    product = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).reshape(-1, q.shape[-1])
    inner = jnp.sum(product, -1).reshape(q.shape[:-1])  # XLA's sums over matrices are many times faster on CPUs

    def pair(i: Array, j: Array, counts: Array) -> tuple[Array, Array]:
        """Attention weights of a block pair and the gradient of its scores."""
        visible = _visible(blocks.segments, regions, i, j) & counts[:, None, None]
        scores, visible = _scores(q[rows, i], k[rows, j], visible)
        weights = jnp.where(visible, jnp.exp(scores - log_total[rows, i][..., None]), 0.0)
        d_weights = _dot("RGME,RGJE->RGMJ", d_out[rows, i], v[rows, j])
        d_scores = weights * (d_weights - inner[rows, i][..., None]) * scale
        return weights.astype(q.dtype), d_scores.astype(q.dtype)

    def query_block(i: Array) -> Array:
        def key_block(t: Array, d_q: Array) -> Array:
            j = blocks.keys[:, i, t]
            _, d_scores = pair(jnp.broadcast_to(i, rows.shape), j, t < blocks.key_counts[:, i])
            return d_q + _dot("RGMJ,RGJE->RGME", d_scores, k[rows, j])

        return jax.lax.fori_loop(0, blocks.key_counts[:, i].max(), key_block, jnp.zeros(q[:, i].shape))

    def key_block(j: Array) -> tuple[Array, Array]:
        def query_block(t: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            i = blocks.queries[:, j, t]
            weights, d_scores = pair(i, jnp.broadcast_to(j, rows.shape), t < blocks.query_counts[:, j])
            d_k, d_v = carry
            return (
                d_k + _dot("RGMJ,RGME->RGJE", d_scores, q[rows, i]),
                d_v + _dot("RGMJ,RGME->RGJE", weights, d_out[rows, i]),
            )

        start = jnp.zeros(k[:, j].shape), jnp.zeros(v[:, j].shape)
        return jax.lax.fori_loop(0, blocks.query_counts[:, j].max(), query_block, start)

    ids = jnp.arange(q.shape[1])
    gradients = (jax.lax.map(query_block, ids), *jax.lax.map(key_block, ids))
    return *(jnp.moveaxis(g, 0, 1).astype(q.dtype) for g in gradients), None


_attention.defvjp(_forward, _backward)
