"""The update takes any tree of arrays and an objective with metrics of its own, on a mesh or not, traced or not."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import rm
from rm.model.heads import apply_head
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.training import pairwise_objective

from .test_update import CONFIG, comparisons, new_model  # noqa: F401

pytestmark = pytest.mark.optax

ONE_ROW, ONE_A_ROW = (
    RowShape(rows=1, slots=6, regions=(32, 96, 96)),
    RowShape(rows=8, slots=1, regions=(32, 32, 32)),
)


def pairwise(rewards, batch):
    return rm.pairwise_loss(rewards[..., 0], rewards[..., 1], batch.margin), rewards


def new_adapter():
    """LoRA of the last block's queries, `W + B A`, rank 2."""
    a, b = (np.random.default_rng(seed).normal(size=shape) for seed, shape in ((1, (2, 16)), (2, (16, 2))))
    return {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}


def merge(base, adapter):
    weight = base.last_block.q_proj.weight
    return eqx.tree_at(lambda m: m.last_block.q_proj.weight, base, weight + adapter["b"] @ adapter["a"])


def adapted(base, adapter, batch):
    return pairwise(rm.rewards(merge(base, adapter), batch), batch)


@pytest.mark.long
def test_an_adapter_over_a_base_gets_the_gradient_of_the_chain_rule(comparisons):  # noqa: F811
    """`dA = Bᵀ dW`, `dB = dW Aᵀ`, with `dW` of the merged model."""
    (batch,), base, adapter = pack(comparisons, range(6), [ONE_ROW]), new_model(), new_adapter()
    sums = jax.jit(partial(rm.accumulate, None, objective=partial(adapted, base)))(adapter, batch)
    whole = jax.jit(partial(rm.accumulate, None, objective=lambda m, b: pairwise(rm.rewards(m, b), b)))
    d_w = np.asarray(whole(merge(base, adapter), batch).gradients.last_block.q_proj.weight, np.float64)
    np.testing.assert_allclose(sums.gradients["a"], np.asarray(adapter["b"], np.float64).T @ d_w, atol=1e-5)
    np.testing.assert_allclose(sums.gradients["b"], d_w @ np.asarray(adapter["a"], np.float64).T, atol=1e-5)


class TwoHeads(eqx.Module):
    """A reward model and a head of one's own beside it."""

    model: rm.RewardModel
    length: jax.Array


def two_heads(model, batch):
    hidden = rm.hidden_states(model.model, batch)
    first, second = apply_head(hidden, model.model.score)[..., 0], apply_head(hidden, model.length)[..., 0]
    loss, rewards = pairwise(first + second, batch)
    return loss, rewards, {"second": (second[..., 0] - second[..., 1]) ** 2}


def new_two_heads():
    return TwoHeads(new_model(), jnp.full((1, 16), 0.25))


@pytest.mark.long
@pytest.mark.gate
def test_a_head_of_ones_own_trains_and_its_metric_is_the_mean_of_comparisons(comparisons):  # noqa: F811
    """A metric averaged over slots, rows or micro-batches would depend on how comparisons are packed."""
    optimizer, model = optax.sgd(0.1), new_two_heads()
    (batch,) = pack(comparisons, range(6), [ONE_A_ROW])
    values = np.asarray(jax.jit(two_heads)(model, batch)[2]["second"], np.float64)[batch.index >= 0]
    step = rm.jit_update(two_heads, optimizer)
    for batches in ([batch], pack(comparisons, range(6), [RowShape(rows=1, slots=2, regions=(32, 64, 64))])):
        state, metrics = step(rm.init_state(new_two_heads(), optimizer), batches)
        assert float(metrics["second"]) == pytest.approx(values.mean(), rel=1e-5)
        assert not np.allclose(state.model.length, model.length)


def test_metrics_of_an_objective_are_checked(comparisons):  # noqa: F811
    (batch,) = pack(comparisons, range(6), [ONE_ROW])

    def with_metric(name, value):
        objective = lambda model, batch: (*pairwise(rm.rewards(model, batch), batch), {name: value})  # noqa: E731
        jax.eval_shape(partial(rm.accumulate, None, objective=objective), new_model(), batch)

    with pytest.raises(TypeError, match=r"a metric 'mine' of shape \(1, 6\), found \(\)"):
        with_metric("mine", jnp.zeros(()))
    with pytest.raises(ValueError, match="'accuracy' is a name that every update has; rename it"):
        with_metric("accuracy", jnp.zeros((1, 6)))


@pytest.mark.parametrize("leaf", [jnp.arange(3), 1.0, "head"])
def test_what_cannot_be_trained_is_named(leaf):
    with pytest.raises(TypeError, match=r"^extra: expected a floating-point array, found .*; close the objective over"):
        rm.init_state({"model": jnp.zeros(2), "extra": leaf}, optax.sgd(0.1))
    with pytest.raises(TypeError, match="no arrays to train"):
        rm.init_state({}, optax.sgd(0.1))


@pytest.mark.long
def test_an_ensemble_is_the_update_of_each_under_vmap(comparisons):  # noqa: F811
    optimizer = optax.adam(1e-2)
    (batch,) = pack(comparisons, range(6), [ONE_ROW])
    objective = pairwise_objective()
    models = [rm.init_reward_model(CONFIG, key=jax.random.key(seed), head_std=0.5) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    step = partial(rm.update, batches=[batch], objective=objective, optimizer=optimizer)
    together, _ = jax.jit(jax.vmap(step))(jax.vmap(lambda model: rm.init_state(model, optimizer))(stacked))
    for number, model in enumerate(models):
        alone, _ = jax.jit(step)(rm.init_state(model, optimizer))
        moments = jax.tree.leaves(alone.opt_state), jax.tree.leaves(together.opt_state)
        for a, b in zip(*moments, strict=True):
            np.testing.assert_allclose(b[number], a, atol=1e-5)


def test_the_first_state_can_be_traced():
    optimizer = rm.adamw(1e-2)
    init = partial(rm.init_state, optimizer=optimizer)
    shapes, state = jax.eval_shape(init, new_model()), init(new_model())
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    jitted = jax.jit(init)(new_model())
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("as_tree", [pytest.param(True, marks=pytest.mark.long), False], ids=["a tree", "a closure"])
def test_an_adapter_trains_on_a_mesh_as_on_one_device(comparisons, as_tree):  # noqa: F811
    """The base stays spread over the mesh; adapters that are on no mesh go to every device."""
    mesh, optimizer = rm.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]), optax.adam(1e-2)
    (batch,), base = pack(comparisons, range(6), [ONE_A_ROW]), new_model()
    spread = rm.place_model(base, mesh)
    whole = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())), new_adapter())

    def on_mesh(base, adapter, batch):
        return pairwise(rm.rewards(merge(base, adapter), batch, rm.Compute(mesh=mesh)), batch)

    states = []
    make = jax.tree_util.Partial if as_tree else partial
    for objective, adapter, rows in (
        (make(adapted, base), new_adapter(), batch),
        (make(on_mesh, spread), whole, rm.place_batch(batch, mesh)),
    ):
        state, step = rm.init_state(adapter, optimizer), rm.jit_update(objective, optimizer)
        for _ in range(3):
            state, metrics = step(state, [rows])
        states.append((state, metrics))
    (alone, _), (together, _) = states
    assert together.model["a"].sharding.mesh == mesh
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_an_evaluation_takes_the_objective_of_the_training(comparisons):  # noqa: F811
    """A loss reported by evaluation that is not the one that is trained would mislead every choice made by it."""
    model, (batch,) = new_two_heads(), pack(comparisons, range(6), [ONE_A_ROW])
    found = rm.evaluate(model, comparisons, objective=two_heads, batch_size=4)
    loss, rewards, own = jax.tree.map(np.asarray, jax.jit(two_heads)(model, batch))
    used = batch.index >= 0
    assert found["loss"] == pytest.approx(loss[used].mean(), rel=1e-5)
    assert found["margin"] == pytest.approx((rewards[used][:, 0] - rewards[used][:, 1]).mean(), rel=1e-5)
    assert found["objective"] == {"second": pytest.approx(own["second"][used].mean(), rel=1e-5)}
