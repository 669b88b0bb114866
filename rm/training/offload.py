"""An optimizer's state in the memory of the host, from where it visits the device leaf by leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array

from ..devices.platform import platform
from ..errors import ConfigError

HOST = "pinned_host"  # JAX's name for memory of the host that devices reach by themselves


class OnHost(NamedTuple):
    """The state of `keep_on_host`: the optimizer's own for every leaf of the parameters by itself."""

    leaves: tuple[optax.OptState, ...]


def keep_on_host(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, for which the device has the state of two leaves at a time; `init_state` keeps the rest away.

    The optimizer must treat every leaf by itself, as optax's do but for clipping by global norm, which goes before.

    >>> state = keep_on_host(optax.adam(1e-3)).init({"w": jax.numpy.zeros(3), "b": jax.numpy.zeros(2)})
    >>> [one[0].mu for one in state.leaves]  # the leaves of a dictionary come by name
    [{'b': Array([0., 0.], dtype=float32), 'w': None}, {'b': None, 'w': Array([0., 0., 0.], dtype=float32)}]
    """

    def init(params: optax.Params) -> OnHost:
        return OnHost(tuple(optimizer.init(alone) for alone in _each_alone(params)))

    def visit(away: optax.OptState, gradient: Any, value: Any) -> tuple[Any, optax.OptState]:
        here = _move(away, jax.memory.Space.Device)
        change, new = optimizer.update(gradient, here, value)
        (leaf,) = jax.tree.leaves(gradient)
        good = jnp.isfinite(leaf.reshape(-1)[0])  # `apply_gradients` makes the gradients of a skipped update NaN
        new = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, here)
        return change, _move(new, jax.memory.Space.Host)

    def update(updates: optax.Updates, state: OnHost, params: optax.Params | None = None):
        gradients = _each_alone(updates)
        values = [None] * len(gradients) if params is None else _each_alone(params)
        changes, kept, after = [], [], None
        for gradient, away, value in zip(gradients, state.leaves, values, strict=True):
            change, new = _in_turn(visit, after, away, gradient, value)
            changes += jax.tree.leaves(change)
            kept.append(new)
            after = changes[-1]
        return jax.tree.structure(updates).unflatten(changes), OnHost(tuple(kept))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _in_turn(visit: Callable, after: Array | None, away: optax.OptState, *args: Any) -> tuple[Any, optax.OptState]:
    """`visit(away, *args)` once `after` is there: left to themselves, compilers fetch the state of all leaves at once.

    Barriers do on GPUs, whose compiler fails on branches; the one for TPUs moves fetches before barriers, but not out
    of a branch that it cannot foresee.
    """
    if after is None:
        return visit(away, *args)
    if platform() != "tpu":
        away, _ = jax.lax.optimization_barrier((away, after))
        return visit(away, *args)
    always = ~(after.reshape(-1)[0] < -jnp.inf)
    return jax.lax.cond(always, visit, lambda away, *_: (args[0], _move(away, jax.memory.Space.Host)), away, *args)


def _each_alone(tree: Any) -> list[Any]:
    """For every leaf the tree with `None` in place of the others."""
    leaves, structure = jax.tree.flatten(tree)
    return [
        structure.unflatten([leaf if i == j else None for j, leaf in enumerate(leaves)]) for i in range(len(leaves))
    ]


def _move(state: Any, space: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf, state)


def place_on_host(placement: Any, shapes: Any) -> Any:
    """Shardings of an optimizer's state, in the memory of the host for what `keep_on_host` keeps there.

    **Raises:** `ConfigError` where the devices cannot reach it.
    """

    def away(node: Any) -> bool:
        return isinstance(node, OnHost)

    def move(sharding: Sharding, leaf: Any) -> Sharding:
        return sharding.with_memory_kind(HOST) if leaf.ndim else sharding

    def place(node: Any, own: Any) -> Any:
        return jax.tree.map(move, own, node) if away(node) else own

    try:
        return jax.tree.map(place, shapes, placement, is_leaf=away)
    except ValueError:
        raise ConfigError("the devices cannot reach the host's memory (no pinned_host); leave --offload out") from None
