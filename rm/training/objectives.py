"""Objectives: functions of a model and a batch that return the loss and the rewards of every comparison."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ..model.batch import PreferenceBatch
from ..model.compute import Compute
from ..model.llama import rewards
from .losses import centering_penalty, pairwise_loss

Losses = Float[Array, "R S"]
Rewards = Float[Array, "R S K"]

# (loss, rewards) or (loss, rewards, {name: values [R, S]}): the update masks, sums and divides
Objective = Callable[[Any, PreferenceBatch], tuple[Losses, Rewards] | tuple[Losses, Rewards, Mapping[str, Losses]]]

# metric names that updates and log lines already use
TAKEN = {"loss", "grad_norm", "skipped", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "std_reward"}
TAKEN |= {"step", "epoch", "learning_rate", "rows", "pairs", "tokens", "num_tokens"}
TAKEN |= {"pairs_per_second", "tokens_per_second"}


@cache  # equal arguments give the same function, so that JAX compiles once
def pairwise_objective(center_rewards_coefficient: float = 0.0, compute: Compute = Compute()) -> Objective:
    """The Bradley–Terry loss with the centering penalty: `-log σ(r₁ - r₂ - margin) + c · (r₁ + r₂)²`.

    **Arguments:** `center_rewards_coefficient`, the `c` of the formula; `compute`, options of the forward pass.

    >>> pairwise_objective(0.01) is pairwise_objective(0.01)
    True

    **Source:** `pairwise_loss` and `centering_penalty`.
    """

    def objective(model: Any, batch: PreferenceBatch) -> tuple[Losses, Rewards]:
        r = rewards(model, batch, compute)
        loss = pairwise_loss(r[..., 0], r[..., 1], batch.margin)
        return loss + center_rewards_coefficient * centering_penalty(r[..., 0], r[..., 1]), r

    return objective


def with_frozen(objective: Objective, frozen: Any) -> Objective:
    """An objective of the part of a model that trains: `objective(combine(trained, frozen), batch)`.

    The frozen arrays are leaves of the result, so that `jit_update` passes them to the compiled update, and gradients
    and the optimizer's state exist for `trained` alone. In `jax.jit(partial(update, …))` they would be constants.

    **Arguments:** `frozen`, the other part of `equinox.partition(model, rm.trainable(model))`.

    >>> import equinox as eqx, jax.numpy as jnp
    >>> trained, frozen = eqx.partition({"base": jnp.ones(2), "head": jnp.zeros(2)}, {"base": False, "head": True})
    >>> objective = with_frozen(lambda model, batch: model["base"] + model["head"] + batch, frozen)
    >>> objective(trained, 1.0)
    Array([2., 2.], dtype=float32)
    """
    return jax.tree_util.Partial(_WithFrozen(objective), frozen)


@dataclasses.dataclass(frozen=True)
class _WithFrozen:
    """The objective of a trained part; equal for equal objectives, so that JAX compiles once."""

    objective: Objective

    def __call__(self, frozen: Any, trained: Any, batch: PreferenceBatch) -> Any:
        return self.objective(eqx.combine(trained, frozen), batch)


def check_objective(
    returned: tuple[Losses, Rewards] | tuple[Losses, Rewards, Mapping[str, Losses]], batch: PreferenceBatch
) -> tuple[Losses, Rewards, Mapping[str, Losses]]:
    """Checks the return value of an objective and returns its loss, rewards and metrics.

    **Raises:** `TypeError` if the loss or a metric does not have the shape of the slots; `ValueError` if the name of a
    metric is already used by every update.
    """
    if not isinstance(returned, tuple) or len(returned) not in (2, 3):
        shape = getattr(returned, "shape", None)
        found = f"{returned!r:.100}" if shape is None else f"an array of shape {shape}"
        raise TypeError(f"the objective must return (loss, rewards) or (loss, rewards, metrics), found {found}")
    loss, rewards, *rest = returned
    metrics = rest[0] if rest else {}
    taken = sorted(metrics.keys() & TAKEN)
    if taken:
        raise ValueError(f"the objective's own metric {taken[0]!r} is a name that every update has; rename it")
    for name, values in {"loss": loss, **metrics}.items():
        if values.shape != batch.index.shape:
            what = f"a {name}" if name == "loss" else f"a metric {name!r}"
            raise TypeError(f"the objective must return {what} of shape {batch.index.shape}, found {values.shape}")
    return loss, rewards, metrics
