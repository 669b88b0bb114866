"""What the compositions of compose.py share: the places they run on, a model, batches, and optax's loop by hand.

A composition is a function of a place that returns what was found and what was expected, each a tree of arrays. The
expected one is computed another way, on one device. What must be refused has the words of the one line that says why.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from random_comparisons import random_comparisons

import rm

CONFIG = rm.LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
)


class Composition(NamedTuple):
    """A composition: with `refused`, the words of an error; else the largest difference, relative to the expected."""

    run: Callable
    within: float
    refused: str | None
    refused_on_mesh: str | None


COMPOSITIONS: dict[str, Composition] = {}


def composition(within: float = 1e-5, refused: str | None = None, refused_on_mesh: str | None = None) -> Callable:
    """Enters a function under its name, the underscores as spaces."""
    on_mesh = refused_on_mesh or refused

    def enter(function: Callable) -> Callable:
        COMPOSITIONS[function.__name__.replace("_", " ")] = Composition(function, within, refused, on_mesh)
        return function

    return enter


@cache
def batches() -> list[rm.PreferenceBatch]:
    plan = rm.plan_batches(random_comparisons(CONFIG, 32, 6, 5, 7), 8, rows=4, micro_batch_tokens=64)
    return [plan.batch_at(number)[0] for number in range(4)]


class Place(NamedTuple):
    """One device, or the devices of a mesh."""

    mesh: Mesh | None = None

    def put(self, model: Any) -> Any:
        return model if self.mesh is None else rm.place_model(model, self.mesh)

    def model(self, seed: int = 0) -> rm.RewardModel:
        return self.put(rm.init_reward_model(CONFIG, key=jax.random.key(seed), head_std=0.5))

    def batch(self, number: int = 0) -> rm.PreferenceBatch:
        return batches()[number] if self.mesh is None else rm.place_batch(batches()[number], self.mesh)

    def rewards(self, model: rm.RewardModel, batch: rm.PreferenceBatch, **options: Any) -> jax.Array:
        return rm.rewards(model, batch, rm.Compute(mesh=self.mesh, **options))

    def objective(self, model: rm.RewardModel, batch: rm.PreferenceBatch, **options: Any) -> tuple:
        r = self.rewards(model, batch, **options)
        return rm.pairwise_loss(r[..., 0], r[..., 1], batch.margin), r

    def loss(self, model: rm.RewardModel, number: int = 0, **options: Any) -> jax.Array:
        """The mean loss of a batch."""
        batch = self.batch(number)
        return jnp.mean(self.objective(model, batch, **options)[0], where=batch.mask)


ONE = Place()


def gradient(model: Any, number: int = 0) -> Any:
    """The gradient of a batch's mean loss on one device."""
    return jax.jit(jax.grad(partial(ONE.loss, number=number)))(model)


def train(place: Place, optimizer: Any, steps: int = 3, objective: Any = None, model: Any = None) -> Any:
    """The state and the metrics after some updates by `jit_update`."""
    step, metrics = rm.jit_update(objective or place.objective, optimizer), {}
    state = rm.init_state(place.model() if model is None else model, optimizer)
    for number in range(steps):
        state, metrics = step(state, [place.batch(number)])
    return state, metrics


def by_hand(optimizer: Any, steps: int = 3, micro_batches: int = 1) -> Any:
    """How far optax moves the weights on one device in a loop without `rm`'s update."""
    optimizer = optax.with_extra_args_support(optimizer)
    model: Any = ONE.model()
    state = optimizer.init(model)
    for step in range(steps):

        def mean(model: Any, step: int = step) -> jax.Array:
            numbers = range(step * micro_batches, (step + 1) * micro_batches)
            return sum(ONE.loss(model, number) for number in numbers) / micro_batches  # pyright: ignore

        value, grad = jax.jit(jax.value_and_grad(mean))(model)
        rule = jax.jit(partial(optimizer.update, value_fn=mean))
        updates, state = rule(grad, state, model, value=value, grad=grad)
        model = optax.apply_updates(model, updates)
    return difference(model, ONE.model())


def difference(one: Any, other: Any) -> Any:
    """The difference of two trees, in float64."""
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), one, other)


def moved(state: rm.TrainState) -> Any:
    """How far training has moved the weights."""
    return difference(state.model, ONE.model())


def inner(one: Any, other: Any) -> jax.Array:
    """The inner product of two trees."""
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, one, other))
