"""Training a part of a model: adapters, the last layers, the head alone; exact, on meshes too, and small on disk."""

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rm
from rm.data.comparisons import flatten
from rm.files.row_files import write_lines
from rm.model.adapters import TARGETS, Training, split_model
from rm.model.layers import Linear
from rm.model.tensor_names import leaf_name
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.planning.estimates import Case
from rm.planning.memory import optimizer_bytes
from rm.saving.examples import make_pair, write_llama
from rm.training import pairwise_objective

from .conftest import AS_USERS
from .test_sharding import CONFIG

pytestmark = pytest.mark.optax

SHAPE = RowShape(rows=8, slots=2, regions=(32, 32, 32))
OBJECTIVE = pairwise_objective()
DEMO = "--learning-rate 1e-3 --batch-size 32 --epochs 3 --warmup-ratio 0.1 --center-rewards-coefficient 0.01 --quiet"
ROOT = Path(rm.__file__).parents[1]
MESHES = [{"fsdp": 2, "tensor": 2}, {"data": 2, "context": 2}]


@pytest.fixture(scope="module")
def model():
    return rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.5)


def is_linear(node) -> bool:
    return isinstance(node, Linear)


@pytest.fixture(scope="module")
def adapted(model):
    """A model with adapters of rank 3, whose `B` is not zero."""
    with jax.numpy_dtype_promotion("standard"):
        return randomise(rm.add_lora(model, 3, 5.0, key=jax.random.key(1)))


def randomise(model):
    def draw(path, leaf):
        if not leaf_name(path).endswith("lora.b"):
            return leaf
        return jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape) * 0.2, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = [[rng.integers(1, 61, n).tolist() for n in rng.integers(2, 12, 2)] for _ in range(16)]
    return pack(flatten(ids, rng.normal(size=16).tolist(), CONFIG), range(16), [SHAPE])[0]


def merged_in_float64(model):
    """The model with `W + scale · B A` for `W`, summed by NumPy, layer by layer."""

    def merge(node):
        if not is_linear(node) or node.lora is None:
            return node
        low = np.asarray(node.lora.b, np.float64) @ np.asarray(node.lora.a, np.float64)
        weight = np.asarray(node.weight, np.float64) + node.lora.scale * low
        return Linear(jnp.asarray(weight, jnp.float32), node.bias)

    return jax.tree.map(merge, model, is_leaf=is_linear)


def test_an_adapter_adds_its_product_to_the_weight(adapted, model, batch):
    """Merged by NumPy, by `merge_lora`, or not at all, the rewards are the same; and other than without the adapter."""
    assert adapted.last_block.q_proj.lora.scale == pytest.approx(5 / 3)
    forward = jax.jit(rm.rewards)
    expected, found = forward(merged_in_float64(adapted), batch), forward(adapted, batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(forward(rm.merge_lora(adapted), batch), expected, atol=1e-5)
    assert np.abs(found - forward(model, batch)).max() > 0.1


def test_new_adapters_change_nothing_and_are_drawn_as_by_peft(model):
    new = rm.add_lora(model, 4, targets=("q", "down"), key=jax.random.key(0), rslora=True)
    lora = new.blocks.down_proj.lora
    assert lora.scale == 8 / 4**0.5
    assert not np.any(lora.b)
    assert new.blocks.k_proj.lora is None
    bound = CONFIG.intermediate_size**-0.5  # kaiming_uniform with a = √5, torch's default for linear layers
    assert 0.9 * bound < np.abs(lora.a).max() <= bound
    assert lora.a.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def gradients_of(model, batch, objective=OBJECTIVE):
    return jax.jit(partial(rm.accumulate, None, objective=objective))(model, batch).gradients


@pytest.mark.long
@pytest.mark.gate
def test_gradients_are_those_of_the_chain_rule(adapted, batch):
    """`dA = s Bᵀ dW` and `dB = s dW Aᵀ`, with `dW` of the merged model; nothing else has a gradient."""
    trained, frozen = eqx.partition(adapted, rm.trainable(adapted))
    found = gradients_of(trained, batch, rm.with_frozen(pairwise_objective(), frozen))
    whole = gradients_of(merged_in_float64(adapted), batch)
    assert found.embed_tokens is None
    assert found.blocks.q_proj.weight is None
    np.testing.assert_allclose(found.score, whole.score, atol=1e-5)
    for place in ("blocks", "last_block"):
        for name in TARGETS:
            d_w = np.asarray(getattr(getattr(whole, place), f"{name}_proj").weight, np.float64)
            layer = getattr(getattr(adapted, place), f"{name}_proj").lora
            mine = getattr(getattr(found, place), f"{name}_proj").lora
            a, b = np.asarray(layer.a, np.float64), np.asarray(layer.b, np.float64)
            np.testing.assert_allclose(mine.a, layer.scale * b.swapaxes(-1, -2) @ d_w, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(mine.b, layer.scale * d_w @ a.swapaxes(-1, -2), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("sizes", [pytest.param(MESHES[0], marks=pytest.mark.gate), MESHES[1]], ids=str)
def test_adapters_on_a_mesh_have_the_rewards_and_gradients_of_one_device(adapted, batch, sizes):
    mesh = rm.make_mesh(**sizes, devices=jax.devices()[:4])
    spread, compute = rm.place_model(adapted, mesh), rm.Compute(mesh=mesh)
    expected = gradients_of(*split(adapted, batch))
    found = gradients_of(*split(spread, batch, pairwise_objective(0.0, compute)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max(), err_msg=leaf_name(path))


def split(model, batch, objective=OBJECTIVE):
    trained, frozen = eqx.partition(model, rm.trainable(model))
    return trained, batch, rm.with_frozen(objective, frozen)


def test_added_on_a_mesh_they_are_the_same_and_spread(model):
    mesh = rm.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    alone, spread = (rm.add_lora(m, 4, key=jax.random.key(1)) for m in (model, rm.place_model(model, mesh)))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(a, b)
    local = {name: getattr(spread.last_block, f"{name}_proj").lora for name in ("q", "down")}
    assert {
        name: (x.a.addressable_shards[0].data.shape, x.b.addressable_shards[0].data.shape) for name, x in local.items()
    } == {
        "q": ((2, 32), (8, 4)),  # its 32 features out go over tensor and fsdp, the rank over fsdp
        "down": ((2, 24), (16, 4)),  # its 48 features in go over tensor
    }


@pytest.mark.parametrize(
    "training",
    [Training(lora_rank=2), Training(lora_rank=2, freeze_layers=1), Training(freeze_layers=2), Training(part="head")],
    ids=["adapters", "adapters of the last layers", "the last layer", "the head"],
)
@pytest.mark.long
def test_what_does_not_train_stays_bitwise_and_the_rest_moves(model, batch, training):
    trained, frozen = split_model(jax.tree.map(jnp.copy, model), training, key=jax.random.key(1))
    before = jax.tree.map(np.asarray, (trained, frozen))
    optimizer = rm.adamw(1e-2)
    step = rm.jit_update(rm.with_frozen(pairwise_objective(), frozen), optimizer)
    state = rm.init_state(trained, optimizer)
    for _ in range(2):
        state, metrics = step(state, [batch])
    assert np.isfinite(metrics["loss"])
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(before[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state.model), jax.tree.leaves(before[0]), strict=True):
        assert not np.array_equal(a, b), leaf_name(path)
    assert {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state[1][0].mu)} == {
        leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)
    }


def test_the_part_that_trains():
    model = rm.init_reward_model(CONFIG, key=jax.random.key(0))

    def names(training):
        trained, _ = split_model(model, training, key=jax.random.key(1))
        return {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)}

    every = names(Training())
    assert every == {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)}
    assert names(Training(part="head")) == {"score"}
    assert names(Training(lora_rank=1, lora_targets=("q", "up"))) == {"score"} | {
        f"{place}.{name}_proj.lora.{factor}"
        for place in ("blocks", "last_block")
        for name in ("q", "up")
        for factor in "ab"
    }
    assert names(Training(freeze_layers=1)) == every - {"embed_tokens"}
    last = {name for name in every if name.startswith(("last_block.", "norm", "score"))}
    assert names(Training(freeze_layers=2)) == last


@pytest.mark.long
def test_frozen_layers_leave_rewards_and_other_gradients_as_they_were(model, batch):
    frozen = rm.freeze_layers(model, 1)
    np.testing.assert_allclose(jax.jit(rm.rewards)(frozen, batch), jax.jit(rm.rewards)(model, batch), atol=1e-6)
    found, whole = gradients_of(*split(frozen, batch)), gradients_of(model, batch)
    np.testing.assert_allclose(found.blocks.up_proj.weight, whole.blocks.up_proj.weight[1:], atol=1e-5)
    np.testing.assert_allclose(found.last_block.k_proj.weight, whole.last_block.k_proj.weight, atol=1e-5)
    joined = rm.merge_lora(frozen)
    for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_base_in_bfloat16_has_adapters_in_float32(batch):
    base = rm.init_reward_model(CONFIG, key=jax.random.key(0), dtype=jnp.bfloat16)
    adapted = randomise(rm.add_lora(base, 2, key=jax.random.key(1)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(eqx.filter(adapted, rm.trainable(adapted)))} == {"float32"}
    assert rm.merge_lora(adapted).last_block.q_proj.weight.dtype == jnp.bfloat16
    forward = jax.jit(partial(rm.rewards, compute=rm.Compute(dtype="bfloat16")))
    np.testing.assert_allclose(forward(adapted, batch), jax.jit(rm.rewards)(adapted, batch), atol=0.2)


@pytest.mark.long
@pytest.mark.gate
def test_a_checkpoint_holds_what_trains_and_goes_on_bitwise(adapted, batch, tmp_path):
    optimizer = rm.adamw(1e-2)
    trained, frozen = eqx.partition(jax.tree.map(jnp.copy, adapted), rm.trainable(adapted))
    step = rm.jit_update(rm.with_frozen(pairwise_objective(), frozen), optimizer)
    state, _ = step(rm.init_state(trained, optimizer), [batch])
    with rm.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, state, {})
    undisturbed, _ = step(state, [batch])
    like = rm.init_state(eqx.filter(jax.tree.map(jnp.copy, adapted), rm.trainable(adapted)), optimizer)
    with rm.Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        restored, _ = checkpoints.restore(1, like)
    resumed, _ = step(restored, [batch])
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(undisturbed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "training", [Training(), Training(lora_rank=2), Training(freeze_layers=2), Training(part="head")]
)
def test_the_optimizer_keeps_as_many_bytes_as_planned(model, training):
    trained, _ = split_model(model, training, key=jax.random.key(0))
    state = rm.init_state(jax.tree.map(jnp.copy, trained), rm.adamw(1e-3))
    case = Case(config=CONFIG, mesh={}, rows=8, max_length=64, part=training)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)) == optimizer_bytes(case)


def test_what_cannot_be_asked_for_is_one_line(model, adapted):
    for call, expected in {
        lambda: rm.add_lora(model, 0, key=jax.random.key(0)): "rank must be at least 1, found 0",
        lambda: rm.add_lora(model, 1, targets=("q_proj",), key=jax.random.key(0)): "found q_proj",  # pyright: ignore
        lambda: rm.add_lora(model, 1, targets=(), key=jax.random.key(0)): "found none",
        lambda: rm.add_lora(adapted, 1, key=jax.random.key(0)): "has adapters already; merge_lora",
        lambda: rm.freeze_layers(model, 3): "from 1 to 2, all but the last, found 3",
        lambda: rm.freeze_layers(rm.freeze_layers(model, 1), 1): "has frozen layers already",
    }.items():
        with pytest.raises(rm.ConfigError, match=expected) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.long
def test_adapters_learn_the_task_of_the_demo_as_the_whole_model_does(tmp_path):
    """Adapters would train, and learn less than they can; at 0.99 of 500 held-out pairs both have understood."""
    rng = random.Random(0)
    pairs = [make_pair(rng) for _ in range(3000)]
    write_lines(tmp_path / "train.jsonl", pairs[:2500])
    write_lines(tmp_path / "test.jsonl", pairs[2500:])
    (tmp_path / "llama").mkdir()
    write_llama(tmp_path / "llama", [text["content"] for pair in pairs for part in pair.values() for text in part])
    fixed = f"--model llama --dataset train.jsonl --eval-dataset test.jsonl {DEMO}".split()
    accuracy = {}
    for name, own in {"whole": "", "adapters": "--lora-rank 32"}.items():
        command = [sys.executable, "-m", "rm", "train", *fixed, "--output", name, *own.split()]
        env = AS_USERS | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=600)
        accuracy[name] = json.loads((tmp_path / name / "run.json").read_text())["evaluation"]["eval_test_accuracy"]
    assert min(accuracy.values()) >= 0.99, accuracy
