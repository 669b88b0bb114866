"""Skipped updates: the state stays, and the schedules go on."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool
from optax.schedules import InjectStatefulHyperparamsState

_KNOWN = (optax.ScaleByScheduleState, InjectStatefulHyperparamsState, optax.MultiStepsState)


def choose(good: Bool[Array, ""] | bool, new: Any, old: Any, *, chosen: tuple[type, ...] = ()) -> Any:
    """The new state of an optimizer if the update is good, else the old one with the update counted in its schedules.

    So a learning rate follows the updates of the run, skipped or not, while moments and their counts stay. A schedule
    inside of `optax.MultiSteps` follows the steps taken there.

    **Arguments:** `chosen`, types of nodes that have chosen for themselves.

    >>> new, old = (optax.ScaleByScheduleState(jnp.int32(count)) for count in (5, 4))
    >>> kept = choose(False, (new, jnp.float32(0.7)), (old, jnp.float32(0.5)))
    >>> int(kept[0].count), float(kept[1])
    (5, 0.5)
    """

    def plain(new: Any, old: Any) -> Any:
        return new if isinstance(new, chosen) else jnp.where(good, new, old)

    def pick(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new._replace(count=jnp.where(good, new.count, old.count + 1))
        if isinstance(new, InjectStatefulHyperparamsState):
            inner = choose(good, new.inner_state, old.inner_state, chosen=chosen)
            return new._replace(inner_state=inner, hyperparams=jax.tree.map(plain, new.hyperparams, old.hyperparams))
        return jax.tree.map(plain, new, old, is_leaf=lambda node: isinstance(node, chosen))

    return jax.tree.map(pick, new, old, is_leaf=lambda node: isinstance(node, (*chosen, *_KNOWN)))
