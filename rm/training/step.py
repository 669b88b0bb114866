"""The training state and the pure update: one optimizer step over all given comparisons, with gradient accumulation."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from ..devices.mesh import mesh_of, shardings
from ..devices.platform import on_gpu
from ..model.batch import PreferenceBatch
from ..model.sharding import state_specs
from ..shapes import checked
from .metrics import preference_metrics
from .objectives import Objective, check_objective
from .offload import HOST, OnHost, place_on_host
from .rounding import add_updates
from .skipping import choose
from .transformation import Optimizer, as_transformation, optimizer_step


class TrainState(eqx.Module):
    """Everything an update changes: the step counter, the model and the optimizer's state.

    `step` counts the updates of the run, skipped ones as well; learning-rate schedules follow it.
    `model` is any tree of floating-point arrays: a `RewardModel`, a tuple of one and a head of your own, an adapter.
    """

    step: Int[Array, ""]
    model: Any
    opt_state: optax.OptState


class Sums(eqx.Module):
    """The accumulated gradients and metrics of the micro-batches of an update."""

    gradients: Any  # float32 sums, in the tree of the model
    metrics: dict[str, Float[Array, ""]]  # over the comparisons so far
    comparisons: Int[Array, ""]


def init_state(model: Any, optimizer: Optimizer) -> TrainState:
    """The state before the first update.

    The arrays of `model` become part of the state; if updates donate the state, use `state.model` from then on. The
    moments of a parameter get its sharding on a mesh, or go to host memory (`keep_on_host`).

    **Arguments:** `model`, any tree of floating-point arrays, also traced ones (under `jax.vmap` or `jax.jit`).

    **Raises:** `TypeError`, naming the leaf that is no floating-point array; `ConfigError` if the devices cannot access
    host memory.
    """
    _check_leaves(model)
    rule = as_transformation(optimizer)

    def init(model: Any) -> tuple[Array, optax.OptState]:
        return jnp.zeros((), jnp.int32), rule.init(_as_float32(model))

    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model)):
        step, opt_state = init(model)
        return TrainState(step, model, opt_state)
    mesh, (_, shapes) = mesh_of(model), jax.eval_shape(init, model)
    if mesh is not None:
        model = jax.tree.map(lambda leaf: jax.device_put(leaf, _on_mesh(leaf, mesh)), model)
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, model)
        first, where = shardings((P(), state_specs(shapes, model, specs)), mesh)
    else:
        model = jax.tree.map(_commit, model)
        device = jax.tree.leaves(model)[0].sharding
        first, where = device, jax.tree.map(lambda _: device, shapes)
    step, opt_state = jax.jit(init, out_shardings=(first, place_on_host(where, shapes)))(model)
    return TrainState(step, model, opt_state)


def _check_leaves(model: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(model)
    if not leaves:
        raise TypeError("the model has no arrays to train")
    for path, leaf in leaves:
        if not isinstance(leaf, Array | np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            name, found = jax.tree_util.keystr(path, simple=True, separator="."), getattr(leaf, "dtype", type(leaf))
            advice = "close the objective over what is not trained (or split it off by eqx.partition)"
            raise TypeError(f"{name}: expected a floating-point array, found {found}; {advice}")


def _on_mesh(leaf: Array, mesh: Mesh) -> NamedSharding:
    """The sharding of an array on the mesh; an array that is not on the mesh is replicated."""
    spec: Any = getattr(leaf.sharding, "spec", P()) if mesh_of(leaf) == mesh else P()
    return NamedSharding(mesh, spec)


def _commit(leaf: Array) -> Array:
    """Commits an array to its device, as updates return it; otherwise the second update would compile again."""
    leaf = jnp.asarray(leaf)
    return jax.device_put(leaf, leaf.sharding)


def _as_float32(model: Any) -> Any:
    """Casts a tree to float32, the type of gradients and of moments whatever the type of the parameters."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)


@checked
def accumulate(sums: Sums | None, model: Any, batch: PreferenceBatch, objective: Objective) -> Sums:
    """Accumulates gradients: adds a micro-batch's gradients and metrics to `sums`, which is `None` for the first."""

    def total(model: Any) -> tuple[Array, tuple[Array, Mapping[str, Array]]]:
        loss, rewards, extra = check_objective(objective(model, batch), batch)
        return jnp.sum(loss, where=batch.mask), (rewards, extra)

    (loss, (rewards, extra)), gradients = jax.value_and_grad(total, has_aux=True)(model)
    count = jnp.sum(batch.mask, dtype=jnp.int32)
    metrics = {
        "loss": loss / count.astype(jnp.float32),
        **preference_metrics(rewards[..., 0], rewards[..., 1], batch.mask),
        **{name: jnp.mean(values.astype(jnp.float32), where=batch.mask) for name, values in extra.items()},
    }
    new = Sums(_as_float32(gradients), metrics, count)
    return new if sums is None else add_sums(sums, new)


def add_sums(one: Sums, other: Sums) -> Sums:
    """Combines the sums over two sets of micro-batches."""
    gradients = jax.tree.map(jnp.add, one.gradients, other.gradients)
    metrics = _merge(one.metrics, one.comparisons, other.metrics, other.comparisons)
    return Sums(gradients, metrics, one.comparisons + other.comparisons)


def _merge(old: dict[str, Array], old_count: Array, new: dict[str, Array], count: Array) -> dict[str, Array]:
    """Combines the metrics over two sets of comparisons; an empty set changes nothing."""
    share = count.astype(jnp.float32) / jnp.maximum(old_count + count, 1).astype(jnp.float32)
    merged = {name: old[name] + share * (new[name] - old[name]) for name in old}
    merged["min_reward"] = jnp.minimum(old["min_reward"], new["min_reward"])
    merged["max_reward"] = jnp.maximum(old["max_reward"], new["max_reward"])
    merged = {name: jnp.where(old_count > 0, merged[name], new[name]) for name in old}
    return {name: jnp.where(count > 0, merged[name], old[name]) for name in old}


@checked
def apply_gradients(
    state: TrainState,
    sums: Sums,
    optimizer: Optimizer,
    skip_above: Float[Array, ""] | float = math.inf,
    value_fn: Callable[[Any], Array] | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer step with the mean gradient; returns the new state and the metrics with `grad_norm` and `skipped`.

    If the loss or the gradient norm is not finite, or the norm is above `skip_above`, `skipped` is 1, and the state
    stays, except that `step` and the schedules of the optimizer count the update.

    **Arguments:** `value_fn`, the mean loss as a function of the model, which line searches need. Where an optimizer
    asks for more than the gradients, it gets `value`, the mean loss, and `grad`, the mean gradient, too.

    **Raises:** `TypeError` if the optimizer needs a `value_fn` that is not given.
    """
    count = jnp.maximum(sums.comparisons, 1).astype(jnp.float32)
    norm = optax.tree.norm(sums.gradients) / count
    good = jnp.isfinite(sums.metrics["loss"]) & jnp.isfinite(norm) & (norm <= skip_above)
    scale = jnp.where(good, 1 / count, jnp.nan)  # NaN makes `keep_on_host` skip; a scalar factor needs no extra arrays
    gradients = jax.tree.map(lambda total: total * scale, sums.gradients)
    parameters: Any = _as_float32(state.model)
    extra = {"value": sums.metrics["loss"], "grad": gradients} | ({"value_fn": value_fn} if value_fn else {})
    updates, opt_state = optimizer_step(optimizer, gradients, state.opt_state, parameters, **extra)
    model = add_updates(state.model, updates, state.step)
    metrics = sums.metrics | {"grad_norm": norm, "skipped": (~good).astype(jnp.float32)}
    model = choose(good, model, state.model)
    opt_state = choose(good, opt_state, state.opt_state, chosen=(OnHost,))  # whose leaves have been chosen one by one
    return TrainState(state.step + 1, model, opt_state), metrics


@checked
def update(
    state: TrainState,
    batches: Sequence[PreferenceBatch],
    objective: Objective,
    optimizer: Optimizer,
    skip_above: Float[Array, ""] | float = math.inf,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer step over all comparisons of `batches`: `θ ← θ - optimizer(∇ mean loss)`.

    Gradients are summed over the micro-batches in float32 and divided by the number of comparisons, so the step does
    not depend on how the comparisons are packed. Pure; jit it at the edge: `jax.jit(partial(update,
    objective=objective, optimizer=optimizer), donate_argnums=0)`, or with `jit_update` where shapes vary.

    **Arguments:** `objective(model, batch)` returns the loss of every slot `[R, S]`, the rewards `[R, S, K]` behind it,
    and optionally metrics of its own, `{name: [R, S]}`; the model is any tree of floating-point arrays that the
    objective accepts; `optimizer`, any optax transformation; `skip_above`, the gradient norm above which the update is
    skipped.

    **Returns:** the new state and float32 scalars: `loss`, `grad_norm` (before clipping), `skipped`,
    `preference_metrics` of the first response of each comparison against the second, and the means of the objective's
    own metrics. If the loss or the gradient is not finite, the update is skipped: the state stays, except that `step`
    and schedules count it, and `skipped` is 1.

    **Raises:** `TypeError` if the objective's loss or metrics do not have the shape of the slots; `ValueError` if a
    metric has a name that is already used.

    >>> from rm import LlamaConfig, init_reward_model, pairwise_loss, rewards
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=4)
    >>> batch = PreferenceBatch(
    ...     tokens=jnp.array([[5, 6, 7, 8]]), segments=jnp.array([[1, 1, 1, 1]]), parts=jnp.array([[0, 0, 1, 2]]),
    ...     positions=jnp.array([[0, 1, 2, 2]]), ends=jnp.array([[[2, 3]]]), index=jnp.array([[0]]),
    ...     margin=jnp.zeros((1, 1)), regions=(2, 1, 1))
    >>> def objective(model, batch):
    ...     r = rewards(model, batch)
    ...     return pairwise_loss(r[..., 0], r[..., 1]), r
    >>> optimizer = optax.adamw(1e-2)
    >>> state = init_state(init_reward_model(config, key=jax.random.key(0)), optimizer)
    >>> step = jax.jit(partial(update, objective=objective, optimizer=optimizer), donate_argnums=0)
    >>> for _ in range(3):
    ...     state, metrics = step(state, [batch])
    >>> float(metrics["loss"]) < 0.69
    True
    """
    _check_batches(batches)
    sums = accumulate(None, state.model, batches[0], objective)
    for batch in batches[1:]:
        sums = accumulate(sums, state.model, batch, objective)

    def mean_loss(model: Any) -> Array:
        totals = [jnp.sum(check_objective(objective(model, batch), batch)[0], where=batch.mask) for batch in batches]
        return sum(totals) / sums.comparisons.astype(jnp.float32)

    return apply_gradients(state, sums, optimizer, skip_above, mean_loss)


def _check_batches(batches: Sequence[PreferenceBatch]) -> None:
    if isinstance(batches, PreferenceBatch):
        raise TypeError("batches: expected a list of batches, found one; write [batch]")
    if not batches:
        raise ValueError("an update needs at least one batch, found none")


def jit_update(objective: Objective, optimizer: Optimizer) -> Callable:
    """A compiled `update` for batches that vary in number and shape: `step(state, batches, skip_above)`.

    It composes jitted parts, so it compiles once per batch shape rather than once per combination of shapes; on GPUs an
    update of one batch is a single program, which keeps no sum of gradients. It donates the state it is given: use the
    returned state, whose arrays have the same shardings. If the objective is a tree (an `eqx.Module`,
    `jax.tree_util.Partial(loss, base)`), its arrays are passed as arguments, not constants.
    """
    arrays, rest = eqx.partition(objective, eqx.is_array)

    @jax.jit
    def start(arrays: Any, model: Any, batch: PreferenceBatch) -> Sums:
        return accumulate(None, model, batch, eqx.combine(arrays, rest))

    first = partial(start, arrays)
    add = jax.jit(add_sums, donate_argnums=0)

    def finish(state: TrainState, sums: Sums, skip_above: Array) -> tuple[TrainState, dict[str, Array]]:
        return apply_gradients(state, sums, optimizer, skip_above)

    def whole(state: TrainState, arrays: Any, batch: PreferenceBatch, skip_above: Array) -> tuple:
        return finish(state, accumulate(None, state.model, batch, eqx.combine(arrays, rest)), skip_above)

    @cache
    def compiled(function: Callable, placement: tuple, structure: Any) -> Callable:
        where = (structure.unflatten(placement), None) if placement else None
        return jax.jit(function, donate_argnums=0, out_shardings=where)

    def step(
        state: TrainState, batches: Sequence[PreferenceBatch], skip_above: float = math.inf
    ) -> tuple[TrainState, dict[str, Array]]:
        _check_batches(batches)
        leaves, structure = jax.tree.flatten(state)
        away = mesh_of(state) is not None or any(leaf.sharding.memory_kind == HOST for leaf in leaves)
        placement = tuple(leaf.sharding for leaf in leaves) if away else ()
        if len(batches) == 1 and on_gpu():
            return compiled(whole, placement, structure)(state, arrays, batches[0], np.float32(skip_above))
        sums = first(state.model, batches[0])
        for batch in batches[1:]:
            sums = add(sums, first(state.model, batch))
        return compiled(finish, placement, structure)(state, sums, np.float32(skip_above))

    return step
