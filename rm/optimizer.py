"""The usual optimizer, composed of optax's parts; any other optax transformation does as well."""

from typing import Literal

import jax
import optax
from jaxtyping import Array

from .model import RewardModel

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_schedule(
    kind: Schedule, *, peak: float, steps: int, end: float = 0.0, warmup_steps: int = 0
) -> optax.Schedule:
    """Learning rate of update `0 … steps - 1`: linear warm-up from 0 to `peak`, then down to `end`.

    **Arguments:** `kind`, the way down: `linear`, `cosine` (half a period) or `constant` (none); `warmup_steps`, the
    updates before `peak` is reached.

    >>> rate = learning_rate_schedule("linear", peak=1.0, steps=4)
    >>> [float(rate(step)) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    down = max(1, steps - warmup_steps)
    after = {
        "linear": lambda: optax.linear_schedule(peak, end, down),
        "cosine": lambda: optax.cosine_decay_schedule(peak, down, alpha=end / peak),
        "constant": lambda: optax.constant_schedule(peak),
    }[kind]()
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def adamw(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, max_grad_norm: float | None = 1.0
) -> optax.GradientTransformation:
    """AdamW(0.9, 0.999, 1e-8) after clipping by global norm, TRL's defaults; norms and biases do not decay.

    **Source:** Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.
    """
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return optax.chain(clip, optax.adamw(learning_rate, weight_decay=weight_decay, mask=decay_mask))


def decay_mask(model: RewardModel) -> RewardModel:
    """Where weight decay applies: matrices, but neither norms nor biases."""

    def decays(path: tuple, _: Array) -> bool:
        name = jax.tree_util.keystr(path)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, model)
