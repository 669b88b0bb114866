"""The update: exact under any packing, one compilation a shape, the optimizer as the books have it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rm
from rm.data.comparisons import flatten
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.training.optimizers import decay_mask
from rm.training.step import Sums

pytestmark = pytest.mark.optax

CONFIG = rm.LlamaConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    attention_bias=True,
    initializer_range=0.2,
)


def new_model() -> rm.RewardModel:
    return rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.5)


@pytest.fixture(scope="module")
def comparisons():
    rng = np.random.default_rng(0)
    ids = [[rng.integers(1, 61, n).tolist() for n in rng.integers(2, 12, 2)] for _ in range(6)]
    return flatten(ids, rng.normal(size=6).tolist(), CONFIG)


def objective(model, batch):
    rewards = rm.rewards(model, batch)
    chosen, rejected = rewards[..., 0], rewards[..., 1]
    loss = rm.pairwise_loss(chosen, rejected, batch.margin) + 0.1 * rm.centering_penalty(chosen, rejected)
    return loss, rewards


def updated(batches, objective, optimizer):
    """A new state after one pure update, jitted at the edge."""
    return jax.jit(partial(rm.update, objective=objective, optimizer=optimizer))(
        rm.init_state(new_model(), optimizer), batches
    )


@pytest.fixture(scope="module")
def step():
    """One jitted update for several tests, so that its parts are compiled once."""
    return rm.jit_update(objective, rm.adamw(1e-2))


SHAPES = {
    "all in one row": RowShape(rows=1, slots=6, regions=(32, 96, 96)),
    "one a row": RowShape(rows=6, slots=1, regions=(32, 32, 32)),
    "micro-batches with empty rows": RowShape(rows=4, slots=1, regions=(32, 32, 32)),
    "one a micro-batch": RowShape(rows=1, slots=1, regions=(32, 32, 32)),
}


@pytest.mark.long
@pytest.mark.gate
def test_an_update_does_not_depend_on_the_packing(comparisons, step):
    states = {}
    for name, shape in SHAPES.items():
        states[name] = step(rm.init_state(new_model(), rm.adamw(1e-2)), pack(comparisons, range(6), [shape]))
    reference, metrics = states["all in one row"]
    for name, (state, other) in states.items():
        for key, value in metrics.items():
            assert other[key] == pytest.approx(float(value), rel=1e-4, abs=1e-5), (name, key)
        # Adam divides by |g|, so the first moments are compared rather than the parameters
        for a, b in zip(jax.tree.leaves(reference.opt_state), jax.tree.leaves(state.opt_state), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, float(jnp.abs(a).max())), err_msg=name)


@pytest.mark.long
def test_a_micro_batch_without_comparisons_changes_nothing(comparisons):
    """A process may have empty rows alone; its NaN means must not spread."""
    (batch,) = pack(comparisons, range(6), [SHAPES["all in one row"]])
    empty = dataclasses.replace(batch, index=np.full_like(batch.index, -1), segments=np.zeros_like(batch.segments))
    optimizer = optax.sgd(0.1)
    alone, metrics = updated([batch], objective, optimizer)
    for batches in ([empty, batch], [batch, empty]):
        state, other = updated(batches, objective, optimizer)
        assert {name: float(value) for name, value in other.items()} == pytest.approx(
            {name: float(value) for name, value in metrics.items()}
        )
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.mark.long
def test_pure_and_jitted_update_agree(comparisons):
    optimizer = optax.sgd(0.1)
    batches = pack(comparisons, range(3), [SHAPES["one a micro-batch"]])  # the first, the last and one between
    pure, pure_metrics = updated(batches, objective, optimizer)
    fast, fast_metrics = rm.jit_update(objective, optimizer)(rm.init_state(new_model(), optimizer), batches)
    assert int(pure.step) == int(fast.step) == 1
    for a, b in zip(jax.tree.leaves((pure, pure_metrics)), jax.tree.leaves((fast, fast_metrics)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_a_step_equals_clipped_adamw_in_float64():
    """Loshchilov & Hutter's algorithm 2 written out in NumPy, after clipping to the global norm."""
    model = new_model()
    leaves, structure = jax.tree.flatten(model)
    g = [np.random.default_rng(i).normal(size=leaf.shape) for i, leaf in enumerate(leaves)]
    gradients = jax.tree.unflatten(structure, [jnp.asarray(6 * x, jnp.float32) for x in g])
    sums = Sums(gradients, metrics={"loss": jnp.array(0.7)}, comparisons=jnp.array(6))
    optimizer = rm.adamw(1e-2, weight_decay=0.1, max_grad_norm=0.05)
    apply = jax.jit(partial(rm.apply_gradients, optimizer=optimizer))
    state, metrics = apply(rm.init_state(model, optimizer), sums)

    norm = np.sqrt(sum((leaf**2).sum() for leaf in g))
    assert norm > 0.05
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)  # what it was before clipping
    for p, x, decays, new in zip(*map(jax.tree.leaves, (model, g, decay_mask(model), state.model)), strict=True):
        clipped = x * 0.05 / norm
        m, v = 0.1 * clipped / (1 - 0.9), 0.001 * clipped**2 / (1 - 0.999)
        expected = p - 1e-2 * (m / (np.sqrt(v) + 1e-8) + 0.1 * decays * p)
        np.testing.assert_allclose(new, expected, atol=1e-6)


def test_norms_and_biases_do_not_decay():
    mask = decay_mask(new_model())
    assert [mask.embed_tokens, mask.score, mask.blocks.q_proj.weight, mask.last_block.down_proj.weight] == [True] * 4
    assert [mask.norm, mask.blocks.input_layernorm, mask.blocks.q_proj.bias] == [False] * 3


def test_one_trace_for_each_batch_shape(comparisons):
    """More compilations than shapes would make a run with several shapes crawl."""
    traces = []

    def counting(model, batch):
        traces.append(batch.regions)
        return objective(model, batch)

    optimizer = rm.adamw(1e-3)
    step, state = rm.jit_update(counting, optimizer), rm.init_state(new_model(), optimizer)
    many, one = (pack(comparisons, range(6), [SHAPES[name]]) for name in ("one a micro-batch", "all in one row"))
    for batches in (many, one, many[:2], [*one, *many], many):
        state, _ = step(state, batches)
    assert len(traces) == 2
    assert int(state.step) == 5


def test_the_state_is_donated(comparisons, step):
    """Without donation an update would hold two copies of parameters and moments."""
    state = rm.init_state(new_model(), rm.adamw(1e-2))
    new, _ = step(state, pack(comparisons, [0], [SHAPES["one a row"]]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.model, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


@pytest.mark.long
def test_what_an_objective_returns_for_empty_slots_does_not_count(comparisons):
    """The value is an argument, so that both updates are one program: another may add in another order."""

    def with_rubbish(model, batch, rubbish):
        loss, rewards = objective(model, batch)
        return jnp.where(batch.mask, loss, rubbish), rewards

    @jax.jit
    def updated_with(state, batches, rubbish):
        return rm.update(state, batches, partial(with_rubbish, rubbish=rubbish), optimizer)

    optimizer = optax.sgd(0.1)
    batches = pack(comparisons, range(6), [SHAPES["micro-batches with empty rows"]])
    usual, _ = updated(batches, objective, optimizer)
    clean, _ = updated_with(rm.init_state(new_model(), optimizer), batches, jnp.float32(0.5))
    dirty, metrics = updated_with(rm.init_state(new_model(), optimizer), batches, jnp.float32(jnp.inf))
    assert np.isfinite(float(metrics["loss"]))
    for a, b, c in zip(*map(jax.tree.leaves, (clean, dirty, usual)), strict=True):
        np.testing.assert_array_equal(b, a)
        np.testing.assert_allclose(b, c, rtol=1e-5, atol=1e-7)


def test_an_objective_of_the_wrong_shape_is_refused(comparisons):
    def per_row(model, batch):
        loss, rewards = objective(model, batch)
        return loss.mean(axis=1), rewards

    optimizer = optax.sgd(0.1)
    with pytest.raises(TypeError, match=r"shape \(1, 6\)"):
        updated(pack(comparisons, range(6), [SHAPES["all in one row"]]), per_row, optimizer)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("linear", {}, [8.0, 6.0, 4.0, 2.0]),
        ("linear", {"end": 4.0}, [8.0, 7.0, 6.0, 5.0]),
        ("linear", {"warmup_steps": 2}, [0.0, 4.0, 8.0, 4.0]),
        ("constant", {"warmup_steps": 1}, [0.0, 8.0, 8.0, 8.0]),
        ("cosine", {}, [8.0, 4 + 4 * 2**-0.5, 4.0, 4 - 4 * 2**-0.5]),
        ("cosine", {"end": 4.0}, [8.0, 6 + 2 * 2**-0.5, 6.0, 6 - 2 * 2**-0.5]),
    ],
)
def test_schedules(kind, options, expected):
    schedule = rm.learning_rate_schedule(kind, peak=8.0, steps=4, **options)
    np.testing.assert_allclose([float(schedule(step)) for step in range(4)], expected, rtol=1e-6)


def test_an_update_over_nothing_is_refused():
    optimizer = optax.sgd(0.1)
    for step in (partial(rm.update, objective=objective, optimizer=optimizer), rm.jit_update(objective, optimizer)):
        with pytest.raises(ValueError, match="at least one batch"):
            step(rm.init_state(new_model(), optimizer), [])


@pytest.mark.long
def test_low_precision_parameters_keep_the_types_of_the_state(comparisons):
    """Moments that changed their type at the first update would compile twice and be rounded on restoring."""
    optimizer = rm.adamw(1e-3)
    model = rm.init_reward_model(CONFIG, key=jax.random.key(0), dtype=jnp.bfloat16)
    before = rm.init_state(model, optimizer)
    types = [leaf.dtype for leaf in jax.tree.leaves(before)]
    after, _ = rm.jit_update(objective, optimizer)(before, pack(comparisons, [0], [SHAPES["one a row"]]))
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == types
