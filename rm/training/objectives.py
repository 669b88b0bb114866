"""Objectives: the loss of every comparison of a batch, and the rewards that it was computed from."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jaxtyping import Array, Float

from ..model.batch import PreferenceBatch
from ..model.compute import Compute
from ..model.llama import rewards
from .losses import centering_penalty, pairwise_loss

Losses = Float[Array, "R S"]
Rewards = Float[Array, "R S K"]

# (loss, rewards) or (loss, rewards, {name: values [R, S]}): the update masks, sums and divides
Objective = Callable[[Any, PreferenceBatch], tuple[Losses, Rewards] | tuple[Losses, Rewards, Mapping[str, Losses]]]

# names of what every update and every line of a log has
TAKEN = {"loss", "grad_norm", "skipped", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "std_reward"}
TAKEN |= {"step", "epoch", "learning_rate", "rows", "pairs", "tokens", "num_tokens"}
TAKEN |= {"pairs_per_second", "tokens_per_second"}


@cache  # equal arguments give one function, for which JAX compiles once
def pairwise_objective(center_rewards_coefficient: float = 0.0, compute: Compute = Compute()) -> Objective:
    """The Bradley–Terry loss with the centering penalty: `-log σ(r₁ - r₂ - margin) + c · (r₁ + r₂)²`.

    **Arguments:** `center_rewards_coefficient`, `c`; `compute`, how rewards are computed.

    >>> pairwise_objective(0.01) is pairwise_objective(0.01)
    True

    **Source:** `pairwise_loss` and `centering_penalty`.
    """

    def objective(model: Any, batch: PreferenceBatch) -> tuple[Losses, Rewards]:
        r = rewards(model, batch, compute)
        loss = pairwise_loss(r[..., 0], r[..., 1], batch.margin)
        return loss + center_rewards_coefficient * centering_penalty(r[..., 0], r[..., 1]), r

    return objective


def check_objective(
    found: tuple[Losses, Rewards] | tuple[Losses, Rewards, Mapping[str, Losses]], batch: PreferenceBatch
) -> tuple[Losses, Rewards, Mapping[str, Losses]]:
    """The loss, the rewards and the metrics that an objective has returned.

    **Raises:** `TypeError` where the loss or a metric does not have the shape of the slots; `ValueError` where a metric
    has the name of one that every update has.
    """
    loss, rewards, *rest = found
    own = rest[0] if rest else {}
    taken = sorted(own.keys() & TAKEN)
    if taken:
        raise ValueError(f"the objective's own metric {taken[0]!r} is a name that every update has; rename it")
    for name, values in {"loss": loss, **own}.items():
        if values.shape != batch.index.shape:
            what = f"a {name}" if name == "loss" else f"a metric {name!r}"
            raise TypeError(f"the objective must return {what} of shape {batch.index.shape}, found {values.shape}")
    return loss, rewards, own
