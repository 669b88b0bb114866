"""The losses and metrics against hand-worked numbers and float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import rm


def test_equal_rewards_cost_log_two():
    loss = rm.pairwise_loss(jnp.array([0.0, 3.5]), jnp.array([0.0, 3.5]))
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-7)


def test_loss_equals_float64_reference():
    rng = np.random.default_rng(0)
    chosen, rejected, margin = rng.normal(0, 5, (3, 200))
    expected = np.log1p(np.exp(-(chosen - rejected - margin)))
    arrays = (jnp.asarray(x, jnp.float32) for x in (chosen, rejected, margin))
    np.testing.assert_allclose(rm.pairwise_loss(*arrays), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("difference", [1e4, -1e4, 1e30, -1e30])
def test_extreme_differences_stay_finite(difference):
    chosen = jnp.array([difference])
    loss, gradient = jax.value_and_grad(lambda c: rm.pairwise_loss(c, jnp.zeros(1)).sum())(chosen)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(loss, max(0.0, -difference), rtol=1e-6)


def test_loss_ignores_a_shift_of_all_rewards_and_centering_does_not():
    chosen, rejected = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0])
    shifted = rm.pairwise_loss(chosen + 4, rejected + 4)
    np.testing.assert_allclose(shifted, rm.pairwise_loss(chosen, rejected), rtol=1e-5)
    np.testing.assert_allclose(rm.centering_penalty(chosen, rejected), [2.25, 1.0])
    np.testing.assert_allclose(rm.centering_penalty(chosen + 4, rejected + 4), [9.5**2, 49.0])


def test_swapping_sides_negates_the_margin():
    chosen, rejected = jnp.array([1.0, -2.0, 0.25]), jnp.array([0.5, 1.0, 3.0])
    one, other = rm.preference_metrics(chosen, rejected), rm.preference_metrics(rejected, chosen)
    np.testing.assert_allclose(one["margin"], -other["margin"])
    # softplus(-x) - softplus(x) = -x
    difference = rm.pairwise_loss(chosen, rejected) - rm.pairwise_loss(rejected, chosen)
    np.testing.assert_allclose(difference, rejected - chosen, rtol=1e-6)


@pytest.mark.parametrize("function", [rm.pairwise_loss, rm.centering_penalty, rm.preference_metrics])
def test_a_column_against_a_vector_raises_instead_of_broadcasting(function):
    with pytest.raises(TypeCheckError, match="rejected"):
        function(jnp.zeros(4), jnp.zeros((4, 1)))


def test_a_misshapen_margin_raises():
    with pytest.raises(TypeCheckError, match="margin"):
        rm.pairwise_loss(jnp.zeros(4), jnp.zeros(4), jnp.zeros(3))


def test_low_precision_rewards_give_float32_losses():
    rewards = jnp.array([1.0, 2.0], jnp.bfloat16)
    assert rm.pairwise_loss(rewards, rewards).dtype == jnp.float32
    assert rm.preference_metrics(rewards, rewards)["margin"].dtype == jnp.float32


def test_a_tie_is_wrong_and_masked_comparisons_do_not_count():
    chosen, rejected = jnp.array([1.0, 1.0, 9.0, 5.0]), jnp.array([0.0, 1.0, -9.0, 7.0])
    metrics = rm.preference_metrics(chosen, rejected, jnp.array([True, True, False, True]))
    expected = {"accuracy": 1 / 3, "margin": -1 / 3, "min_reward": 0.0, "mean_reward": 2.5, "max_reward": 7.0}
    assert {name: pytest.approx(float(value), rel=1e-6) for name, value in metrics.items()} == expected
