"""Optimizers and what they keep in bfloat16, against optax itself and against arithmetic done by hand."""

import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon

import rm
from rm.commands.train import TrainArguments, training_optimizer
from rm.training.offload import keep_on_host
from rm.training.rounding import add_updates, keep_moments, stochastic_round
from rm.training.step import Sums

CONFIG = rm.LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
NAMES = ("adamw", "lion", "muon", "adafactor")
pytestmark = pytest.mark.optax


def model(dtype=jnp.float32) -> rm.RewardModel:
    return rm.init_reward_model(CONFIG, key=jax.random.key(0), dtype=dtype)


def gradients(seed: int = 1):
    leaves, structure = jax.tree.flatten(model())
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_rounding_takes_a_neighbour_and_is_right_on_average():
    """Small changes would be lost, or the parameters would drift."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-10, 10).repeat(10), jnp.float32)
    rounded = jax.jit(stochastic_round)
    drawn = np.stack([rounded(x, key).astype(jnp.float32) for key in jax.random.split(jax.random.key(0), 2000)])
    low = np.asarray(x).view(np.uint32) & 0xFFFF0000
    neighbours = np.stack([low.view(np.float32), (low + 0x10000).view(np.float32)])
    assert np.all((drawn == neighbours[0]) | (drawn == neighbours[1]))
    gap = np.abs(neighbours[1] - neighbours[0])
    assert np.max(np.abs(drawn.astype(np.float64).mean(0) - np.asarray(x, np.float64)) / gap) < 5 * 0.5 / np.sqrt(2000)


def test_rounding_leaves_alone_what_bfloat16_holds():
    """A frozen or infinite value would be changed by a step that does not change it."""
    x = jnp.array([0.0, -0.0, 1.0, -2.5, jnp.inf, -jnp.inf, jnp.nan, 3.0e38], jnp.float32)
    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    for seed in range(50):
        np.testing.assert_array_equal(stochastic_round(x, jax.random.key(seed)).astype(jnp.float32), x)


def test_parameters_in_bfloat16_take_steps_smaller_than_their_grid():
    """Training in bfloat16 would stand still: nearest rounding loses every step under 1/256 of a weight."""
    start = {"w": jnp.ones(4096, jnp.bfloat16)}
    step = {"w": jnp.full(4096, 1e-4)}
    moved, add = start, jax.jit(add_updates)
    for number in range(100):
        moved = add(moved, step, jnp.asarray(number))
    assert moved["w"].dtype == jnp.bfloat16
    assert float(moved["w"].astype(jnp.float32).mean()) == pytest.approx(1.01, abs=3e-4)
    assert float(optax.apply_updates(start, step)["w"].mean()) == 1.0  # what it would be without


def test_a_second_moment_in_bfloat16_follows_the_float32_one():
    """AdamW would divide by a moment that stopped moving: its decay is 1/1000, the grid of bfloat16 1/256."""
    optimizer, kept = optax.adam(1e-3), keep_moments(optax.adam(1e-3))
    parameter, gradient = jnp.ones(4096), jnp.full(4096, 0.1)
    state, small = optimizer.init(parameter), kept.init(parameter)
    update, update_kept = jax.jit(optimizer.update), jax.jit(kept.update)
    for _ in range(600):
        _, state = update(gradient, state)
        _, small = update_kept(gradient, small)
    exact = 0.01 * (1 - 0.999**600)
    assert float(state[0].nu.mean()) == pytest.approx(exact, rel=1e-3)
    assert small.state[0].nu.dtype == small.state[0].mu.dtype == jnp.bfloat16
    assert float(small.state[0].nu.astype(jnp.float32).mean()) == pytest.approx(exact, rel=0.01)
    nearest = jnp.zeros((), jnp.bfloat16)
    for _ in range(600):
        nearest = (0.999 * nearest.astype(jnp.float32) + 0.001 * 0.01).astype(jnp.bfloat16)
    assert float(nearest) < 0.7 * exact  # what nearest rounding would make of it


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("parameters", "moments"), [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_every_optimizer_learns(name, parameters, moments):
    """A combination that is offered would not train."""
    batch = rm.PreferenceBatch(
        tokens=jnp.array([[5, 6, 7, 8]]),
        segments=jnp.array([[1, 1, 1, 1]]),
        parts=jnp.array([[0, 0, 1, 2]]),
        positions=jnp.array([[0, 1, 2, 2]]),
        ends=jnp.array([[[2, 3]]]),
        index=jnp.array([[0]]),
        margin=jnp.zeros((1, 1)),
        regions=(2, 1, 1),
    )

    def objective(model, batch):
        r = rm.rewards(model, batch)
        return rm.pairwise_loss(r[..., 0], r[..., 1]), r

    rate = 0.3 if name == "adafactor" else 1e-2  # its rate is relative to the parameters
    optimizer = rm.make_optimizer(name, rate, moments=moments)
    state, step = rm.init_state(model(jnp.dtype(parameters)), optimizer), rm.jit_update(objective, optimizer)
    types = [leaf.dtype for leaf in jax.tree.leaves(state)]
    losses = []
    for _ in range(15):
        state, metrics = step(state, [batch])
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == types


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_decay_by_the_learning_rate(name, moments):
    """Adafactor's weights would shrink by a tenth in every update, as by optax's own decay, whatever the rate."""
    rates = rm.learning_rate_schedule("linear", peak=1e-2, steps=4)
    optimizer = rm.make_optimizer(name, rates, weight_decay=0.1, max_grad_norm=None, moments=moments)
    params = model()
    state, nothing = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    for rate in (1e-2, 0.75e-2, 0.5e-2):
        updates, state = optimizer.update(nothing, state, params)
        for part in ("blocks.q_proj.weight", "score", "embed_tokens"):
            moved, weight = (operator.attrgetter(part)(tree) for tree in (updates, params))
            np.testing.assert_allclose(moved, -rate * 0.1 * np.asarray(weight), rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(updates.norm, 0)


@pytest.mark.long
def test_muon_takes_every_matrix_of_the_stack_by_itself():
    """Layers would be orthogonalized together, or along the wrong axes."""
    optimizer = rm.make_optimizer("muon", 1e-2, max_grad_norm=None)
    stacked, _ = jax.jit(optimizer.update)(gradients(), optimizer.init(model()), model())
    alone = muon(1e-2, consistent_rms=0.2)
    for layer in range(CONFIG.num_hidden_layers - 1):
        for name in ("q_proj", "k_proj", "down_proj"):
            matrix = getattr(gradients().blocks, name).weight[layer].T  # Muon's own order is [in, out]
            expected, _ = alone.update({"w": matrix}, alone.init({"w": matrix}), {"w": matrix})
            np.testing.assert_allclose(getattr(stacked.blocks, name).weight[layer].T, expected["w"], atol=2e-5)


@pytest.mark.long
@pytest.mark.gate
def test_muon_leaves_the_rest_to_adamw():
    """The embedding and the head would be orthogonalized."""
    optimizer = rm.make_optimizer("muon", 1e-2, max_grad_norm=None)
    found, _ = jax.jit(optimizer.update)(gradients(), optimizer.init(model()), model())
    adam = optax.adamw(1e-2, weight_decay=0.0)
    expected, _ = jax.jit(adam.update)(gradients(), adam.init(model()), model())
    for name in ("embed_tokens", "norm", "score"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-8)


def test_adamw_takes_decay_rates_and_epsilon():
    """Three steps in float64, by Loshchilov & Hutter's algorithm 2; epsilon is as large as the moments here."""
    b1, b2, eps, rate, decay = 0.8, 0.95, 0.5, 1e-2, 0.1
    optimizer = rm.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay, max_grad_norm=None)
    state, update = optimizer.init(model()), jax.jit(optimizer.update)
    p = np.asarray(model().embed_tokens, np.float64)
    found, m, v = model(), np.zeros_like(p), np.zeros_like(p)
    for step in range(1, 4):
        updates, state = update(gradients(step), state, found)
        found = optax.apply_updates(found, updates)
        g = np.asarray(gradients(step).embed_tokens, np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        corrected = m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps)
        p = p - rate * (corrected + decay * p)
    np.testing.assert_allclose(found.embed_tokens, p, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "numbers", "line"),
    [
        ("lion", {"b2": 0.95}, "b2 0.95 has no effect on lion; leave it out, or take adamw or muon"),
        ("adafactor", {"eps": 1e-5}, "eps 1e-05 has no effect on adafactor; leave it out, or take adamw or muon"),
        ("adamw", {"b1": 1.0}, "b1 must be at least 0 and less than 1, found 1.0"),
        ("adamw", {"eps": 0.0}, "eps must be greater than 0, found 0.0"),
        ("muon", {"b2": float("nan")}, "b2 must be at least 0 and less than 1, found nan"),
    ],
)
def test_numbers_that_would_do_nothing_or_harm_are_refused(name, numbers, line):
    with pytest.raises(rm.ConfigError) as error:
        rm.make_optimizer(name, 1e-3, **numbers)
    assert str(error.value) == line


def test_decay_rates_may_be_traced():
    """`optax.inject_hyperparams` makes arrays of all numbers, which cannot be compared while they are traced."""
    optimizer = optax.inject_hyperparams(rm.adamw)(1e-2, b2=0.95)
    found, _ = jax.jit(optimizer.update)(gradients(), optimizer.init(model()), model())
    plain = rm.adamw(1e-2, b2=0.95)
    expected, _ = jax.jit(plain.update)(gradients(), plain.init(model()), model())
    np.testing.assert_allclose(found.embed_tokens, expected.embed_tokens, rtol=1e-5, atol=1e-8)


def test_muon_leaves_its_rest_the_numbers_of_adamw():
    """They would be taken, and have no effect."""
    numbers = {"b1": 0.5, "b2": 0.6, "eps": 0.1}
    optimizer = rm.make_optimizer("muon", 1e-2, **numbers, max_grad_norm=None)
    found, _ = jax.jit(optimizer.update)(gradients(), optimizer.init(model()), model())
    adam = optax.adamw(1e-2, **numbers, weight_decay=0.0)
    expected, _ = jax.jit(adam.update)(gradients(), adam.init(model()), model())
    np.testing.assert_allclose(found.embed_tokens, expected.embed_tokens, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"warmup_steps": 4}, [0.0, 0.25, 0.5, 0.75, 1.0, 0.9375]),
        ({"warmup_ratio": 0.2}, [0.0, 0.25, 0.5, 0.75, 1.0, 0.9375]),
        ({"warmup_steps": 0}, [1.0, 0.95]),
    ],
)
def test_the_rate_rises_over_a_share_or_a_number_of_updates(changes, rates):
    """By hand: 20 updates, of which 4 rise and 16 fall."""
    args = TrainArguments(model="m", dataset=("d",), output=Path("o"), learning_rate=1.0, **changes)
    schedule, _ = training_optimizer(args, 20)
    assert [float(schedule(step)) for step in range(len(rates))] == pytest.approx(rates)


@pytest.mark.parametrize("name", ["adamw", *(pytest.param(n, marks=pytest.mark.long) for n in NAMES if n != "adamw")])
def test_norms_and_biases_do_not_decay(name):
    """Weight decay would pull norms to zero."""
    plain, decaying = (rm.make_optimizer(name, 1e-2, weight_decay=decay) for decay in (0.0, 0.1))
    one, other = (o.update(gradients(), o.init(model()), model())[0] for o in (plain, decaying))
    np.testing.assert_array_equal(one.norm, other.norm)
    np.testing.assert_array_equal(one.blocks.input_layernorm, other.blocks.input_layernorm)
    assert not np.array_equal(one.blocks.q_proj.weight, other.blocks.q_proj.weight)
    assert not np.array_equal(one.embed_tokens, other.embed_tokens)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_mesh_changes_nothing_but_where_the_moments_lie(name, moments):
    """On many devices every one of them would keep all moments, or the steps would differ."""
    mesh = rm.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    optimizer = rm.make_optimizer(name, 1e-2, moments=moments)
    placed = rm.init_state(rm.place_model(model(), mesh), optimizer)
    alone = rm.init_state(model(), optimizer)
    sizes = [
        sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(s.opt_state)) for s in (placed, alone)
    ]
    if name != "adafactor":  # keeps almost nothing, whole
        assert sizes[0] < 0.3 * sizes[1]
    update = jax.jit(optimizer.update)
    found, _ = update(rm.place_model(gradients(), mesh), placed.opt_state, placed.model)
    expected, _ = update(gradients(), alone.opt_state, alone.model)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


RATE = optax.linear_schedule(0.1, 0.0, 8)
SCHEDULED = {
    "adam": optax.adam(RATE),
    "on the host": keep_on_host(optax.adam(RATE)),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(RATE),
    "apply_if_finite": optax.apply_if_finite(optax.adam(RATE), 9),
    "partition": optax.partition({"all": optax.adam(RATE)}, {"w": "all", "b": "all"}),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_follows_the_updates_of_the_run(name):
    """After skipped updates the log's learning rate was not the one used, and the schedule never came to its end.

    Against optax's Adam without a schedule on the good gradients alone, times the rate at every step of the run.
    """
    rng, skipped = np.random.default_rng(0), {2, 3, 6}
    model = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    state, expected = rm.init_state(model, SCHEDULED[name]), model
    plain, direction = optax.scale_by_adam(), optax.scale_by_adam().init(model)
    step = jax.jit(lambda state, sums: rm.apply_gradients(state, sums, SCHEDULED[name]))
    for number in range(8):
        gradient = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in model.items()}
        loss = jnp.array(np.nan if number in skipped else 0.5)
        state, metrics = step(state, Sums(gradient, {"loss": loss}, jnp.array(1)))
        assert float(metrics["skipped"]) == (number in skipped)
        if number not in skipped:
            change, direction = plain.update(gradient, direction)
            expected = jax.tree.map(lambda x, d, n=number: x - RATE(n) * d, expected, change)
        for leaf, value in zip(*map(jax.tree.leaves, (state.model, expected)), strict=True):
            np.testing.assert_allclose(leaf, value, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 8
    assert float(RATE(state.step)) == 0


def test_a_schedule_inside_of_multi_steps_follows_the_steps_taken():
    """Skipped updates would be counted there once for each accumulated gradient."""
    optimizer = optax.MultiSteps(optax.sgd(RATE), 2).gradient_transformation()
    state = rm.init_state({"w": jnp.zeros(1)}, optimizer)
    step = jax.jit(
        lambda state, loss: rm.apply_gradients(state, Sums({"w": jnp.ones(1)}, {"loss": loss}, jnp.array(1)), optimizer)
    )
    for loss in (0.5, np.nan, np.nan, 0.5, 0.5, np.nan, 0.5):
        state, _ = step(state, jnp.array(loss))
    assert int(state.step) == 7
    np.testing.assert_allclose(state.model["w"], -(0.1 + 0.0875), rtol=1e-6)


def test_multi_steps_belongs_inside_of_keep_on_host():
    """Around it, the first update would end in an error of JAX about memory spaces."""
    model = {"w": jnp.linspace(0.5, 1.0, 4)}
    around = optax.MultiSteps(rm.make_optimizer("adamw", 0.1, offload=True), 2).gradient_transformation()
    with pytest.raises(rm.ConfigError, match=r"MultiSteps is around keep_on_host .*; put keep_on_host"):
        rm.init_state(model, around)
    optimizer = keep_on_host(optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation())
    state = rm.init_state(model, optimizer)
    sums = Sums({"w": jnp.ones(4)}, {"loss": jnp.array(0.5)}, jnp.array(1))
    step = jax.jit(
        lambda state: rm.apply_gradients(state, sums, optimizer)[0],
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    np.testing.assert_allclose(step(step(state)).model["w"], np.linspace(0.5, 1.0, 4) - 0.1, rtol=1e-5)  # one of Adam
