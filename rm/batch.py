"""`PreferenceBatch`: what the data path hands to the model."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from .shapes import checked


@checked
class PreferenceBatch(eqx.Module):
    """Comparisons packed into rows, in the region layout.

    A row of N tokens is cut into static regions `[prefix | response 1 | … | response K]`. It holds several segments,
    each with an id of its own: a common prompt, which lies once in the prefix region, and up to K responses to it, one
    in each response region. A response sees its own prefix and itself, so every reward equals that of
    `prefix + response` run alone. A slot is a comparison; comparisons that have a response in common may read it at the
    same place.

    | field       | shape, type      | meaning                                                                     |
    |-------------|------------------|-----------------------------------------------------------------------------|
    | `tokens`    | `[R, N]` int     | token ids                                                                   |
    | `segments`  | `[R, N]` int     | the segment that a token belongs to; 0 is padding                           |
    | `positions` | `[R, N]` int     | rotary position; a response goes on from the end of its own prefix          |
    | `ends`      | `[R, S, K]` int  | index in the row of the token at which a response's reward is read          |
    | `index`     | `[R, S]` int     | which comparison of the data set a slot holds; -1 where it is empty         |
    | `margin`    | `[R, S]` float   | the reward difference asked for, 0 without margins                          |
    | `regions`   | static           | lengths of the regions, prefix first; they add up to N                      |
    """

    tokens: Int[Array | ndarray, "R N"]
    segments: Int[Array | ndarray, "R N"]
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
