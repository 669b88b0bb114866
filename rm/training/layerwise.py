"""Optimizers that treat every layer by itself, although the layers are stacked in one array."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax


class PerLayer(NamedTuple):
    """The state of `per_layer`: those of the stacked arrays, with the layers as first axis, and that of the rest."""

    stacked: Any  # None if nothing is stacked
    rest: optax.OptState


def per_layer(optimizer: optax.GradientTransformation, *, stack: str = "blocks") -> optax.GradientTransformation:
    """Wraps an optimizer so that it sees every layer's array, where the model holds those of all layers in one.

    It matters to rules that take a norm, a factor or a decomposition of a whole array: Adafactor, LAMB and LARS,
    `optax.clip_by_block_rms`, `optax.contrib.muon`. Adam, Lion and SGD treat every number by itself and need it not.
    Clipping by global norm belongs before it, for it would see one layer at a time.

    **Arguments:** `stack`, the name of the fields (or keys) of the model whose arrays are stacked.

    >>> params = {"blocks": jax.numpy.array([[3.0, 4.0], [0.3, 0.4]]), "norm": jax.numpy.ones(2)}
    >>> optimizer = per_layer(optax.scale_by_trust_ratio())  # scales every update by |θ| / |update|
    >>> updates, _ = optimizer.update(jax.tree.map(jax.numpy.ones_like, params), optimizer.init(params), params)
    >>> [round(float(jax.numpy.linalg.norm(layer)), 3) for layer in updates["blocks"]]
    [5.0, 0.5]
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> PerLayer:
        stacked, rest = _split(params, stack)
        return PerLayer(jax.vmap(inner.init)(stacked) if jax.tree.leaves(stacked) else None, inner.init(rest))

    def update(updates: optax.Updates, state: PerLayer, params: optax.Params | None = None, **extra: Any):
        def one(updates: Any, state: Any, params: Any) -> tuple[Any, optax.OptState]:
            return inner.update(updates, state, params, **extra)

        (stacked, rest), (layers, others) = _split(updates, stack), _split(params, stack)
        rest, rest_state = one(rest, state.rest, others)
        if state.stacked is None:
            return rest, PerLayer(None, rest_state)
        stacked, stacked_state = jax.vmap(one)(stacked, state.stacked, layers)
        return eqx.combine(stacked, rest), PerLayer(stacked_state, rest_state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _split(tree: Any, stack: str) -> tuple[Any, Any]:
    """The tree with its stacked leaves alone, and with the others alone; `None` is in place of what is not there."""

    def is_stacked(path: tuple, _: Any) -> bool:
        return any(stack in (getattr(key, "name", None), getattr(key, "key", None)) for key in path)

    return eqx.partition(tree, jax.tree_util.tree_map_with_path(is_stacked, tree))
