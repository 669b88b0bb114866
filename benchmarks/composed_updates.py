"""Compositions with a loss, a head or an optimizer of one's own."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from compositions import ONE, Place, by_hand, composition, difference, gradient, moved, train

import rm
from rm.model.heads import apply_head
from rm.training.offload import keep_on_host


def rewards_alone() -> tuple[np.ndarray, np.ndarray]:
    """The rewards of the first batch in float64, chosen and rejected, of real comparisons."""
    r = np.asarray(ONE.rewards(ONE.model(), ONE.batch()), np.float64)[np.asarray(ONE.batch().mask)]
    return r[..., 0], r[..., 1]


def all_like(tree: Any, value: bool) -> Any:
    return jax.tree.map(lambda _: value, tree)


# My loss


@composition()
def a_loss_of_my_own(place: Place) -> Any:
    def hinge(model: Any, batch: rm.PreferenceBatch) -> Any:
        r = place.rewards(model, batch)
        return jax.nn.relu(1 - (r[..., 0] - r[..., 1])), r

    _, metrics = train(place, optax.sgd(0.0), 1, hinge)
    chosen, rejected = rewards_alone()
    return metrics["loss"], np.maximum(0, 1 - (chosen - rejected)).mean()


@composition()
def a_metric_of_my_own(place: Place) -> Any:
    def objective(model: Any, batch: rm.PreferenceBatch) -> Any:
        loss, r = place.objective(model, batch)
        return loss, r, {"gap": r[..., 0] - r[..., 1]}

    _, metrics = train(place, optax.sgd(0.0), 1, objective)
    chosen, rejected = rewards_alone()
    return metrics["gap"], (chosen - rejected).mean()


# My head


@composition()
def a_second_head_in_a_module_of_my_own(place: Place) -> Any:
    class TwoHeads(eqx.Module):
        model: rm.RewardModel
        second: jax.Array

    def both(model: TwoHeads, batch: rm.PreferenceBatch) -> Any:
        features = rm.hidden_states(model.model, batch, rm.Compute(mesh=place.mesh))
        r = (apply_head(features, model.model.score) + apply_head(features, model.second))[..., 0]
        return rm.pairwise_loss(r[..., 0], r[..., 1], batch.margin), r

    second = np.full((1, 16), 0.25, np.float32)
    state, _ = train(place, optax.sgd(0.1), 1, both, TwoHeads(place.model(), jnp.array(second)))
    summed = eqx.tree_at(lambda m: m.score, ONE.model(), ONE.model().score + second)
    return difference(state.model.second, second), -0.1 * gradient(summed).score  # that of the sum


@composition()
def the_head_alone(place: Place) -> Any:
    model = place.model()
    head, rest = eqx.partition(model, eqx.tree_at(lambda m: m.score, all_like(model, False), True))
    state, _ = train(
        place, optax.sgd(0.1), 1, lambda head, batch: place.objective(eqx.combine(head, rest), batch), head
    )
    return difference(state.model.score, ONE.model().score), -0.1 * gradient(ONE.model()).score


@composition()
def all_blocks_frozen_but_the_last(place: Place) -> Any:
    model = place.model()
    mask = eqx.tree_at(lambda m: m.last_block, all_like(model, False), all_like(model.last_block, True))
    last, rest = eqx.partition(model, mask)
    state, _ = train(
        place, optax.sgd(0.1), 1, lambda last, batch: place.objective(eqx.combine(last, rest), batch), last
    )
    expected = jax.tree.map(lambda g: -0.1 * g, gradient(ONE.model()).last_block)
    return difference(state.model.last_block, ONE.model().last_block), expected


@composition()
def a_dict_around_the_model(place: Place) -> Any:
    def scaled(tree: dict, batch: rm.PreferenceBatch) -> Any:
        r = tree["scale"] * place.rewards(tree["model"], batch)
        return rm.pairwise_loss(r[..., 0], r[..., 1], batch.margin), r

    def loss(scale: jax.Array) -> jax.Array:
        return ONE.loss(eqx.tree_at(lambda m: m.score, ONE.model(), scale * ONE.model().score))

    state, _ = train(place, optax.sgd(0.1), 1, scaled, {"model": place.model(), "scale": jnp.ones(())})
    return state.model["scale"], 1 - 0.1 * jax.grad(loss)(jnp.ones(()))


@composition()
def an_adapter_over_a_base(place: Place) -> Any:
    """LoRA of the last block's queries: `dB = dW Aᵀ`, with `dW` of the merged model."""
    start = {"a": np.full((2, 16), 0.1, np.float32), "b": np.full((16, 2), 0.1, np.float32)}

    def merge(base: rm.RewardModel, adapter: dict) -> rm.RewardModel:
        weight = base.last_block.q_proj.weight
        return eqx.tree_at(lambda m: m.last_block.q_proj.weight, base, weight + adapter["b"] @ adapter["a"])

    def adapted(base: rm.RewardModel, adapter: dict, batch: rm.PreferenceBatch) -> Any:
        return place.objective(merge(base, adapter), batch)

    objective = jax.tree_util.Partial(adapted, place.model())
    state, _ = train(place, optax.sgd(0.1), 1, objective, place.put(jax.tree.map(jnp.array, start)))
    d_w = gradient(merge(ONE.model(), start)).last_block.q_proj.weight
    return difference(state.model["b"], start["b"]), -0.1 * np.asarray(d_w) @ start["a"].T


# My optimizer, beside optax's loop by hand


def as_by_hand(place: Place, optimizer: Any) -> Any:
    return moved(train(place, optimizer)[0]), by_hand(optimizer)


@composition(1e-4)
def reduce_on_plateau(place: Place) -> Any:
    plateau = optax.contrib.reduce_on_plateau(patience=1, factor=0.5, atol=10.0)  # the second value is no better
    return as_by_hand(place, optax.chain(optax.sgd(0.1), plateau))


@composition(1e-3)
def momo(place: Place) -> Any:
    return as_by_hand(place, optax.contrib.momo(0.1))


@composition(1e-4)
def polyak_steps(place: Place) -> Any:
    return as_by_hand(place, optax.polyak_sgd())


@composition(1e-3)
def lbfgs_in_jitted_update(place: Place) -> Any:
    step = jax.jit(partial(rm.update, objective=place.objective, optimizer=optax.lbfgs()))
    state = rm.init_state(place.model(), optax.lbfgs())
    for number in range(2):
        state, _ = step(state, [place.batch(number)])
    return moved(state), by_hand(optax.lbfgs(), 2)


@composition(1e-4)
def a_line_search_in_jitted_update(place: Place) -> Any:
    optimizer = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10))
    step = jax.jit(partial(rm.update, objective=place.objective, optimizer=optimizer))
    state, _ = step(rm.init_state(place.model(), optimizer), [place.batch()])
    return moved(state), by_hand(optimizer, 1)


@composition(refused="line search needs the loss as a function")
def lbfgs_in_jit_update(place: Place) -> Any:
    return train(place, optax.lbfgs(), 1)


@composition(1e-3)
def multisteps_as_it_is(place: Place) -> Any:
    adam = optax.adam(1e-2, eps=1e-3)
    return moved(train(place, optax.MultiSteps(adam, 2), 4)[0]), by_hand(adam, 2, micro_batches=2)


@composition(1e-4)
def momo_in_multisteps(place: Place) -> Any:
    """The loss is that of the last update, the gradient the mean of two."""
    optimizer = optax.MultiSteps(optax.contrib.momo(0.1), 2)
    state, _ = train(place, optimizer, 4)
    by_optax: Any = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)  # pyright: ignore
    return moved(state), by_hand(by_optax, 4)


@composition(refused="cannot be inside optax.MultiSteps")
def lbfgs_in_multisteps(place: Place) -> Any:
    optimizer = optax.MultiSteps(optax.lbfgs(), 2)
    return rm.update(rm.init_state(place.model(), optimizer), [place.batch()], place.objective, optimizer)


@composition(1e-4)
def an_average_of_updates(place: Place) -> Any:
    return as_by_hand(place, optax.chain(optax.sgd(0.1), optax.ema(0.9)))


@composition(1e-4)
def schedule_free_weights_evaluated(place: Place) -> Any:
    optimizer = optax.contrib.schedule_free_adamw(1e-2, eps=1e-3)
    state, _ = train(place, optimizer)
    averaged = optax.contrib.schedule_free_eval_params(state.opt_state, state.model)
    model: Any = ONE.model()
    by_optax = optimizer.init(model)
    for number in range(3):
        updates, by_optax = optimizer.update(gradient(model, number), by_optax, model)
        model = optax.apply_updates(model, updates)
    expected = optax.contrib.schedule_free_eval_params(by_optax, model)
    return place.loss(averaged), ONE.loss(expected)


@composition(1e-4)
def updates_skipped_where_not_finite(place: Place) -> Any:
    return as_by_hand(place, optax.apply_if_finite(optax.sgd(0.1), 3))


@composition(1e-4)
def noise_on_gradients(place: Place) -> Any:
    return as_by_hand(place, optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)))


@composition(1e-4)
def moments_in_host_memory(place: Place) -> Any:
    adam = optax.adam(1e-2, eps=1e-3)
    return moved(train(place, keep_on_host(adam))[0]), by_hand(adam)


def per_layer(place: Place, optimizer: Any) -> Any:
    """By `rm.per_layer`, and by hand on a tree that holds every layer's arrays by themselves."""
    state, _ = train(place, rm.per_layer(optimizer), 2)
    return moved(state), unstacked_by_hand(optimizer, 2)


def unstacked_by_hand(optimizer: Any, steps: int) -> Any:
    def unstack(model: rm.RewardModel) -> tuple:
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks) for i in range(2)]
        return eqx.tree_at(lambda m: m.blocks, model, None), layers

    def restack(parts: tuple) -> rm.RewardModel:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts[1])
        return eqx.tree_at(lambda m: m.blocks, parts[0], stacked, is_leaf=lambda x: x is None)

    parts: Any = unstack(ONE.model())
    state = optimizer.init(parts)
    for number in range(steps):
        grad = jax.jit(jax.grad(lambda parts, number=number: ONE.loss(restack(parts), number)))(parts)
        updates, state = jax.jit(optimizer.update)(grad, state, parts)
        parts = optax.apply_updates(parts, updates)
    return difference(restack(parts), ONE.model())


@composition(1e-3)
def adafactor_layer_by_layer(place: Place) -> Any:
    return per_layer(place, optax.adafactor(1e-2, min_dim_size_to_factor=16))


@composition(1e-3)
def lamb_layer_by_layer(place: Place) -> Any:
    return per_layer(place, optax.lamb(1e-2, eps=1e-3))


@composition(1e-3)
def muon_layer_by_layer(place: Place) -> Any:
    return per_layer(place, optax.contrib.muon(1e-2))
