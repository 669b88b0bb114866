"""Shared-prefix attention for TPUs with JAX's Pallas kernel `splash_attention`, forward and backward.

The kernel computes block by block (Dao et al. 2022, arXiv 2205.14135). It masks keys in two ways: by a static mask,
whose empty blocks it skips, and by segment ids, which must be equal. That is enough if a row has several regions and
each holds one part of every segment: the mask then separates the parts, and the ids separate the segments. It is not
enough if one region holds several parts of a segment: they would need the id of the prefix, which they all see, and
with equal ids they would see each other. `attention_choice.refuses` excludes this case.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..shapes import checked
from .attention import Marks


@checked
def splash_attention(
    q: Float[Array, "R N G Q E"],
    k: Float[Array, "R N G E"],
    v: Float[Array, "R N G E"],
    queries: Marks,
    keys: Marks,
    regions: tuple[int, ...],
    *,
    interpret: bool = False,
) -> Float[Array, "R N G Q E"]:
    """The result of `shared_prefix_attention` for rows of several regions, with meaningless values at padding.

    Scores and softmax are float32; `q` is scaled before the scores, which rounds it once more unless √E is a power of
    two. On a TPU, float32 products have the precision that `jax_default_matmul_precision` sets.

    **Arguments:** `interpret`, whether to run the kernel without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds  # slow to import

    N, E = q.shape[1], q.shape[-1]
    block = _block_size(N)
    pad = -N % block
    q = (q.astype(jnp.float32) * E**-0.5).astype(q.dtype)
    q, k, v = (jnp.moveaxis(_pad(x, pad), 1, -2) for x in (q, k, v))  # [R, G, (Q,) N, E]
    ids = SegmentIds(_pad(queries.segments, pad), _pad(keys.segments, pad))
    kernel = _kernel(region_mask((*regions, pad)), block, interpret)
    out: Array = jax.vmap(jax.vmap(kernel, in_axes=(0, 0, 0, None)))(q, k, v, ids)  # pyright: ignore
    return jnp.moveaxis(out, -2, 1)[:, :N]


@checked
def region_mask(regions: tuple[int, ...]) -> Bool[np.ndarray, "M J"]:
    """The mask that regions alone impose: a query sees itself and the earlier keys of its own and the first region.

    >>> region_mask((1, 1, 2)).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """
    region = np.repeat(np.arange(len(regions)), regions)
    return np.tri(len(region), dtype=bool) & ((region == 0)[None] | (region[:, None] == region[None]))


def _block_size(length: int) -> int:
    """The largest block size that adds at most an eighth of padding, else 128; every block takes time to start.

    >>> [_block_size(length) for length in (96, 520, 736, 1000, 1664)]
    [128, 128, 384, 512, 256]
    """
    return next((size for size in (512, 384, 256) if -length % size <= length // 8), 128)


def _pad(x: Array, count: int) -> Array:
    """Appends `count` zeros to the tokens of `[R, N, …]`; their segment is 0, as for all padding."""
    return jnp.pad(x, ((0, 0), (0, count), *((0, 0),) * (x.ndim - 2)))


def _kernel(mask: Bool[np.ndarray, "N N"], block: int, interpret: bool):
    """The kernel for heads that share keys and values: a function of `q [Q, N, E]`, `k`, `v [N, E]` and segment ids."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sizes = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return splash.make_splash_mqa_single_device(
        mask[None],  # one mask for all heads
        block_sizes=splash.BlockSizes(**dict.fromkeys(sizes, block)),
        interpret=interpret,
    )
