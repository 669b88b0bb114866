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

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .attention import Marks
from .collectives import shards
from .errors import ConfigError
from .layers import precision
from .shapes import checked

_FAR = 1e30  # an infinite log-sum-exp, without the NaN of `inf - inf`


class Kernel(NamedTuple):
    """Attention to a set of keys; what it gives where there is no token, or nothing to see, means nothing.

    `lengths` are the real queries and keys of each row, `lse` is the log-sum-exp of a query's scores, float32:

        forward(q, k, v, *lengths, causal) -> out, lse
        backward(q, k, v, out, lse, d_out, *lengths, causal) -> d_q, d_k, d_v
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array]]


def cudnn_takes(regions: tuple[int, ...], dtype, slots: int, head_size: int) -> bool:
    """Whether `cudnn_attention` is exact for rows of these regions on a GPU; `shared_prefix_attention` always is.

    Not for rows with room for several comparisons, which may have several segments; nor for a single region, which
    holds whole segments; nor for rows that are cut into parts along `context`, where there are more keys than queries.

    >>> cudnn_takes((64, 32, 32), jnp.bfloat16, 1, 128), cudnn_takes((0, 128), jnp.float16, 1, 64)
    (True, True)
    >>> cudnn_takes((64, 32, 32), jnp.bfloat16, 2, 128), cudnn_takes((128,), jnp.bfloat16, 1, 128)
    (False, False)
    >>> cudnn_takes((64, 32, 32), jnp.float32, 1, 128), cudnn_takes((64, 32, 32), jnp.bfloat16, 1, 100)
    (False, False)
    """
    fits = head_size % 8 == 0 and head_size <= 128  # 256 on some GPUs only
    return slots == 1 and len(regions) > 1 and shards("context") == 1 and dtype in (jnp.bfloat16, jnp.float16) and fits


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
    """What `shared_prefix_attention` computes for rows that `cudnn_takes`; padding gets zeros.

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
        return jnp.where(_spread(sees, out), out, 0), jnp.where(sees[:, None, None], lse, -_FAR)

    own, seen = _views(regions)
    outs, lses = zip(*map(attend, own), strict=True)
    out, lse = jnp.concatenate(outs, axis=1), jnp.concatenate(lses, axis=-1)
    for each in seen:
        more, more_lse = attend(each)
        out, lse = _merge(out, lse, _put(more, each.rows, q), _put(more_lse, each.rows, q, axis=-1, fill=-_FAR))
    out = jnp.where(_spread(real, out), out, 0).astype(q.dtype)
    lse = jnp.where(real[:, None, None], lse, _FAR)  # so that in the backward pass padding weighs nothing
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


def _reference_forward(q: Array, k: Array, v: Array, q_lengths: Array, kv_lengths: Array, causal: bool):
    scores = _scores(q, k, kv_lengths, causal)
    lse = jax.nn.logsumexp(scores, axis=-1)
    return _product("RGQMJ,RJGE->RMGQE", jnp.exp(scores - lse[..., None]), v).astype(q.dtype), lse


def _reference_backward(q, k, v, out, lse, d_out, q_lengths, kv_lengths, causal: bool):
    weights = jnp.exp(_scores(q, k, kv_lengths, causal) - lse[..., None])
    sums = _product("RMGQE,RMGQE->RGQM", d_out, out)
    d_scores = weights * (_product("RMGQE,RJGE->RGQMJ", d_out, v) - sums[..., None]) * q.shape[-1] ** -0.5
    d_q, d_k = _product("RGQMJ,RJGE->RMGQE", d_scores, k), _product("RGQMJ,RMGQE->RJGE", d_scores, q)
    return d_q, d_k, _product("RGQMJ,RMGQE->RJGE", weights, d_out)


def _scores(q: Array, k: Array, kv_lengths: Array, causal: bool) -> Float[Array, "R G Q M J"]:
    scores = _product("RMGQE,RJGE->RGQMJ", q, k) * q.shape[-1] ** -0.5
    place, k_place = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None]
    seen = (k_place < kv_lengths[:, None])[:, None] & ((place >= k_place) | (not causal))[None]
    return jnp.where(seen[:, None, None], scores, -_FAR)


def _product(dimensions: str, x: Array, y: Array) -> Array:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(dimensions, x, y, precision=precision(jnp.float32))


def _cudnn_forward(q: Array, k: Array, v: Array, q_lengths: Array, kv_lengths: Array, causal: bool):
    out, lse = _cudnn("fwd", q, k, v, q_lengths, kv_lengths, causal, is_training=True)
    R, M, G, Q, _ = q.shape
    return out.reshape(q.shape), lse.reshape(R, G, Q, M)


def _cudnn_backward(q, k, v, out, lse, d_out, q_lengths, kv_lengths, causal: bool):
    R, M, G, Q, E = q.shape
    lse, out, d_out = lse.reshape(R, G * Q, M), out.reshape(R, M, G * Q, E), d_out.reshape(R, M, G * Q, E)
    more = {"activation": lse, "fwd_output": out, "grad_output": d_out}
    d_q, d_k, d_v = _cudnn("bwd", q, k, v, q_lengths, kv_lengths, causal, **more)
    return d_q.reshape(q.shape), d_k, d_v


def _cudnn(direction: str, q: Array, k: Array, v: Array, q_lengths: Array, kv_lengths: Array, causal: bool, **more):
    R, M, G, Q, E = q.shape
    absent = ("bias", "q_offsets", "kv_offsets", "page_table_k", "page_table_v")
    arguments = {"query": q.reshape(R, M, G * Q, E), "key": k, "value": v, "scale": E**-0.5, **more}
    # no length of 0, of which cuDNN promises nothing: what comes of one padding token is thrown away
    arguments |= {"q_seqlen": jnp.maximum(q_lengths, 1), "kv_seqlen": jnp.maximum(kv_lengths, 1)}
    arguments |= {"seed": 0, "dropout_rate": 0.0, "variadic_args": (False, False), "sliding_window_length": None}
    return _private(direction, causal, arguments | dict.fromkeys(absent, jnp.zeros(0, q.dtype)))


def _private(direction: str, causal: bool, arguments: dict[str, Any]) -> list[Array]:
    """JAX's private call of cuDNN, below its partitioning over devices, which `shard_map` has done.

    The public function takes no log-sum-exp for its backward pass, and gives none in float32.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        function = getattr(cudnn, f"_dot_product_attention_{direction}_impl")
        mask = cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING
        arguments |= {"mask_type": mask, "layout": cudnn.AttentionLayout.BTNH.value}
        signature, since_012 = inspect.signature(function), {"score_mod_args": (), "score_mod": None}
        arguments |= {name: value for name, value in since_012.items() if name in signature.parameters}
        signature.bind(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        versions = f"jax 0.10 to 0.12 are known, this is {jax.__version__}"
        raise ConfigError(f'cuDNN attention: {versions} ({error}); use attention="xla"') from error
    return function(**arguments)


CUDNN = Kernel(_cudnn_forward, _cudnn_backward)
REFERENCE = Kernel(_reference_forward, _reference_backward)  # in plain JAX, float32 within
