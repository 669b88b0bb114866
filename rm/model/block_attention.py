"""Block attention, for CPUs: computes only the pairs of blocks in which some query sees some key.

The scores of a block of queries and a block of keys stay in a core's cache, and the cost follows the lengths of the
sequences, not of the row (Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4, looping over visible blocks only).
Keys come before queries in the scores, so that the loops transpose nothing and vector operations run along queries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..shapes import checked
from .attention import Marks, sees
from .derivatives import first_only
from .layers import precision

_BLOCK = 64
_HIDDEN = -1e30  # added to the scores of keys that a query does not see
_LEAST = -1e20  # below any visible score, and so far above hidden scores that their weights are 0


class Blocks(NamedTuple):
    """The visible pairs of blocks, found once for all layers: `B` blocks of `C` tokens, `n` in a row."""

    marks: Int[Array, "3 B C"]  # segment, part and position of every query
    key_marks: Int[Array, "3 J C"]  # and of every key
    keys: Int[Array, "B n"]  # for each block of queries, the row's blocks of keys, the visible ones first
    counts: Int[Array, "B"]  # number of visible blocks of keys
    window: Int[Array, ""] | None  # the sliding window


@checked
def find_blocks(queries: Marks, keys: Marks, window: int | None = None) -> Blocks:
    """Finds the visible pairs of blocks."""
    marks, key_marks = (jnp.stack([_cut(mark) for mark in tokens]) for tokens in (queries, keys))
    R, B = queries.segments.shape[0], marks.shape[1]
    of_row = jnp.arange(key_marks.shape[1]).reshape(R, 1, -1)
    row = jnp.broadcast_to(of_row, (R, B // R, of_row.shape[-1])).reshape(B, -1)  # the blocks of each block's row

    width = None if window is None else jnp.asarray(window, marks.dtype)

    def sees(i: Array) -> Bool[Array, "n"]:
        # a loop bounds the memory
        return jax.lax.map(lambda j: _visible(marks[:, i], key_marks[:, j], width).any(), row[i])

    needed = jax.lax.map(sees, jnp.arange(B))
    order = jnp.argsort(~needed, axis=1, stable=True)
    return Blocks(marks, key_marks, jnp.take_along_axis(row, order, axis=1), needed.sum(1), width)


@checked
def block_attention(
    q: Float[Array, "R N G Q E"], k: Float[Array, "R J G E"], v: Float[Array, "R J G E"], blocks: Blocks
) -> Float[Array, "R N G Q E"]:
    """The result of `shared_prefix_attention`, with zeros at padding."""
    R, N, G, Q, E = q.shape
    queries, keys, values = (jnp.moveaxis(_cut(x), 1, -2) for x in (q, k, v))  # [B, G, (Q,) C, E]
    out: Array = _attention(queries.reshape(queries.shape[0], G, Q * _BLOCK, E), keys, values, blocks)
    return jnp.moveaxis(out.reshape(queries.shape), -2, 1).reshape(R, -1, G, Q, E)[:, :N]


def _cut(x: Array) -> Array:
    """Cuts `[R, N, …]` into blocks `[B, C, …]`, padded with zeros."""
    pad = -x.shape[1] % _BLOCK
    x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(-1, _BLOCK, *x.shape[2:])


def _visible(queries: Int[Array, "3 *B M"], keys: Int[Array, "3 *B C"], window: Array | None) -> Bool[Array, "*B C M"]:
    """The mask of the keys that each query sees, from the marks of both; padding sees nothing."""
    queries = queries[..., None, :]
    return sees(queries, keys[..., None], window) & (queries[0] > 0)


def _scores(q: Float[Array, "G M E"], k: Float[Array, "G C E"], visible: Bool[Array, "C M"]) -> Float[Array, "G C M"]:
    return _dot(k, q, (1, 1)) * q.shape[-1] ** -0.5 + jnp.where(visible, 0.0, _HIDDEN)[None]


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "G _ _"]:
    """The float32 product of two matrices for every key/value head, contracted over one axis of each."""
    dims = ((contract[0] + 1,), (contract[1] + 1,)), ((0,), (0,))
    return jax.lax.dot_general(a, b, dims, precision=precision(a.dtype), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attention(
    q: Float[Array, "B G M E"], k: Float[Array, "J G C E"], v: Float[Array, "J G C E"], blocks: Blocks
) -> Float[Array, "B G M E"]:
    """Attention of blocks of queries; a block of `M = Q·C` holds all `Q` heads that share keys."""
    return _forward(q, k, v, blocks)[0]


def _forward(q: Array, k: Array, v: Array, blocks: Blocks):
    marks, transposed = jnp.tile(blocks.marks, q.shape[2] // _BLOCK), v.mT
    _, G, M, E = q.shape

    def queries(i: Array) -> tuple[Array, Array]:
        def keys(t: Array, carry):
            peak, total, out = carry
            j = blocks.keys[i, t]
            scores = _scores(q[i], k[j], _visible(marks[:, i], blocks.key_marks[:, j], blocks.window))
            new_peak = jnp.maximum(peak, scores.max(1))
            weights, shrink = jnp.exp(scores - new_peak[:, None]), jnp.exp(peak - new_peak)
            out = out * shrink[:, None] + _dot(transposed[j], weights.astype(q.dtype), (1, 0))
            return new_peak, total * shrink + weights.sum(1), out

        start = jnp.full((G, M), _LEAST), jnp.zeros((G, M)), jnp.zeros((G, E, M))
        peak, total, out = jax.lax.fori_loop(0, blocks.counts[i], keys, start)
        total = jnp.maximum(total, 1e-30)
        return out / total[:, None], peak + jnp.log(total)

    out, log_total = jax.lax.map(queries, jnp.arange(q.shape[0]))
    out = out.mT.astype(q.dtype)
    return out, (q, k, v, blocks, out, log_total)


def _backward(saved, d_out: Array):
    q, k, v, blocks, out, log_total = saved
    marks, transposed = jnp.tile(blocks.marks, q.shape[2] // _BLOCK), k.mT
    product = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).reshape(-1, q.shape[-1])
    # on CPUs XLA sums matrices many times faster than arrays of more axes, or than a sum fused with the product
    inner = jax.lax.optimization_barrier(jax.lax.optimization_barrier(product).sum(-1)).reshape(q.shape[:-1])

    def queries(carry, i: Array):
        def keys(t: Array, carry):
            d_q, d_k, d_v = carry
            j = blocks.keys[i, t]
            scores = _scores(q[i], k[j], _visible(marks[:, i], blocks.key_marks[:, j], blocks.window))
            weights = jnp.exp(scores - log_total[i, :, None])
            d_scores = weights * (_dot(v[j], d_out[i], (1, 1)) - inner[i, :, None]) * q.shape[-1] ** -0.5
            weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
            d_k = d_k.at[j].add(_dot(d_scores, q[i], (1, 0)))
            d_v = d_v.at[j].add(_dot(weights, d_out[i], (1, 0)))
            return d_q + _dot(transposed[j], d_scores, (1, 0)), d_k, d_v

        d_q, *d_kv = jax.lax.fori_loop(0, blocks.counts[i], keys, (jnp.zeros_like(q[i].mT, jnp.float32), *carry))
        return tuple(d_kv), d_q

    (d_k, d_v), d_q = jax.lax.scan(queries, (jnp.zeros(k.shape), jnp.zeros(v.shape)), jnp.arange(q.shape[0]))
    return *(g.astype(q.dtype) for g in (d_q.mT, d_k, d_v)), None


_attention.defvjp(_forward, first_only(_backward))
