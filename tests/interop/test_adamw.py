"""AdamW beside that of PyTorch, which TRL and the recipes' authors train with."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`")

import rm

pytestmark = [pytest.mark.interop, pytest.mark.optax]


def test_adamw_is_that_of_torch():
    """With the numbers of a recipe, a run would differ from the one that it repeats."""
    numbers = {"b1": 0.9, "b2": 0.95, "eps": 1e-5}
    optimizer = rm.adamw(1e-2, **numbers, weight_decay=0.1, max_grad_norm=None)
    start = np.random.default_rng(0).normal(size=(5, 7))
    ours, theirs = {"weight": jnp.asarray(start, jnp.float32)}, torch.nn.Parameter(torch.tensor(start))
    other = torch.optim.AdamW([theirs], 1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    state = optimizer.init(ours)
    for step in range(1, 6):
        g = np.random.default_rng(step).normal(size=(5, 7)) * 10.0 ** -np.arange(7)  # down to the size of eps
        updates, state = optimizer.update({"weight": jnp.asarray(g, jnp.float32)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(g)
        other.step()
    np.testing.assert_allclose(ours["weight"], theirs.detach().numpy(), atol=1e-6)
    assert np.abs(np.asarray(ours["weight"]) - start).max() > 0.03
