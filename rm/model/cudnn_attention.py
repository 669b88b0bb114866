"""The same attention for GPUs, through cuDNN's fused kernels, forward and backward.

cuDNN hides keys by causality and by a number of real tokens for each row, and knows no segments. That is enough where
a row holds one segment whose parts fill their regions from the start: every part sees itself causally, and the
responses see the whole prefix. What a response finds in these two sets of keys is merged by their log-sum-exp `L`:

    out = Σ_c exp(L_c - L) out_c,    L = log Σ_c exp(L_c)

The backward pass of one set needs but `L` and `out` of all keys, since the weights are `P = exp(S - L)` and their
gradient is `dS = P (dP - Σ d_out · out)` (Dao 2023, "FlashAttention-2", arXiv 2307.08691, algorithm 2). So a kernel's
own backward, given these in place of its own, is exact. Differentiating the merge of its outputs is not: JAX drops the
gradient of `L_c`.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..shapes import checked
from .attention import Marks
from .cudnn_kernel import CUDNN, FAR, Kernel


@checked
def cudnn_attention(
    q: Float[Array, "R N G Q E"],
    k: Float[Array, "R N G E"],
    v: Float[Array, "R N G E"],
    queries: Marks,
    keys: Marks,
    regions: tuple[int, ...],
    *,
    kernel: Kernel | None = None,
) -> Float[Array, "R N G Q E"]:
    """What `shared_prefix_attention` computes for rows of several regions and one segment; padding gets zeros.

    Scores, softmax and merge are float32; a response's two outputs are rounded to the type of `q` before the merge.

    **Arguments:** `keys`, the same as `queries`; `kernel`, `REFERENCE` in place of cuDNN.

    **Raises:** `ConfigError` where this JAX has another interface to cuDNN.
    """
    return _attention(q, k, v, queries.segments > 0, regions, CUDNN if kernel is None else kernel)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q: Array, k: Array, v: Array, real: Array, regions: tuple[int, ...], kernel: Kernel) -> Array:
    return _forward(q, k, v, real, regions, kernel)[0]


def _forward(q: Array, k: Array, v: Array, real: Array, regions: tuple[int, ...], kernel: Kernel):
    def attend(each: View) -> tuple[Array, Array]:
        lengths = each.lengths(real)
        out, lse = kernel.forward(q[:, each.rows], k[:, each.columns], v[:, each.columns], *lengths, each.causal)
        sees = _sees(out, *lengths)
        return jnp.where(_spread(sees, out), out, 0), jnp.where(sees[:, None, None], lse, -FAR)

    own, seen = _views(regions)
    outs, lses = zip(*map(attend, own), strict=True)
    out, lse = jnp.concatenate(outs, axis=1), jnp.concatenate(lses, axis=-1)
    for each in seen:
        more, more_lse = attend(each)
        out, lse = _merge(out, lse, _put(more, each.rows, q), _put(more_lse, each.rows, q, axis=-1, fill=-FAR))
    out = jnp.where(_spread(real, out), out, 0).astype(q.dtype)
    lse = jnp.where(real[:, None, None], lse, FAR)  # so that in the backward pass padding weighs nothing
    return out, (q, k, v, real, out, lse)


def _backward(regions: tuple[int, ...], kernel: Kernel, saved: tuple[Array, ...], d_out: Array):
    q, k, v, real, out, lse = saved

    def gradients(each: View) -> list[Array]:
        lengths, rows = each.lengths(real), each.rows
        inputs = q[:, rows], k[:, each.columns], v[:, each.columns], out[:, rows], lse[..., rows], d_out[:, rows]
        found = kernel.backward(*inputs, *lengths, each.causal)
        queries, keys = _sees(found[0], *lengths), _sees(found[1], *lengths[::-1])
        pairs = zip((queries, keys, keys), found, strict=True)
        return [jnp.where(_spread(places, d), d, 0).astype(jnp.float32) for places, d in pairs]

    own, seen = _views(regions)
    d_qkv = [jnp.concatenate(parts, axis=1) for parts in zip(*map(gradients, own), strict=True)]
    for each in seen:
        added = zip(d_qkv, gradients(each), (each.rows, each.columns, each.columns), strict=True)
        d_qkv = [d + _put(more, place, q) for d, more, place in added]
    return *(d.astype(q.dtype) for d in d_qkv), None


_attention.defvjp(_forward, _backward)


class View(NamedTuple):
    """Queries of a row and the keys that they see."""

    rows: slice
    columns: slice
    causal: bool

    def lengths(self, real: Bool[Array, "R N"]) -> tuple[Int[Array, " R"], Int[Array, " R"]]:
        """Of each row, the queries and the keys that count."""
        keys = real[:, self.columns].sum(axis=1, dtype=jnp.int32)
        # responses to the prefix are several parts with padding between them, which is computed and thrown away
        return keys if self.causal else jnp.full_like(keys, self.rows.stop - self.rows.start), keys


def _views(regions: tuple[int, ...]) -> tuple[list[View], list[View]]:
    """Each region on itself, and all responses at once on the prefix."""
    starts = np.cumsum((0, *regions)).tolist()
    parts = [slice(start, stop) for start, stop in pairwise(starts) if start < stop]
    on_prefix = View(slice(regions[0], starts[-1]), slice(0, regions[0]), False)
    return [View(part, part, True) for part in parts], [on_prefix] if 0 < regions[0] < starts[-1] else []


def _sees(x: Array, lengths: Int[Array, " R"], others: Int[Array, " R"]) -> Bool[Array, "R M"]:
    """Which places of `x` a kernel computes: the first ones, where there is anything on the other side."""
    return (jnp.arange(x.shape[1])[None] < lengths[:, None]) & (others > 0)[:, None]


def _spread(real: Bool[Array, "R M"], x: Array) -> Array:
    return real[(..., *(None,) * (x.ndim - 2))]


def _put(x: Array, place: slice, row: Array, *, axis: int = 1, fill: float = 0.0) -> Array:
    """`x` at its place among the tokens of a whole row."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = place.start, row.shape[1] - place.stop
    return jnp.pad(x, widths, constant_values=fill)


def _merge(out: Array, lse: Array, more: Array, more_lse: Array) -> tuple[Array, Array]:
    """What is seen in two sets of keys together."""
    both = jnp.logaddexp(lse, more_lse)
    shares = [jnp.moveaxis(jnp.exp(one - both), -1, 1)[..., None] for one in (lse, more_lse)]
    return out.astype(jnp.float32) * shares[0] + more.astype(jnp.float32) * shares[1], both
