"""Losses on reward arrays; they return one value per comparison, and the caller takes the mean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from ..shapes import checked


@checked
def pairwise_loss(
    chosen: Float[Array | ndarray, "*B"],
    rejected: Float[Array | ndarray, "*B"],
    margin: Float[Array | ndarray, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """Bradley–Terry negative log-likelihood, `-log σ(chosen - rejected - margin)`.

    **Arguments:** `chosen`, `rejected`, the rewards of the two responses of each comparison; `margin`, the target
    reward difference, 0 if `None`. All have one shape: `(B,)` against `(B, 1)` raises instead of broadcasting.

    **Returns:** one float32 value per comparison, `log 2` where the rewards differ by exactly the margin.

    **Raises:** `jaxtyping.TypeCheckError` if the shapes differ.

    >>> loss = pairwise_loss(jnp.array([1.0, 3.0]), jnp.array([1.0, -2.0]))
    >>> [round(value, 4) for value in loss.tolist()]
    [0.6931, 0.0067]

    **Source:** Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the margin: Touvron et al. 2023, arXiv 2307.09288, eq. 2.
    """
    difference = jnp.asarray(chosen, jnp.float32) - jnp.asarray(rejected, jnp.float32)
    if margin is not None:
        difference = difference - jnp.asarray(margin, jnp.float32)
    return jax.nn.softplus(-difference)  # stable where log(1 + exp(-x)) overflows


@checked
def centering_penalty(
    chosen: Float[Array | ndarray, "*B"], rejected: Float[Array | ndarray, "*B"]
) -> Float[Array, "*B"]:
    """The penalty `(chosen + rejected)²`, which pulls the mean reward of a comparison towards zero.

    The Bradley–Terry loss does not change if all rewards shift; this term, with a small coefficient (0.01 to 0.1),
    fixes the shift. Arguments, result and error are those of `pairwise_loss`.

    >>> centering_penalty(jnp.array([1.0, 3.0]), jnp.array([1.0, -2.0])).tolist()
    [4.0, 1.0]

    **Source:** Eisenstein et al. 2023, arXiv 2312.09244, eq. 2.
    """
    return (jnp.asarray(chosen, jnp.float32) + jnp.asarray(rejected, jnp.float32)) ** 2


@checked
def ratings_loss(
    predicted: Float[Array | ndarray, "*B L"], ratings: Float[Array | ndarray, "*B L"]
) -> Float[Array, "*B"]:
    """The mean squared error over the attributes that are rated, `Σₗ mₗ (pₗ - yₗ)² / Σₗ mₗ` with `mₗ = 0` for NaN.

    **Arguments:** `predicted`, the labels that `rm.ratings` gives; `ratings`, the targets, NaN where there is none.

    **Returns:** one float32 value per response, 0 where nothing is rated.

    **Raises:** `jaxtyping.TypeCheckError` if the shapes differ.

    >>> ratings_loss(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.0, jnp.nan, 5.0]])).tolist()
    [2.5]

    **Source:** Wang et al. 2024, arXiv 2406.08673 (HelpSteer2's attributes).
    """
    targets = jnp.asarray(ratings, jnp.float32)
    given = ~jnp.isnan(targets)
    error = jnp.where(given, jnp.asarray(predicted, jnp.float32) - jnp.where(given, targets, 0.0), 0.0)
    return jnp.sum(error**2, axis=-1) / jnp.maximum(jnp.sum(given, axis=-1), 1).astype(jnp.float32)
