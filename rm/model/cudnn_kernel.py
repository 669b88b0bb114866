"""cuDNN's kernels as functions of a set of queries and a set of keys, and a reference for them in plain JAX."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import ConfigError
from .layers import precision

FAR = 1e30  # stands for an infinite log-sum-exp and avoids the NaN of `inf - inf`


class Kernel(NamedTuple):
    """Attention to a set of keys; its outputs at padding, and for queries that see no key, are meaningless.

    `lengths` are the numbers of real queries and keys in each row, `lse` is the float32 log-sum-exp of the scores:

        forward(q, k, v, *lengths, causal) -> out, lse
        backward(q, k, v, out, lse, d_out, *lengths, causal) -> d_q, d_k, d_v
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array]]


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
    return jnp.where(seen[:, None, None], scores, -FAR)


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
    # cuDNN does not define lengths of 0; the result for one padding token is discarded
    arguments |= {"q_seqlen": jnp.maximum(q_lengths, 1), "kv_seqlen": jnp.maximum(kv_lengths, 1)}
    arguments |= {"seed": 0, "dropout_rate": 0.0, "variadic_args": (False, False), "sliding_window_length": None}
    return _private(direction, causal, arguments | dict.fromkeys(absent, jnp.zeros(0, q.dtype)))


def _private(direction: str, causal: bool, arguments: dict[str, Any]) -> list[Array]:
    """Calls cuDNN through JAX's private function, which does not partition over devices: `shard_map` has done that.

    JAX's public function does not accept a log-sum-exp for its backward pass, nor return one in float32.
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
REFERENCE = Kernel(_reference_forward, _reference_backward)  # plain JAX, computed in float32
