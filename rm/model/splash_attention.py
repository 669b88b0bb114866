"""The same attention for TPUs, through JAX's Pallas kernel `splash_attention`, forward and backward.

The kernel computes block by block (Dao et al. 2022, arXiv 2205.14135). It hides keys in two ways: a static mask, whose
empty blocks it skips, and segment ids, which must be equal. That is enough where a row has several regions and each
holds one part of every segment: the mask then stands for the parts, and the ids for the segments. It is not enough
where several parts of a segment lie in one region: they all see the prefix, so they would need its id, all the same
one, and would see each other; `lowering.refuses` knows.
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
    """What `shared_prefix_attention` computes for rows of several regions; padding gets values that mean nothing.

    Scores and softmax are float32; `q` is scaled before the scores, which rounds it once more where √E is no power of
    two. On a TPU, products of float32 are as precise as `jax_default_matmul_precision` says.

    **Arguments:** `interpret`, run the kernel without a TPU, slowly.
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
    """Which keys a query sees by the regions alone: those before it in its own region and in the first, and itself.

    >>> region_mask((1, 1, 2)).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """
    region = np.repeat(np.arange(len(regions)), regions)
    return np.tri(len(region), dtype=bool) & ((region == 0)[None] | (region[:, None] == region[None]))


def _block_size(length: int) -> int:
    """Tokens of a block: as many as waste no more than an eighth on padding, since every block takes time to start.

    >>> [_block_size(length) for length in (96, 520, 736, 1000, 1664)]
    [128, 128, 384, 512, 256]
    """
    return next((size for size in (512, 384, 256) if -length % size <= length // 8), 128)


def _pad(x: Array, count: int) -> Array:
    """`[R, N, …]` with so many more tokens, which are of segment 0 like all padding."""
    return jnp.pad(x, ((0, 0), (0, count), *((0, 0),) * (x.ndim - 2)))


def _kernel(mask: Bool[np.ndarray, "N N"], block: int, interpret: bool):
    """The kernel for heads that share keys and values, from `q [Q, N, E]`, `k` and `v [N, E]` and segment ids."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sizes = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return splash.make_splash_mqa_single_device(
        mask[None],  # of one head, which stands for all
        block_sizes=splash.BlockSizes(**dict.fromkeys(sizes, block)),
        interpret=interpret,
    )
