"""Rotary position embeddings: the frequencies of every type, and the rotation."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ..devices.platform import platform
from ..shapes import checked
from .config import LlamaConfig
from .layers import along_last
from .rope import Rope


@checked
def inverse_frequencies(config: LlamaConfig, lengths: Int[Array, "R N"]) -> Float[Array, "#R #N half"]:
    """Rotary frequencies `θ^(-2i/E)`, with the scaling of the configuration (see `Rope`).

    Only `dynamic` (NTK scaling) and `longrope` use `lengths`, the lengths of the whole sequences in tokens.
    """
    rope, size = config.rope, config.head_dim
    exponents = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    theta = jnp.full((1, 1, 1), rope.theta, jnp.float32)
    if rope.type == "dynamic":
        limit = config.max_position_embeddings
        stretched = rope.factor * jnp.maximum(lengths, limit).astype(jnp.float32) / limit - (rope.factor - 1)
        theta = theta * stretched[..., None] ** (size / (size - 2))
    frequencies = 1.0 / theta ** along_last(exponents, theta.ndim)
    if rope.type == "linear":
        return frequencies / rope.factor
    if rope.type == "longrope":
        longer = (lengths > rope.original_max_position_embeddings)[..., None]
        long, short = (jnp.array(each, jnp.float32).reshape(1, 1, -1) for each in (rope.long_factor, rope.short_factor))
        return frequencies / jnp.where(longer, long, short)
    if rope.type == "llama3":
        turns = float(rope.original_max_position_embeddings) * frequencies / (2 * jnp.pi)
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = jnp.clip(keep, 0.0, 1.0)
        return frequencies * (keep + (1 - keep) / rope.factor)
    if rope.type == "yarn":
        keep = along_last(jnp.asarray(_yarn_ramp(rope, size), jnp.float32), theta.ndim)
        return frequencies * (keep + (1 - keep) / rope.factor)
    return frequencies


def _yarn_ramp(rope: Rope, size: int) -> Float[np.ndarray, "half"]:
    """The share in which `yarn` keeps each frequency: 1 above `beta_fast` turns, 0 below `beta_slow`, a ramp between.

    A frequency `θ^(-2i/E)` makes `n` turns within the original length `T` at the index `i = E ln(T / 2πn) / (2 ln θ)`.
    """
    length = rope.original_max_position_embeddings
    turns = rope.beta_fast, rope.beta_slow
    low, high = (size * math.log(length / (2 * math.pi * n)) / (2 * math.log(rope.theta)) for n in turns)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 * (low == high)  # as in transformers
    return 1 - np.clip((np.arange(size // 2) - low) / (high - low), 0, 1)


@checked
def rotary_table(
    config: LlamaConfig, positions: Int[Array, "R N"], lengths: Int[Array, "R N"] | None = None
) -> tuple[Float[Array, "R N half"], Float[Array, "R N half"]]:
    """The cosine and sine of every token's rotation, times `Rope.amplitude`, float32.

    Only the types `dynamic` and `longrope` need `lengths`.
    """
    frequencies = inverse_frequencies(config, positions if lengths is None else lengths)
    angles, amplitude = positions[..., None].astype(jnp.float32) * frequencies, config.rope.amplitude
    if platform() != "cpu":
        return amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)
    # XLA keeps the result of a loop; without the loop it recomputes cosines and sines in every layer
    cos, sin = lax.map(lambda i: amplitude * lax.cond(i == 0, jnp.cos, jnp.sin, angles), jnp.arange(2))
    return cos, sin


@checked
def rotate(
    x: Float[Array, "R N *heads E"], table: tuple[Float[Array, "R N half"], Float[Array, "R N half"]]
) -> Float[Array, "R N *heads E"]:
    """Rotates the halves `(i, i + E/2)`, Hugging Face's order (Su et al. 2021, arXiv 2104.09864, eq. 34)."""
    cos, sin = (jnp.expand_dims(part, tuple(range(2, x.ndim - 1))) for part in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
