"""Metrics on reward arrays."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from ..shapes import checked


@checked
def preference_metrics(
    chosen: Float[Array | ndarray, "*B"],
    rejected: Float[Array | ndarray, "*B"],
    mask: Bool[Array | ndarray, "*B"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Accuracy, margin and reward range of comparisons, defined as in TRL.

    **Arguments:** `chosen`, `rejected`, rewards; `mask`, the comparisons that count, all if `None`.

    **Returns:** float32 scalars: `accuracy`, the share with `chosen > rejected` (a tie is wrong); `margin`, the mean of
    `chosen - rejected`; `min_reward`, `mean_reward`, `max_reward` over the rewards of both sides. All are NaN if no
    comparison counts.

    **Raises:** `jaxtyping.TypeCheckError` if the shapes differ.

    >>> metrics = preference_metrics(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.5]))
    >>> {name: float(value) for name, value in metrics.items()}
    {'accuracy': 0.5, 'margin': 0.25, 'min_reward': 0.0, 'mean_reward': 1.375, 'max_reward': 2.5}
    """
    chosen, rejected = jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32)
    mask = jnp.ones(chosen.shape, bool) if mask is None else jnp.asarray(mask)
    both, nothing = jnp.stack([chosen, rejected]), jnp.where(mask.any(), 0.0, jnp.nan)
    return {
        "accuracy": jnp.mean(chosen > rejected, where=mask, dtype=jnp.float32),
        "margin": jnp.mean(chosen - rejected, where=mask),
        "min_reward": jnp.min(both, where=mask, initial=jnp.inf) + nothing,
        "mean_reward": jnp.mean(both, where=mask),
        "max_reward": jnp.max(both, where=mask, initial=-jnp.inf) + nothing,
    }
