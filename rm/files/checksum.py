"""Checksums of arrays, the same wherever their parts lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from ..shapes import checked

_SEEDS = (0x9E3779B9, 0x7F4A7C15)
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # 8 bytes are two words


def checksums(tree: Any) -> dict[str, str]:
    """A checksum of every leaf by its name, computed where the leaves lie; keys are taken as their data.

    >>> checksums({"a": jnp.zeros(2), "b": jnp.array([0.0, 1.0])})["a"]
    '1b3522397937e62f'
    """
    leaves = named_leaves(tree)
    found = jax.device_get(_of_all(list(leaves.values())))
    return {name: "".join(f"{half:08x}" for half in np.asarray(two)) for name, two in zip(leaves, found, strict=True)}


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names, such as `model.norm`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@jax.jit
def _of_all(leaves: list[Array]) -> list[Array]:
    return [checksum(jax.device_put(key_data(leaf), jax.memory.Space.Device)) for leaf in leaves]


def key_data(x: Any) -> Any:
    """The words of typed PRNG keys; other arrays as they are."""
    return jax.random.key_data(x) if is_key(x) else x


def is_key(x: Any) -> bool:
    """True for typed PRNG keys and their shapes."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@checked
def checksum(x: Array) -> UInt32[Array, "2"]:
    """Two sums of `mix(bits(x_i) ^ mix(i + seed))` modulo 2^32, one for each seed.

    `mix` maps 32 bits one to one, so that a single element which changes always changes both sums, and more go
    unnoticed once in 2^64. Sums do not ask for an order: the parts of a sharded array are summed where they are.

    **Source:** `mix` is the finalizer of MurmurHash3 (Appleby 2011).
    """
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool else x
    bits = lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for dim, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, bits.shape, dim)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(seed))), dtype=jnp.uint32) for seed in _SEEDS])


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
