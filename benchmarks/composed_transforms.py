"""Compositions with the transformations of JAX and the filters of Equinox."""

import io
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from compositions import ONE, Place, composition, difference, gradient, inner, moved, train
from jax import export
from jax.extend.core import jaxpr_as_fun

import rm
from rm.training.offload import keep_on_host

ANY: dict[str, Any] = {"derivatives": "any"}
ADAM = optax.adam(1e-2, eps=1e-3)
WITH_ADAM = 1e-3  # it divides by the root of a second moment, so that rounding counts where a gradient is near 0


def models(place: Place) -> Any:
    """Two models stacked on a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), place.model(0), place.model(1))


def ones(model: Any) -> Any:
    return jax.tree.map(jnp.ones_like, model)


# My ensemble


@composition()
def an_ensemble_by_filter_vmap(place: Place) -> Any:
    losses = eqx.filter_jit(eqx.filter_vmap(place.loss))(models(place))
    return losses, jnp.stack([ONE.loss(ONE.model(seed)) for seed in range(2)])


@composition(WITH_ADAM)
def an_ensemble_updated_by_vmap(place: Place) -> Any:
    step = partial(rm.update, batches=[place.batch()], objective=place.objective, optimizer=ADAM)
    states, _ = jax.jit(jax.vmap(step))(jax.vmap(lambda model: rm.init_state(model, ADAM))(models(place)))
    alone = [difference(train(ONE, ADAM, 1, model=ONE.model(seed))[0].model, ONE.model(seed)) for seed in range(2)]
    return difference(states.model, models(ONE)), jax.tree.map(lambda *leaves: np.stack(leaves), *alone)


@composition(1e-4)
def an_ensemble_as_one_model(place: Place) -> Any:
    def total(models: Any, batch: rm.PreferenceBatch) -> Any:
        losses, r = jax.vmap(lambda model: place.objective(model, batch))(models)
        return losses.sum(0), r.mean(0)

    state, _ = train(place, optax.sgd(0.1), 1, total, models(place))
    gradients = [gradient(ONE.model(seed)) for seed in range(2)]
    return difference(state.model, models(ONE)), jax.tree.map(lambda *g: -0.1 * np.stack(g), *gradients)


# My gradient


@composition()
def gradients_of_every_row_by_vmap(place: Place) -> Any:
    """On a mesh, of every pair of rows: its devices take a row each."""
    count = 1 if place.mesh is None else 2
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]), place.batch())

    def total(model: Any, row: rm.PreferenceBatch) -> jax.Array:
        return jnp.sum(place.objective(model, row)[0], where=row.mask)

    found = jax.jit(jax.vmap(jax.grad(total), (None, 0)))(place.model(), rows)
    summed = jax.tree.map(lambda g: g.sum(0) / place.batch().mask.sum(), found)
    return summed, gradient(ONE.model())


@composition(1e-4)
def a_gradient_through_an_update(place: Place) -> Any:
    """`d/dθ L(θ - 0.1 ∇L(θ))` is `(1 - 0.1 H) ∇L(θ')`."""
    objective = partial(place.objective, **ANY)

    def after(model: Any) -> jax.Array:
        state = rm.init_state(model, optax.sgd(0.1))
        state, _ = rm.update(state, [place.batch()], objective, optax.sgd(0.1))
        return place.loss(state.model, **ANY)

    slope, model = gradient, ONE.model()
    moved = slope(jax.tree.map(lambda x, g: x - 0.1 * g, model, slope(model)))
    bent = jax.jvp(jax.grad(partial(ONE.loss, **ANY)), (model,), (moved,))[1]
    return jax.jit(jax.grad(after))(place.model()), jax.tree.map(lambda g, h: g - 0.1 * h, moved, bent)


@composition()
def a_derivative_forward_by_jvp(place: Place) -> Any:
    model = place.model()
    found = jax.jit(lambda m, t: jax.jvp(partial(place.loss, **ANY), (m,), (t,))[1])(model, ones(model))
    return found, inner(gradient(ONE.model()), ones(ONE.model()))


@composition()
def a_derivative_by_linearize(place: Place) -> Any:
    _, push = jax.linearize(jax.jit(partial(place.loss, **ANY)), place.model())
    return push(ones(place.model())), inner(gradient(ONE.model()), ones(ONE.model()))


@composition(refused="forward-mode")  # in JAX's words where jit is around
def jvp_of_the_fast_forward(place: Place) -> Any:
    return jax.jit(lambda model: jax.jvp(place.loss, (model,), (ones(model),)))(place.model())


# My Hessian


def hessian_product() -> Any:
    """By central differences of the gradient."""
    up, down = (jax.tree.map(lambda x, d=d: x + d, ONE.model()) for d in (1e-3, -1e-3))
    return jax.tree.map(lambda a, b: (a - b) / 2e-3, gradient(up), gradient(down))


@composition(0.02)
def a_hessian_product_forward_over_reverse(place: Place) -> Any:
    def product(model: Any, direction: Any) -> Any:
        return jax.jvp(jax.grad(partial(place.loss, **ANY)), (model,), (direction,))[1]

    return jax.jit(product)(place.model(), ones(place.model())), hessian_product()


@composition(0.02)
def a_hessian_product_reverse_over_reverse(place: Place) -> Any:
    def slope(model: Any) -> jax.Array:
        return inner(jax.grad(partial(place.loss, **ANY))(model), ones(model))

    return jax.jit(jax.grad(slope))(place.model()), hessian_product()


@composition()
def the_hessian_of_the_head(place: Place) -> Any:
    """`mean σ(d) σ(-d) Δh Δhᵀ`, with the hidden states' difference `Δh` and `d = w Δh`."""
    model = place.model()

    def loss(head: jax.Array) -> jax.Array:
        return place.loss(eqx.tree_at(lambda m: m.score, model, head))

    h = np.asarray(rm.hidden_states(ONE.model(), ONE.batch()), np.float64)[np.asarray(ONE.batch().mask)]
    gap = h[:, 0] - h[:, 1]
    d = gap @ np.asarray(ONE.model().score[0], np.float64)
    expected = (gap * (1 / (2 + np.exp(d) + np.exp(-d)))[:, None]).T @ gap / len(gap)
    return jax.hessian(loss)(model.score)[0, :, 0], expected


@composition(refused="derivatives='any'")
def second_derivatives_of_the_fast_forward(place: Place) -> Any:
    return jax.grad(lambda model: inner(jax.grad(place.loss)(model), ones(model)))(place.model())


@composition(refused="derivatives='any'")
def second_derivatives_of_products_in_bfloat16(place: Place) -> Any:
    """On CPUs their backward pass reads bits, so that JAX's derivative of it is wrong."""
    loss = partial(place.loss, attention="xla", dtype="bfloat16")
    return jax.grad(lambda model: inner(jax.grad(loss)(model), ones(model)))(place.model())


@composition(0.2)
def a_hessian_product_in_bfloat16(place: Place) -> Any:
    loss = partial(place.loss, dtype="bfloat16", **ANY)
    product = jax.jit(lambda model, direction: jax.jvp(jax.grad(loss), (model,), (direction,))[1])
    return product(place.model(), ones(place.model())), hessian_product()


# My loop


def scanned(place: Place, optimizer: Any) -> Any:
    """Three updates in a loop of JAX, and three by `jit_update`."""

    def body(state: Any, _: None) -> tuple[Any, dict]:
        return rm.update(state, [place.batch()], place.objective, optimizer)

    run = jax.jit(lambda state: jax.lax.scan(body, state, None, length=3)[0])
    state, step = rm.init_state(ONE.model(), ADAM), rm.jit_update(ONE.objective, ADAM)
    for _ in range(3):
        state, _ = step(state, [ONE.batch()])
    return moved(run(rm.init_state(place.model(), optimizer))), moved(state)


@composition(WITH_ADAM)
def updates_in_lax_scan(place: Place) -> Any:
    return scanned(place, ADAM)


@composition(WITH_ADAM)
def updates_in_lax_scan_with_moments_on_the_host(place: Place) -> Any:
    return scanned(place, keep_on_host(ADAM))


@composition()
def the_first_state_under_jit(place: Place) -> Any:
    init = partial(rm.init_state, optimizer=ADAM)
    shapes, jitted = jax.eval_shape(init, place.model()), jax.jit(init)(place.model())
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, jitted)
    return (jitted, np.float64(jax.tree.all(same))), (rm.init_state(ONE.model(), ADAM), np.float64(1))


# My files and tools


@composition()
def leaves_serialised_by_equinox(place: Place) -> Any:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, place.model())
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, place.model(1)), ONE.model()


@composition(refused_on_mesh="a mesh divides a known number of rows")
def rewards_exported_with_a_symbolic_number_of_rows(place: Place) -> Any:
    model, leaves = place.model(), jax.tree.leaves(place.batch())
    (rows,) = export.symbolic_shape("n")

    def loss(*leaves: jax.Array) -> jax.Array:
        batch = jax.tree.unflatten(jax.tree.structure(place.batch()), leaves)
        return jnp.sum(place.objective(model, batch)[0], where=batch.mask)

    shapes = [jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    exported = export.export(jax.jit(loss))(*shapes)
    twice = [np.concatenate([leaf, leaf]) for leaf in leaves]
    return exported.call(*twice) / (2 * ONE.batch().mask.sum()), ONE.loss(ONE.model())


@composition()
def a_model_printed_in_a_few_lines(place: Place) -> Any:
    printed = eqx.tree_pformat(place.model())
    return np.array([len(printed.splitlines()) < 60, "score=f32[1,16]" in printed]), np.ones(2)


@composition()
def the_jaxpr_of_a_loss(place: Place) -> Any:
    jaxpr = jax.make_jaxpr(place.loss)(place.model())
    evaluated = jax.jit(jaxpr_as_fun(jaxpr))(*jax.tree.leaves(place.model()))
    return evaluated[0], ONE.loss(ONE.model())


# My settings of JAX


@composition(WITH_ADAM)
def an_update_under_debug_nans(place: Place) -> Any:
    with jax.debug_nans(True):
        state, _ = train(place, ADAM, 2)
    return moved(state), moved(train(ONE, ADAM, 2)[0])


@composition(WITH_ADAM)
def an_update_under_x64(place: Place) -> Any:
    with jax.enable_x64(True):
        state, _ = train(place, ADAM, 2)
    wide = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == np.float64]
    return (moved(state), np.float64(len(wide))), (moved(train(ONE, ADAM, 2)[0]), np.float64(0))


@composition(1e-4)
def an_update_under_strict_promotion(place: Place) -> Any:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state, _ = train(place, optax.sgd(0.1), 2)
    return moved(state), moved(train(ONE, optax.sgd(0.1), 2)[0])


@composition(WITH_ADAM)
def a_mesh_of_jax_with_fewer_axes(place: Place) -> Any:
    devices = jax.devices()[: 1 if place.mesh is None else 4]
    own = Place(jax.make_mesh((len(devices),), ("fsdp",), devices=devices))
    return moved(train(own, ADAM, 2)[0]), moved(train(ONE, ADAM, 2)[0])
