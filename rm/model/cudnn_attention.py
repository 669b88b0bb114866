"""Shared-prefix attention for GPUs with cuDNN's fused kernels, forward and backward.

cuDNN masks keys causally and by the number of real tokens in each row; it has no segments. That is enough if a row
holds one segment whose parts fill their regions from the start: every part attends to itself causally, and the
responses attend to the whole prefix. A response's outputs over these two sets of keys are merged by their log-sum-exp:

    out = Σ_c exp(L_c - L) out_c,    L = log Σ_c exp(L_c)

The backward pass of one set needs only `L` and `out` over all keys, since the weights are `P = exp(S - L)` and their
gradient is `dS = P (dP - Σ d_out · out)` (Dao 2023, "FlashAttention-2", arXiv 2307.08691, algorithm 2). So a kernel's
own backward pass is exact if it gets the merged `L` and `out`. Differentiating through the merge would not be exact:
JAX drops the gradient of `L_c`.
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
    """The result of `shared_prefix_attention` for rows of several regions and one segment, with zeros at padding.

    Scores, softmax and merge are float32; a response's two outputs are rounded to the type of `q` before the merge.

    **Arguments:** `keys`, the same as `queries`; `kernel`, for example `REFERENCE` instead of cuDNN.

    **Raises:** `ConfigError` if this version of JAX has another interface to cuDNN.
    """
    return _attention(q, k, v, queries.segments > 0, regions, CUDNN if kernel is None else kernel)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q: Array, k: Array, v: Array, real: Array, regions: tuple[int, ...], kernel: Kernel) -> Array:
    return _forward(q, k, v, real, regions, kernel)[0]


def _forward(q: Array, k: Array, v: Array, real: Array, regions: tuple[int, ...], kernel: Kernel):
    def attend(view: View) -> tuple[Array, Array]:
        lengths = view.lengths(real)
        out, lse = kernel.forward(q[:, view.rows], k[:, view.columns], v[:, view.columns], *lengths, view.causal)
        sees = _sees(out, *lengths)
        return jnp.where(_spread(sees, out), out, 0), jnp.where(sees[:, None, None], lse, -FAR)

    on_themselves, on_prefix = _views(regions)
    outs, lses = zip(*map(attend, on_themselves), strict=True)
    out, lse = jnp.concatenate(outs, axis=1), jnp.concatenate(lses, axis=-1)
    for view in on_prefix:
        more, more_lse = attend(view)
        out, lse = _merge(out, lse, _put(more, view.rows, q), _put(more_lse, view.rows, q, axis=-1, fill=-FAR))
    out = jnp.where(_spread(real, out), out, 0).astype(q.dtype)
    lse = jnp.where(real[:, None, None], lse, FAR)  # makes the weights of padding 0 in the backward pass
    return out, (q, k, v, real, out, lse)


def _backward(regions: tuple[int, ...], kernel: Kernel, saved: tuple[Array, ...], d_out: Array):
    q, k, v, real, out, lse = saved

    def gradients(view: View) -> list[Array]:
        lengths, rows = view.lengths(real), view.rows
        inputs = q[:, rows], k[:, view.columns], v[:, view.columns], out[:, rows], lse[..., rows], d_out[:, rows]
        d_inputs = kernel.backward(*inputs, *lengths, view.causal)
        queries, keys = _sees(d_inputs[0], *lengths), _sees(d_inputs[1], *lengths[::-1])
        pairs = zip((queries, keys, keys), d_inputs, strict=True)
        return [jnp.where(_spread(mask, d), d, 0).astype(jnp.float32) for mask, d in pairs]

    on_themselves, on_prefix = _views(regions)
    d_qkv = [jnp.concatenate(parts, axis=1) for parts in zip(*map(gradients, on_themselves), strict=True)]
    for view in on_prefix:
        added = zip(d_qkv, gradients(view), (view.rows, view.columns, view.columns), strict=True)
        d_qkv = [d + _put(more, place, q) for d, more, place in added]
    return *(d.astype(q.dtype) for d in d_qkv), None


_attention.defvjp(_forward, _backward)


class View(NamedTuple):
    """Queries of a row and the keys that they see."""

    rows: slice
    columns: slice
    causal: bool

    def lengths(self, real: Bool[Array, "R N"]) -> tuple[Int[Array, " R"], Int[Array, " R"]]:
        """The numbers of queries and of keys that a kernel computes in each row."""
        keys = real[:, self.columns].sum(axis=1, dtype=jnp.int32)
        # the responses have padding between them, which is computed and then discarded
        return keys if self.causal else jnp.full_like(keys, self.rows.stop - self.rows.start), keys


def _views(regions: tuple[int, ...]) -> tuple[list[View], list[View]]:
    """The views of each region on itself, and the view of all responses on the prefix."""
    starts = np.cumsum((0, *regions)).tolist()
    parts = [slice(start, stop) for start, stop in pairwise(starts) if start < stop]
    on_prefix = View(slice(regions[0], starts[-1]), slice(0, regions[0]), False)
    return [View(part, part, True) for part in parts], [on_prefix] if 0 < regions[0] < starts[-1] else []


def _sees(x: Array, lengths: Int[Array, " R"], others: Int[Array, " R"]) -> Bool[Array, "R M"]:
    """The mask of the tokens of `x` that a kernel computes: the first `lengths`, in rows with tokens on both sides."""
    return (jnp.arange(x.shape[1])[None] < lengths[:, None]) & (others > 0)[:, None]


def _spread(real: Bool[Array, "R M"], x: Array) -> Array:
    return real[(..., *(None,) * (x.ndim - 2))]


def _put(x: Array, place: slice, row: Array, *, axis: int = 1, fill: float = 0.0) -> Array:
    """Pads `x`, the tokens at `place`, to the length of a whole row."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = place.start, row.shape[1] - place.stop
    return jnp.pad(x, widths, constant_values=fill)


def _merge(out: Array, lse: Array, more: Array, more_lse: Array) -> tuple[Array, Array]:
    """Merges the outputs over two sets of keys."""
    total = jnp.logaddexp(lse, more_lse)
    shares = [jnp.moveaxis(jnp.exp(part - total), -1, 1)[..., None] for part in (lse, more_lse)]
    return out.astype(jnp.float32) * shares[0] + more.astype(jnp.float32) * shares[1], total
