"""The same attention in blocks, for CPUs: only pairs of blocks with something to see are computed.

Scores never exist beyond a few blocks of queries against one of keys each, and the cost follows the packed sequences
rather than the length of the row (Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4, looping over visible blocks
alone). Blocks of queries that see about as many blocks of keys go together, in batched products.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .layers import precision, transposed
from .shapes import checked

_BLOCK = 64
_TOGETHER = 4  # blocks of queries
_HIDDEN = -1e30  # added to the scores of what a query does not see
_LEAST = -1e20  # below any score, and so far above hidden ones that they count nothing


Marks = tuple[Int[Array, "R n C"], Int[Array, "R n C"], Int[Array, "R n C"]]  # segment, part, place in the row


class Blocks(NamedTuple):
    """Which blocks of a row see which: computed once for a batch, used by every layer. `n` blocks of `C` tokens."""

    marks: Marks
    keys: Int[Array, "R n n"]  # of each query block, the key blocks it sees, first in their order
    counts: Int[Array, "R n"]  # how many these are
    order: Int[Array, "R n"]  # the query blocks by that number


@checked
def find_blocks(segments: Int[Array, "R N"], parts: Int[Array, "R N"]) -> Blocks:
    """The visible pairs of blocks."""
    segments, parts = _cut(segments), _cut(parts)
    R, n, C = segments.shape
    marks = segments, parts, jnp.broadcast_to(jnp.arange(n * C).reshape(1, n, C), segments.shape)
    ids = jnp.broadcast_to(jnp.arange(n), (R, n))
    # a block of queries at a time, for n × n × C × C marks may be many
    needed = jax.lax.map(lambda i: _visible(marks, jnp.broadcast_to(i, (R, n)), ids).any((2, 3)), jnp.arange(n))
    needed = jnp.moveaxis(needed, 0, 1)
    counts = needed.sum(2)
    return Blocks(
        marks, jnp.argsort(~needed, axis=2, stable=True), counts, jnp.argsort(counts, axis=1, descending=True)
    )


@checked
def block_attention(
    q: Float[Array, "R N G Q E"], k: Float[Array, "R N G E"], v: Float[Array, "R N G E"], blocks: Blocks
) -> Float[Array, "R N G Q E"]:
    """What `shared_prefix_attention` computes; padding gets zeros."""
    queries, keys, values = (jnp.moveaxis(_cut(x), 2, -2) for x in (q, k, v))  # [R, n, G, (Q,) C, E]
    R, n, G, Q, C, E = queries.shape
    scaled = (queries.astype(jnp.float32) * E**-0.5).astype(q.dtype).reshape(R, n, G, Q * C, E)
    out: Array = _attention(scaled, keys, values, blocks)
    out = jnp.moveaxis(out.reshape(R, n, G, Q, C, E), -2, 2)
    return out.reshape(R, n * C, G, Q, E)[:, : q.shape[1]]


def _cut(x: Array) -> Array:
    """`[R, N, …]` as blocks `[R, n, C, …]`, as many as go together or a multiple, padded with zeros."""
    pad = -x.shape[1] % (_BLOCK * _TOGETHER)
    x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(x.shape[0], -1, _BLOCK, *x.shape[2:])


def _visible(
    marks: Marks, i: Int[Array, "R A"], j: Int[Array, "R A"], *, keys_first: bool = False
) -> Bool[Array, "R A C C"]:
    """Which keys of block `j` each query of block `i` sees; queries by keys, or the other way round."""
    rows, (query, key) = jnp.arange(len(i))[:, None], (-2, -1) if keys_first else (-1, -2)
    q_segment, q_part, q_place = (jnp.expand_dims(mark[rows, i], query) for mark in marks)
    k_segment, k_part, k_place = (jnp.expand_dims(mark[rows, j], key) for mark in marks)
    same = (q_segment == k_segment) & (q_segment > 0) & ((k_part == 0) | (k_part == q_part))
    return same & (q_place >= k_place)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "R A G _ _"]:
    """Batched products over one axis of each, counted from the last batch axis; float32."""
    dims = ((contract[0] + 3,), (contract[1] + 3,)), ((0, 1, 2), (0, 1, 2))
    return jax.lax.dot_general(a, b, dims, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _over_keys(d_scores: Float[Array, "R A G C M"], k: Float[Array, "R A G C E"]) -> Float[Array, "R A G M E"]:
    if k.dtype != jnp.bfloat16:
        return _dot(d_scores, k, (0, 0))
    return _dot(transposed(d_scores), k, (1, 0))


def _groups(x: Int[Array, "R n"]) -> Int[Array, "groups R A"]:
    return x.reshape(len(x), -1, _TOGETHER).swapaxes(0, 1)


@jax.custom_vjp
def _attention(q: Array, k: Array, v: Array, blocks: Blocks) -> Array:
    return _forward(q, k, v, blocks)[0]


def _forward(q: Array, k: Array, v: Array, blocks: Blocks):
    rows = jnp.arange(len(q))[:, None]

    def queries(i: Int[Array, "R A"]) -> tuple[Array, Array]:
        q_i, counts = q[rows, i], blocks.counts[rows, i]

        def keys(t: Array, carry):
            peak, total, out = carry
            j = blocks.keys[rows, i, t]
            hidden = jnp.where(_visible(blocks.marks, i, j) & (t < counts)[..., None, None], 0.0, _HIDDEN)
            scores = _dot(q_i, k[rows, j], (1, 1))
            split = (*scores.shape[:3], -1, *hidden.shape[2:])  # queries of a key/value head apart: they see the same
            scores = (scores.reshape(split) + hidden[:, :, None, None]).reshape(scores.shape)
            new_peak = jnp.maximum(peak, scores.max(-1))
            weights = jnp.exp(scores - new_peak[..., None])
            shrink = jnp.exp(peak - new_peak)
            out = out * shrink[..., None] + _dot(weights.astype(q.dtype), v[rows, j], (1, 0))
            return new_peak, total * shrink + weights.sum(-1), out

        start = (jnp.full(q_i.shape[:-1], _LEAST), jnp.zeros(q_i.shape[:-1]), jnp.zeros(q_i.shape))
        peak, total, out = jax.lax.fori_loop(0, counts.max(), keys, start)
        total = jnp.maximum(total, 1e-30)
        return (out / total[..., None]).astype(q.dtype), peak + jnp.log(total)

    out, log_total = jax.lax.map(queries, _groups(blocks.order))
    place = jnp.argsort(blocks.order, axis=1)
    out, log_total = (jnp.moveaxis(x, 0, 1).reshape(*q.shape[:2], *x.shape[3:])[rows, place] for x in (out, log_total))
    return out, (q, k, v, blocks, out, log_total)


def _backward(saved, d_out: Array):
    q, k, v, blocks, out, log_total = saved
    rows = jnp.arange(len(q))[:, None]
    product = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).reshape(-1, q.shape[-1])
    # XLA's sums over matrices are many times faster on CPUs than over more axes, or with the product fused in
    inner = jax.lax.optimization_barrier(jax.lax.optimization_barrier(product).sum(-1)).reshape(q.shape[:-1])

    def queries(carry, i: Int[Array, "R A"]):
        q_i, d_out_i, counts = q[rows, i], d_out[rows, i], blocks.counts[rows, i]
        log_total_i, inner_i = log_total[rows, i][..., None, :], inner[rows, i][..., None, :]

        def keys(t: Array, carry):
            d_q, d_k, d_v = carry
            j = blocks.keys[rows, i, t]
            visible = _visible(blocks.marks, i, j, keys_first=True) & (t < counts)[..., None, None]
            hidden = jnp.where(visible, 0.0, _HIDDEN)[:, :, None, :, None]
            # keys by queries, so that two of the three products take their factors as they lie
            scores = _dot(k[rows, j], q_i, (1, 1)) - log_total_i
            split = (*scores.shape[:4], -1, _BLOCK)
            weights = jnp.exp(scores.reshape(split) + hidden).reshape(scores.shape)
            d_scores = weights * (_dot(v[rows, j], d_out_i, (1, 1)) - inner_i)
            weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
            d_q = d_q + _over_keys(d_scores, k[rows, j])
            d_k = _add_at(d_k, j, _dot(d_scores, q_i, (1, 0)))
            d_v = _add_at(d_v, j, _dot(weights, d_out_i, (1, 0)))
            return d_q, d_k, d_v

        d_q, *d_kv = jax.lax.fori_loop(0, counts.max(), keys, (jnp.zeros(q_i.shape), *carry))
        return tuple(d_kv), d_q

    start = jnp.zeros(k.shape), jnp.zeros(v.shape)
    (d_k, d_v), d_q = jax.lax.scan(queries, start, _groups(blocks.order))
    d_q = jnp.moveaxis(d_q, 0, 1).reshape(q.shape)[rows, jnp.argsort(blocks.order, axis=1)]
    return *(g.astype(q.dtype) for g in (d_q, d_k, d_v)), None


def _add_at(x: Float[Array, "R n G C E"], j: Int[Array, "R A"], new: Float[Array, "R A G C E"]) -> Array:
    return x.at[jnp.arange(len(x))[:, None], j].add(new)


_attention.defvjp(_forward, _backward)
