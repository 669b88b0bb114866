"""Offloading of an optimizer's state to host memory; updates move it to the device leaf by leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array

from ..devices.platform import platform
from ..errors import ConfigError
from .skipping import choose
from .transformation import Optimizer, as_transformation

HOST = "pinned_host"  # JAX's name for host memory that devices can access directly


class OnHost(NamedTuple):
    """The state of `keep_on_host`: one state of the wrapped optimizer for every leaf of the parameters."""

    leaves: tuple[optax.OptState, ...]


def keep_on_host(optimizer: Optimizer) -> optax.GradientTransformation:
    """Wraps an optimizer whose state `init_state` puts on the host; the device holds that of two leaves at most.

    The optimizer must treat every leaf by itself. Rules that look at all leaves together give other numbers inside:
    clipping by global norm, which must come before; `momo`, `polyak_sgd`, `prodigy`, `apply_if_finite`. Of what an
    optimizer may ask for, it gets the loss (`value`). `optax.MultiSteps` belongs inside: around this, it would select
    among the states of all leaves at once.

    >>> state = keep_on_host(optax.adam(1e-3)).init({"w": jax.numpy.zeros(3), "b": jax.numpy.zeros(2)})
    >>> [leaf_state[0].mu for leaf_state in state.leaves]  # dictionaries are sorted by name
    [{'b': Array([0., 0.], dtype=float32), 'w': None}, {'b': None, 'w': Array([0., 0., 0.], dtype=float32)}]
    """
    inner = as_transformation(optimizer)

    def init(params: optax.Params) -> OnHost:
        states = [inner.init(leaf) for leaf in _split(params)]
        # `lax.scan` needs the memory space in the array's type, which `out_shardings` of `jax.jit` does not set
        return OnHost(tuple(_move(state, jax.memory.Space.Host) for state in states))

    def update_leaf(on_host: optax.OptState, gradient: Any, param: Any, value: Any) -> tuple[Any, optax.OptState]:
        old = _move(on_host, jax.memory.Space.Device)
        change, new = inner.update(gradient, old, param, value=value)
        (leaf,) = jax.tree.leaves(gradient)
        good = jnp.isfinite(leaf.reshape(-1)[0])  # `apply_gradients` makes the gradients of a skipped update NaN
        return change, _move(choose(good, new, old), jax.memory.Space.Host)

    def update(updates: optax.Updates, state: OnHost, params: optax.Params | None = None, **extra: Any):
        gradients = _split(updates)
        values = [None] * len(gradients) if params is None else _split(params)
        changes, states, after = [], [], None
        for gradient, on_host, param in zip(gradients, state.leaves, values, strict=True):
            change, new = _in_turn(update_leaf, after, on_host, gradient, param, extra.get("value"))
            changes += jax.tree.leaves(change)
            states.append(new)
            after = changes[-1]
        return jax.tree.structure(updates).unflatten(changes), OnHost(tuple(states))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _in_turn(step: Callable, after: Array | None, on_host: optax.OptState, *args: Any) -> tuple[Any, optax.OptState]:
    """Runs `step(on_host, *args)` after `after` is computed; otherwise compilers fetch the states of all leaves early.

    On GPUs, whose compiler fails on branches, an optimization barrier is enough. The compiler for TPUs moves transfers
    across barriers, but not out of a branch whose condition it cannot predict.
    """
    if after is None:
        return step(on_host, *args)
    if platform() != "tpu":
        on_host, _ = jax.lax.optimization_barrier((on_host, after))
        return step(on_host, *args)
    always = ~(after.reshape(-1)[0] < -jnp.inf)
    return jax.lax.cond(always, step, lambda state, *_: (args[0], _move(state, jax.memory.Space.Host)), on_host, *args)


def _split(tree: Any) -> list[Any]:
    """Splits a tree into one tree per leaf, with `None` in place of the other leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return [
        structure.unflatten([leaf if i == j else None for j, leaf in enumerate(leaves)]) for i in range(len(leaves))
    ]


def _move(state: Any, space: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf, state)


def place_on_host(placement: Any, shapes: Any) -> Any:
    """Moves the shardings of an optimizer's state to host memory where `keep_on_host` holds the state.

    **Raises:** `ConfigError` if the devices cannot access host memory, or `optax.MultiSteps` is around `keep_on_host`.
    """

    def is_steps(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    def is_on_host(node: Any) -> bool:
        return isinstance(node, OnHost)

    def move(sharding: Sharding, leaf: Any) -> Sharding:
        return sharding.with_memory_kind(HOST) if leaf.ndim else sharding

    def place(node: Any, sharding: Any) -> Any:
        return jax.tree.map(move, sharding, node) if is_on_host(node) else sharding

    for node in filter(is_steps, jax.tree.leaves(shapes, is_leaf=is_steps)):
        if any(map(is_on_host, jax.tree.leaves(node, is_leaf=is_on_host))):
            raise ConfigError(
                "optimizer: optax.MultiSteps is around keep_on_host (offload=True), whose state it cannot select from; "
                "put keep_on_host around optax.MultiSteps"
            )
    try:
        return jax.tree.map(place, shapes, placement, is_leaf=is_on_host)
    except ValueError:
        raise ConfigError("the devices cannot reach the host's memory (no pinned_host); leave --offload out") from None
