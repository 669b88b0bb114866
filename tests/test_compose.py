"""What researchers put around the functions of rm gives what it should, or is refused in one line that says why."""

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rm
from rm.data.comparisons import flatten
from rm.devices.program_cache import remove_damaged
from rm.training.offload import keep_on_host
from rm.training.rounding import keep_moments
from rm.training.step import Sums

from .conftest import shared

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import compose
import compositions

pytestmark = pytest.mark.optax
SHORT = ("a loss of my own", "jvp of the fast forward")  # of every kind of cell
GATE = (
    "momo",
    "the hessian of the head",
    "a hessian product forward over reverse",
    "updates in lax scan",
)


def marks(name: str) -> list:
    return [] if name in SHORT else [pytest.mark.long, *[pytest.mark.gate] * (name in GATE)]


@pytest.mark.parametrize("on_mesh", [False, True], ids=["one device", "mesh of four"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in compositions.COMPOSITIONS])
def test_a_composition_equals_its_reference_or_is_refused(name, on_mesh):
    """The cells of benchmarks/compose.py."""
    text, good = compose.run(name, on_mesh)
    assert good, text


def test_a_model_is_shown_by_treescope():
    """In a notebook it would be pages of numbers."""
    treescope = pytest.importorskip("treescope", reason="needs `treescope` (extra `dev`)")
    shown = treescope.render_to_text(compositions.ONE.model())
    assert len(shown.splitlines()) < 60
    assert "float32(64, 16)" in shown


def test_the_table_of_compositions_reports_what_is_far(monkeypatch):
    """A difference would pass for equality."""
    cases = {
        "far": compositions.Composition(lambda place: (np.ones(2), np.full(2, 2.0)), 0.1, None, None),
        "not refused": compositions.Composition(lambda place: (np.ones(2), np.ones(2)), 0.1, "never", "never"),
        "not finite": compositions.Composition(
            lambda place: ([1.0, np.full(2, np.nan)], [1.0, np.ones(2)]), 0.1, None, None
        ),
        "of another shape": compositions.Composition(lambda place: (1.0, np.ones(2)), 0.1, None, None),
    }
    monkeypatch.setattr(compose, "COMPOSITIONS", cases)
    assert [compose.run(name, False) for name in cases] == [
        ("5e-01 BEYOND 1e-01", False),
        ("0e+00 BEYOND 1e-01", False),
        ("nan BEYOND 1e-01", False),
        ("inf BEYOND 1e-01", False),
    ]


# Sums in float32


def embedding_gradient(model: rm.RewardModel, batch: rm.PreferenceBatch, mesh=None) -> np.ndarray:
    def loss(model):
        r = rm.rewards(model, batch, rm.Compute(mesh=mesh))
        return jnp.sum(rm.pairwise_loss(r[..., 0], r[..., 1]), where=batch.mask)

    return np.asarray(jax.jit(jax.grad(loss))(model).embed_tokens, np.float64)


def assert_rows_near(found: np.ndarray, expected: np.ndarray) -> None:
    rows = np.linalg.norm(expected, axis=1)
    np.testing.assert_array_less(np.linalg.norm(found - expected, axis=1), 1e-2 * rows + 1e-7 * rows.max())


@pytest.mark.parametrize(
    "sizes",
    [
        None,
        {"fsdp": 2, "tensor": 2},
        pytest.param({"data": 2, "context": 2}, marks=[pytest.mark.long, pytest.mark.gate]),
    ],
)
def test_the_gradient_of_a_token_that_occurs_often_is_not_lost(sizes):
    """In bfloat16 a sum of equal terms stops growing at 256; tokens that occur in every text would not be trained."""
    rng = np.random.default_rng(0)
    sides = [[np.append(k, rng.permutation([7] * 500 + list(range(8, 60)))) for k in (1, 2)] for _ in range(4)]
    config = dataclasses.replace(compositions.CONFIG, num_hidden_layers=2)
    plan = rm.plan_batches(flatten(sides, [0.0] * 4, config), 4, rows=4)
    model = rm.init_reward_model(config, key=jax.random.key(0), dtype=jnp.bfloat16, head_std=0.5)
    ((batch, *more),), wide = (plan.batch_at(0),), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    assert not more
    assert (batch.tokens == 7).sum() == 4000
    expected = embedding_gradient(wide, batch)
    if sizes is None:
        assert_rows_near(embedding_gradient(model, batch), expected)
        return
    mesh = rm.make_mesh(**sizes, devices=jax.devices()[:4])
    assert_rows_near(embedding_gradient(rm.place_model(model, mesh), rm.place_batch(batch, mesh), mesh), expected)


@pytest.mark.long
def test_the_gradient_of_the_embedding_on_real_text():
    """Real texts repeat their tokens as no random ones do."""
    path = shared("models/stories260K")
    model, tokenizer = rm.match_tokenizer(
        rm.load_reward_model(path, key=jax.random.key(0), dtype=jnp.bfloat16), rm.load_tokenizer(path)
    )
    rows = rm.load_comparisons(str(shared("data/hh-rlhf/harmless-base.raw.jsonl.gz")), split="train[:64]")
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config)
    (batch, *_) = rm.plan_batches(comparisons, 32).batch_at(0)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    assert_rows_near(embedding_gradient(model, batch), embedding_gradient(wide, batch))


def test_weights_are_drawn_in_float32_and_rounded():
    """Drawn in bfloat16, they have 128 values and end at 2.9 deviations."""
    narrow, wide = (
        rm.init_reward_model(compositions.CONFIG, key=jax.random.key(0), dtype=dtype)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_array_equal(a, b.astype(a.dtype))


# Optimizers


def test_adafactor_scales_every_layer_by_its_own_size():
    """The stack would be one array to it: small layers would move as far as large ones."""
    scales = np.array([0.1, 1.0, 4.0], np.float32)
    noise = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    weights = scales[:, None, None] * noise[0]
    params = {"blocks": {"weight": jnp.asarray(weights)}}
    optimizer = rm.make_optimizer("adafactor", 1e-2, max_grad_norm=None)
    updates, _ = optimizer.update({"blocks": {"weight": jnp.asarray(noise[1])}}, optimizer.init(params), params)
    sizes, own = (np.sqrt(np.mean(np.square(x), axis=(1, 2))) for x in (updates["blocks"]["weight"], weights))
    np.testing.assert_allclose(sizes, 1e-2 * own, rtol=1e-4)  # the first update: the rate times the root mean square


def test_layers_that_are_not_stacked_are_told_from_those_that_are():
    """Rows of a matrix would be taken for layers."""
    factored = optax.adafactor(1e-2, min_dim_size_to_factor=8)
    listed = {"blocks": [{"weight": jnp.ones((8, 16))}, {"weight": jnp.ones((16, 8))}]}
    alone, wrapped = factored.init(listed), rm.per_layer(factored).init(listed)
    assert jax.tree.map(jnp.shape, wrapped.rest) == jax.tree.map(jnp.shape, alone)
    with pytest.raises(rm.ConfigError, match=r"expected one number of layers .* below 'blocks', found 3, 5; name"):
        rm.per_layer(factored).init({"blocks": {"a": jnp.ones((3, 8)), "b": jnp.ones((5, 8))}})


def test_adafactor_with_schedule_and_decay_equals_that_of_every_layer_also_where_updates_are_skipped():
    """Counts of schedules have a layer axis in the wrapped state; a skipped update must count in each."""
    rate = rm.learning_rate_schedule("linear", peak=1e-2, steps=6)
    rule = optax.adafactor(rate, weight_decay_rate=0.1, min_dim_size_to_factor=8)
    noise = np.random.default_rng(0).normal(size=(5, 2, 16, 16)).astype(np.float32)
    stacked, listed = {"blocks": {"w": noise[0]}}, [{"w": layer} for layer in noise[0]]
    states = [
        rm.init_state(jax.tree.map(jnp.array, tree), optimizer)
        for tree, optimizer in ((stacked, rm.per_layer(rule)), (listed, rule))
    ]
    for number, gradient in enumerate(noise[1:]):
        loss = {"loss": jnp.float32(np.nan if number == 1 else 1.0)}
        trees = {"blocks": {"w": jnp.array(gradient)}}, [{"w": jnp.array(layer)} for layer in gradient]
        states = [
            rm.apply_gradients(state, Sums(tree, loss, jnp.array(1)), optimizer)[0]
            for state, tree, optimizer in zip(states, trees, (rm.per_layer(rule), rule), strict=True)
        ]
    one, other = (state.model for state in states)
    np.testing.assert_allclose(one["blocks"]["w"], np.stack([layer["w"] for layer in other]), rtol=1e-5, atol=1e-7)
    assert not np.allclose(one["blocks"]["w"], noise[0], atol=1e-3)


@pytest.mark.parametrize("wrap", [keep_moments, keep_on_host, rm.per_layer])
def test_wrappers_pass_the_loss_on(wrap):
    """A schedule that watches the loss would fail where moments are bfloat16 or on the host."""
    plateau = optax.contrib.reduce_on_plateau(patience=1, factor=0.5, atol=10.0)
    optimizer = wrap(optax.chain(optax.sgd(1.0), plateau))
    params = {"blocks": {"w": jnp.ones((2, 2))}, "w": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params, value=jnp.float32(1.0))
    for leaf in jax.tree.leaves(updates):  # the loss has not fallen once: half the rate
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, -0.5))


@pytest.mark.long
def test_a_restored_state_with_moments_on_the_host_goes_on_in_a_loop(tmp_path):
    """In a process that has compiled nothing: the type of restored moments would say that they lie on the device."""
    script = (
        "import sys, jax, jax.numpy as jnp, optax, rm\n"
        "from rm.saving.checkpoints import abstract\nfrom rm.training.offload import keep_on_host\n"
        "rule = keep_on_host(optax.adam(0.1))\nstate = rm.init_state({'w': jnp.ones(3)}, rule)\n"
        "with rm.Checkpoints(sys.argv[1]) as checkpoints:\n"
        "    checkpoints.save(0, state, {})\n    checkpoints.wait()\n"
        "    _, state, _ = checkpoints.restore_newest(abstract(state), print)\n"
        "def body(state, _):\n"
        "    _, opt_state = rule.update(state.model, state.opt_state, state.model)\n"
        "    return rm.TrainState(state.step, state.model, opt_state), None\n"
        "state, _ = jax.jit(lambda state: jax.lax.scan(body, state, None, length=2))(state)\n"
        "print(state.opt_state.leaves[0][0].mu['w'].sharding.memory_kind)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "saved")], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1:] == ["pinned_host"], done.stderr


# Compiled programs on disk


@pytest.fixture
def cache_directory(tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_jax_calls_damaged_is_removed_and_said(cache_directory, caplog):
    for name in ("jit_step-0a-cache", "jit_step-0b-cache", "jit_step_more-0a-cache", "jit_a.b-0a-cache"):
        (cache_directory / name).touch()
    damaged = "Error reading persistent compilation cache entry for '{}': ZstdError: short"
    with caplog.at_level(logging.WARNING, "rm"):
        assert remove_damaged(damaged.format("jit_step"))
        assert remove_damaged(damaged.format("jit_a.b"))
        assert not remove_damaged(damaged.format("jit_gone")), "the warning of JAX stands"
        assert not remove_damaged("Error writing persistent compilation cache entry for 'jit_step': OSError: full")
    assert [path.name for path in cache_directory.iterdir()] == ["jit_step_more-0a-cache"]
    said = "its compiled program on disk is damaged; it is compiled and written again"
    assert caplog.messages == [f"jit_step: {said}", f"jit_a.b: {said}"]


def test_a_damaged_program_that_cannot_be_removed_ends_nothing(cache_directory, caplog):
    """A compilation would fail where JAX alone only warns: in a cache that is shared and read-only."""
    (cache_directory / "jit_step-0a-cache").mkdir()  # which `unlink` refuses
    with caplog.at_level(logging.WARNING, "rm"):
        assert not remove_damaged("Error reading persistent compilation cache entry for 'jit_step': ZstdError: short")
    assert "cannot be removed" in caplog.text


@pytest.mark.long
def test_a_damaged_program_is_compiled_once_and_replaced(tmp_path):
    """JAX would compile it in every later process, for it does not write over a file."""
    script = (
        "import collections, sys, jax, rm\nevents = collections.Counter()\n"
        "jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))\n"
        "rm.keep_compiled(sys.argv[1])\njax.jit(lambda x: 3 * x + 1)(2.0)\n"
        "print(events['/jax/compilation_cache/cache_misses'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def misses() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300
        )
        return int(done.stdout), done.stderr

    assert misses() == (1, "")
    (program,) = tmp_path.glob("*-cache")
    program.write_bytes(program.read_bytes()[:100])
    found, said = misses()
    assert found == 1
    assert "its compiled program on disk is damaged" in said
    assert misses() == (0, "")
