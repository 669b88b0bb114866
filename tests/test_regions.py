"""The layouts are exact: packed rows with shared prefixes give what each sequence gives alone."""

import dataclasses
import functools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rm
from rm.data.comparisons import TokenizedComparisons, flatten
from rm.model.layers import transposed
from rm.packing.fit_shapes import fit_row_shapes
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack

from .test_backbones import LONGROPE

CONFIG = rm.LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
)
DYNAMIC = dataclasses.replace(CONFIG, rope=rm.Rope(type="dynamic", factor=2.0), max_position_embeddings=12)
QWEN3 = dataclasses.replace(CONFIG, model_type="qwen3", sliding_window=5, rope=LONGROPE)


def odd_comparisons(K: int, seed: int = 0) -> list[list[list[int]]]:
    """K token sequences each: ordinary ones and every odd case that the layout must survive."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return rng.integers(1, CONFIG.vocab_size, length).tolist()

    prompt, response = ids(9), ids(8)
    odd = [
        [[k + 1, *ids(4)] for k in range(K)],  # no common prefix
        [prompt + response[: K - k] for k in range(K)],  # each a prefix of the one before
        [prompt[:4] + response[:k] for k in range(K)],  # the first is the prefix
        [[*prompt, 90 + k] for k in range(K)],  # responses of a single token
        [[50 + k] for k in range(K)],  # nothing but a single token
        [prompt] * K,  # identical
    ]
    return odd + [[prompt[:n] + ids(m) for m in rng.choice([1, 5, 8], K)] for n in (0, 4, 9, 9)]


@jax.jit
@partial(jax.value_and_grad, argnums=0)
def alone(model: rm.RewardModel, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """The reward of one sequence in a row of its own, and its gradient."""
    index = jnp.arange(tokens.shape[0])[None]
    batch = rm.PreferenceBatch(
        tokens=tokens[None],
        segments=(index < length).astype(int),
        parts=jnp.zeros_like(index),
        positions=index,
        ends=jnp.full((1, 1, 1), length - 1),
        index=jnp.zeros((1, 1), int),
        margin=jnp.zeros((1, 1)),
        regions=(tokens.shape[0],),
    )
    return rm.rewards(model, batch, rm.Compute(remat="none", attention="xla"))[0, 0, 0]


@jax.jit
def add_scaled(total: rm.RewardModel, weight: jax.Array, new: rm.RewardModel) -> rm.RewardModel:
    return jax.tree.map(lambda a, b: a + weight * b, total, new)


def one_by_one(model, sequences, weights) -> tuple[np.ndarray, rm.RewardModel]:
    """Rewards `[B, K]` and the gradient of their weighted sum, from every sequence alone."""
    rewards, gradients = np.zeros(weights.shape), jax.tree.map(jnp.zeros_like, model)
    for at, weight in np.ndenumerate(weights):
        ids = np.asarray(sequences[at[0]][at[1]])
        rewards[at], gradient = alone(model, np.pad(ids, (0, -len(ids) % 12)), len(ids))  # two lengths to compile
        gradients = add_scaled(gradients, weight, gradient)
    return rewards, gradients


@partial(jax.jit, static_argnames=("attention", "dtype"))
@partial(jax.value_and_grad, has_aux=True)
def weighted(model, batch, weights, attention, dtype):
    """The weighted sum of a batch's rewards and its gradient, with the rewards themselves."""
    rewards = rm.rewards(model, batch, rm.Compute(attention=attention, dtype=dtype))
    return (weights[batch.index] * rewards).sum(where=batch.mask[..., None]), rewards


def packed(
    model, comparisons: TokenizedComparisons, shapes: Sequence[RowShape], weights, attention="xla", dtype=jnp.float32
) -> tuple[np.ndarray, rm.RewardModel]:
    """The same from packed rows."""
    rewards, gradients = np.zeros(weights.shape), jax.tree.map(jnp.zeros_like, model)
    for batch in pack(comparisons, range(len(comparisons)), shapes):
        (_, computed), gradient = weighted(model, batch, weights, attention, dtype)
        rows, slots = np.nonzero(batch.index >= 0)
        rewards[batch.index[rows, slots]] = np.asarray(computed)[rows, slots]
        gradients = add_scaled(gradients, 1.0, gradient)
    return rewards, gradients


@functools.cache
def reference(config: rm.LlamaConfig, K: int) -> tuple[rm.RewardModel, jax.Array, np.ndarray, rm.RewardModel]:
    """A model, weights, and the rewards and gradients one by one, which are the same for every layout."""
    model = rm.init_reward_model(config, key=jax.random.key(0), head_std=0.5)
    sequences = odd_comparisons(K)
    weights = jax.random.normal(jax.random.key(2), (len(sequences), K))
    return model, weights, *one_by_one(model, sequences, weights)


FORMS = {
    "regions": (CONFIG, True, "regions"),
    "whole": (CONFIG, True, "whole"),
    "unshared": (CONFIG, False, "regions"),
    "dynamic-regions": (DYNAMIC, True, "regions"),
    "dynamic-whole": (DYNAMIC, True, "whole"),
    "qwen3-regions": (QWEN3, True, "regions"),
    "qwen3-whole": (QWEN3, True, "whole"),
}
GATE = [("whole", 2), ("qwen3-regions", 2)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("K", "config", "share_prefix", "layout"),
    [
        pytest.param(K, *form, id=f"{name}-{K}", marks=[pytest.mark.gate] * ((name, K) in GATE))
        for name, form in FORMS.items()
        for K in (1, 2, 5)
    ],
)
def test_packed_rewards_and_gradients_equal_one_by_one(K, config, share_prefix, layout):
    sequences = odd_comparisons(K)
    model, weights, expected, expected_gradients = reference(config, K)
    comparisons = flatten(sequences, [0.0] * len(sequences), config, share_prefix=share_prefix)
    shapes = fit_row_shapes(comparisons, batch_size=len(sequences), layout=layout)
    forms = [(shapes, "xla"), (shapes, "block")]
    if config == CONFIG and share_prefix:  # empty rows and slots know neither of the rotations nor of sharing
        forms.append(([dataclasses.replace(shapes[0], slots=2, rows=3)], "block"))
    for other, attention in forms:
        rewards, gradients = packed(model, comparisons, other, weights, attention)
        np.testing.assert_allclose(rewards, expected, atol=1e-5)
        for name, a, b in named_leaves(expected_gradients, gradients):
            np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, float(abs(a).max())), err_msg=name)


def named_leaves(*trees):
    """Path and leaves of several trees of one structure."""
    flat = [jax.tree_util.tree_flatten_with_path(tree)[0] for tree in trees]
    return [(jax.tree_util.keystr(parts[0][0]), *(leaf for _, leaf in parts)) for parts in zip(*flat, strict=True)]


def test_a_reward_can_be_read_inside_the_shared_prefix():
    """With `pad == eos` the last token counts as padding, so the reward of `prompt + eos` is the prompt's end."""
    config = dataclasses.replace(CONFIG, pad_token_id=2)
    model = rm.init_reward_model(config, key=jax.random.key(0), head_std=0.5)
    sequences = [[[5, 6, 7, 2], [5, 6, 7, 8, 2]]]
    comparisons = flatten(sequences, [0.0], config)
    assert comparisons.lengths.tolist() == [[3, 1, 2]]
    rewards, _ = packed(model, comparisons, fit_row_shapes(comparisons, 1), jnp.ones((1, 2)))
    expected, _ = one_by_one(model, [[[5, 6, 7], [5, 6, 7, 8]]], np.ones((1, 2)))
    np.testing.assert_allclose(rewards, expected, atol=1e-5)


def test_sharing_stores_the_prompt_once():
    sequences = [[[1, 2, 3, 4], [1, 2, 3, 5, 6]]]
    shared = flatten(sequences, [0.0], CONFIG)
    assert shared.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert shared.ends.tolist() == [[3, 4]]
    apart = flatten(sequences, [0.0], CONFIG, share_prefix=False)
    assert apart.tokens.tolist() == [1, 2, 3, 4, 1, 2, 3, 5, 6]
    assert apart.num_tokens.tolist() == shared.num_tokens.tolist() == [9]


@functools.cache
def gradients_by(remat: str) -> rm.RewardModel:
    """The gradient of the sum of squared rewards of one batch."""
    model = rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.5)
    comparisons = flatten(odd_comparisons(2), [0.0] * 10, CONFIG)
    (batch, *_) = pack(comparisons, range(4), fit_row_shapes(comparisons, 4))

    def total(model):
        return (rm.rewards(model, batch, rm.Compute(remat=remat)) ** 2).sum(where=batch.mask[..., None])

    return jax.jit(jax.grad(total))(model)


@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.long), "full"])
def test_recomputing_changes_no_gradient(remat):
    for name, a, b in named_leaves(gradients_by("none"), gradients_by(remat)):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("attention", ["xla", "block"])
@pytest.mark.parametrize("layout", ["regions", "whole"])
def test_bfloat16_gradients_stay_near_float32(layout, attention):
    """The backward products go ways of their own in bfloat16."""
    model = rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.5)
    comparisons = flatten(odd_comparisons(2), [0.0] * 10, CONFIG)
    weights = jax.random.normal(jax.random.key(2), (10, 2))
    shapes = fit_row_shapes(comparisons, 10, layout=layout)
    low, exact = (
        packed(model, comparisons, shapes, weights, attention, dtype)[1] for dtype in (jnp.bfloat16, jnp.float32)
    )
    for name, a, b in named_leaves(exact, low):
        assert b.dtype == jnp.float32
        assert jnp.linalg.norm(b - a) < 0.05 * jnp.linalg.norm(a), name


@pytest.mark.parametrize("shape", [(2, 6), (7, 3), (1, 5), (2, 3, 8, 4)])
def test_the_transpose_of_bfloat16_is_the_transpose(shape):
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(transposed)(x), np.swapaxes(np.asarray(x), -1, -2))


@pytest.mark.long
def test_bfloat16_compute_stays_near_float32():
    model = rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.1)
    comparisons = flatten(odd_comparisons(2), [0.0] * 10, CONFIG)
    (batch, *_) = pack(comparisons, range(4), fit_row_shapes(comparisons, 4))
    low = rm.rewards(model, batch, rm.Compute(dtype=jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, rm.rewards(model, batch), atol=5e-2)
