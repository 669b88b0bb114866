"""The heads of reward models: what they compute."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import ConfigError
from ..shapes import checked
from .layers import Linear, along_last


@checked
def apply_head(
    features: Float[Array, "*B D"],
    weight: Float[Array, "L _"],
    bias: Float[Array, "L"] | None = None,
    hidden: Linear | None = None,
) -> Float[Array, "*B L"]:
    """The labels `W h + b` in float32, with a hidden layer `W relu(V h + c) + b`.

    **Arguments:** `features`, the last hidden states `h`; `weight`, `bias`, those of the last layer, one row for each
    label; `hidden`, the layer before it.

    >>> apply_head(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([0.5])).tolist()
    [[11.5]]
    """
    x = features.astype(jnp.float32)
    if hidden is not None:
        x = jax.nn.relu(_affine(x, hidden.weight, hidden.bias))
    return _affine(x, weight, bias)


def _affine(x: Array, weight: Array, bias: Array | None) -> Array:
    y = jnp.einsum("...i,oi->...o", x, weight.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return y if bias is None else y + along_last(bias.astype(jnp.float32), y.ndim)


def check_label_weights(labels: int, weights: Sequence[float]) -> None:
    """Raises `ConfigError` unless there is a finite weight for each label."""
    if len(weights) != labels or not all(map(math.isfinite, weights)):
        expected = f"expected {labels} finite number{'s' * (labels != 1)}, one for each label of the head"
        raise ConfigError(f"label_weights (--label-weights): {expected}, found {list(weights)}")


def weigh_labels(model: Any, weights: Sequence[float]) -> dict[str, np.ndarray]:
    """The last layer whose reward is `Σ wᵢ rᵢ` of the labels `r` of a `RewardModel`: its fields, one row each.

    **Raises:** `ConfigError` unless there is a finite weight for each label.
    """
    check_label_weights(len(model.score), weights)
    layer = {"score": model.score, "score_bias": model.score_bias}
    products = {
        name: np.asarray(weights) @ np.asarray(leaf, np.float64) for name, leaf in layer.items() if leaf is not None
    }
    return {name: product[None].astype(np.float32) for name, product in products.items()}


def check_one_label(labels: int, where: str) -> None:
    """Raises `ConfigError` for a head of several labels, where one reward is asked for.

    **Arguments:** `where`, the beginning of the message.
    """
    if labels != 1:
        advice = "their weighted sum is a reward (label_weights, --label-weights), rm.ratings gives each"
        raise ConfigError(f"{where} has {labels} labels, expected one reward; {advice}")


def is_matrix(model: Any) -> bool:
    """True for a model whose head is one matrix, without a bias or a hidden layer."""
    return model.score_bias is None and model.score_hidden is None


def head_shapes(model: Any) -> dict[str, list[int]]:
    """The shapes of the head's leaves of a `RewardModel`, from which `abstract_head` makes it again."""
    leaves = {"score": model.score, "score_bias": model.score_bias}
    if model.score_hidden is not None:
        leaves |= {"score_hidden.weight": model.score_hidden.weight, "score_hidden.bias": model.score_hidden.bias}
    return {name: list(leaf.shape) for name, leaf in leaves.items() if leaf is not None}


def abstract_head(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `RewardModel` that are its head, as shapes; a head is always float32.

    >>> abstract_head({"score": (1, 4)})["score"].shape
    (1, 4)
    """
    leaves = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for name, shape in shapes.items()}
    hidden = leaves.get("score_hidden.weight")
    return {
        "score": leaves.get("score"),
        "score_bias": leaves.get("score_bias"),
        "score_hidden": None if hidden is None else Linear(hidden, leaves.get("score_hidden.bias")),  # pyright: ignore
    }
