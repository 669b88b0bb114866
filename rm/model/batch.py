"""`PreferenceBatch`, the input of the model."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from ..shapes import checked


@checked
class PreferenceBatch(eqx.Module):
    """Comparisons packed into rows.

    A row holds several segments. A segment consists of a shared prefix (the prompt), which is stored once, and up to K
    responses, which come later in the row. A token attends to the prefix and to the earlier tokens of its own part, so
    every reward equals that of `prefix + response` run alone. A slot is a comparison; comparisons that share a response
    may read its reward at the same place.

    The row is divided into static regions. With K + 1 regions, `[prefix | response 1 | … | response K]`, each region
    holds that part of every segment; kernels for accelerators need this layout. With one region, whole segments follow
    each other; this layout packs best and needs block attention, the implementation for CPUs.

    | field       | shape, type      | meaning                                                                     |
    |-------------|------------------|-----------------------------------------------------------------------------|
    | `tokens`    | `[R, N]` int     | token ids                                                                   |
    | `segments`  | `[R, N]` int     | the segment of a token; 0 is padding                                        |
    | `parts`     | `[R, N]` int     | the part of a token in its segment: 0 is the prefix, 1 … K are responses    |
    | `positions` | `[R, N]` int     | rotary position; a response continues from the end of its prefix            |
    | `ends`      | `[R, S, K]` int  | index in the row of the token where a response's reward is read             |
    | `index`     | `[R, S]` int     | index in the data set of the comparison in a slot; -1 if the slot is empty  |
    | `margin`    | `[R, S]` float   | the target reward difference, 0 without margins                             |
    | `regions`   | static           | lengths of the regions, prefix first, or of the only one; they sum to N     |
    | `longest`   | static           | the most tokens of a prefix and a response together; `None` if not known    |
    """

    tokens: Int[Array | ndarray, "R N"]
    segments: Int[Array | ndarray, "R N"]
    parts: Int[Array | ndarray, "R N"]
    positions: Int[Array | ndarray, "R N"]
    ends: Int[Array | ndarray, "R S K"]
    index: Int[Array | ndarray, "R S"]
    margin: Float[Array | ndarray, "R S"]
    regions: tuple[int, ...] = eqx.field(static=True)
    longest: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if sum(self.regions) != self.tokens.shape[-1]:
            raise ValueError(f"regions {self.regions} must add up to the row length {self.tokens.shape[-1]}")

    @property
    def mask(self) -> Bool[Array, "R S"]:
        """The slots that hold a comparison."""
        return jnp.asarray(self.index) >= 0
