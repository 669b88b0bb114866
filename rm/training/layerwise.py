"""Optimizers that treat every layer by itself, although the layers are stacked in one array."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jax.tree_util import SequenceKey

from ..errors import ConfigError
from .transformation import Optimizer, as_transformation


class PerLayer(NamedTuple):
    """The state of `per_layer`: one of the stacked arrays, with a leading layer axis, and one of the other arrays."""

    stacked: Any  # None if nothing is stacked
    rest: optax.OptState


def per_layer(optimizer: Optimizer, *, stack: str = "blocks") -> optax.GradientTransformation:
    """Wraps an optimizer so that it treats each layer's array by itself, although the model stacks them in one array.

    For rules that compute a norm, a factorization or a decomposition of a whole array: Adafactor, LAMB and LARS,
    `optax.clip_by_block_rms`, `optax.contrib.muon`. Adam, Lion and SGD treat every number by itself and do not need it.
    Rules that look at all leaves together give other numbers inside: clipping by global norm, which must come before;
    `momo`, `polyak_sgd`, `prodigy`. Noise (`optax.add_noise`) is the same in every layer. Of what an optimizer may ask
    for, it gets the loss (`value`).

    **Arguments:** `stack`, the name of the field (or key) of the model below which the first axis of every array is
    that of the layers; a list there holds layers that are not stacked. For an ensemble, `jax.vmap` the update.

    **Raises:** `ConfigError` if the arrays below `stack` differ in their first axis.

    >>> params = {"blocks": jax.numpy.array([[3.0, 4.0], [0.3, 0.4]]), "norm": jax.numpy.ones(2)}
    >>> optimizer = per_layer(optax.scale_by_trust_ratio())  # scales every update by |θ| / |update|
    >>> updates, _ = optimizer.update(jax.tree.map(jax.numpy.ones_like, params), optimizer.init(params), params)
    >>> [round(float(jax.numpy.linalg.norm(layer)), 3) for layer in updates["blocks"]]
    [5.0, 0.5]
    """
    inner = as_transformation(optimizer)

    def init(params: optax.Params) -> PerLayer:
        stacked, rest = _split(params, stack)
        _check_layers(stacked, stack)
        return PerLayer(jax.vmap(inner.init)(stacked) if jax.tree.leaves(stacked) else None, inner.init(rest))

    def update(updates: optax.Updates, state: PerLayer, params: optax.Params | None = None, **extra: Any):
        loss = {name: extra[name] for name in ("value",) if name in extra}

        def one(updates: Any, state: Any, params: Any) -> tuple[Any, optax.OptState]:
            return inner.update(updates, state, params, **loss)

        (stacked, rest), (layers, others) = _split(updates, stack), _split(params, stack)
        rest, rest_state = one(rest, state.rest, others)
        if state.stacked is None:
            return rest, PerLayer(None, rest_state)
        stacked, stacked_state = jax.vmap(one)(stacked, state.stacked, layers)
        return eqx.combine(stacked, rest), PerLayer(stacked_state, rest_state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _split(tree: Any, stack: str) -> tuple[Any, Any]:
    """Two trees: the stacked leaves, and all others; each has `None` in place of the leaves of the other."""

    def is_stacked(path: tuple, _: Any) -> bool:
        names = [getattr(key, "name", getattr(key, "key", None)) for key in path]
        below = path[names.index(stack) + 1 :] if stack in names else None
        return below is not None and not isinstance(next(iter(below), None), SequenceKey)

    return eqx.partition(tree, jax.tree_util.tree_map_with_path(is_stacked, tree))


def _check_layers(stacked: Any, stack: str) -> None:
    layers = sorted({leaf.shape[:1] for leaf in jax.tree.leaves(stacked)})
    if len(layers) > 1 or () in layers:
        found = ", ".join(str(axis[0]) if axis else "none" for axis in layers)
        raise ConfigError(
            f"per_layer: expected one number of layers as first axis of all arrays below {stack!r}, found {found}; "
            "name the field whose arrays are stacked by stack=…"
        )
