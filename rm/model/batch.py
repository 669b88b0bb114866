"""`PreferenceBatch`: what the data path hands to the model."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from ..shapes import checked


@checked
class PreferenceBatch(eqx.Module):
    """Comparisons packed into rows.

    A row holds several segments, each with an id of its own: a common prompt, the prefix, which lies there once, and up
    to K responses to it, after it in the row. A token sees what comes before it in its own part of its segment, and the
    prefix, so every reward equals that of `prefix + response` run alone. A slot is a comparison; comparisons that have
    a response in common may read it at the same place.

    The row is cut into static regions. Either there are K + 1, `[prefix | response 1 | … | response K]`, and each holds
    that part of every segment: this is what kernels for accelerators take. Or there is one, and the segments lie in it
    one after the other, each whole: this packs best, and is for attention in blocks, which is that of CPUs.

    | field       | shape, type      | meaning                                                                     |
    |-------------|------------------|-----------------------------------------------------------------------------|
    | `tokens`    | `[R, N]` int     | token ids                                                                   |
    | `segments`  | `[R, N]` int     | the segment that a token belongs to; 0 is padding                           |
    | `parts`     | `[R, N]` int     | the part of its segment that a token belongs to: 0 prefix, 1 … K responses  |
    | `positions` | `[R, N]` int     | rotary position; a response goes on from the end of its own prefix          |
    | `ends`      | `[R, S, K]` int  | index in the row of the token at which a response's reward is read          |
    | `index`     | `[R, S]` int     | which comparison of the data set a slot holds; -1 where it is empty         |
    | `margin`    | `[R, S]` float   | the reward difference asked for, 0 without margins                          |
    | `regions`   | static           | lengths of the regions, prefix first, or of the only one; they add up to N  |
    """

    tokens: Int[Array | ndarray, "R N"]
    segments: Int[Array | ndarray, "R N"]
    parts: Int[Array | ndarray, "R N"]
    positions: Int[Array | ndarray, "R N"]
    ends: Int[Array | ndarray, "R S K"]
    index: Int[Array | ndarray, "R S"]
    margin: Float[Array | ndarray, "R S"]
    regions: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if sum(self.regions) != self.tokens.shape[-1]:
            raise ValueError(f"regions {self.regions} must add up to the row length {self.tokens.shape[-1]}")

    @property
    def mask(self) -> Bool[Array, "R S"]:
        """The slots that hold a comparison."""
        return jnp.asarray(self.index) >= 0
