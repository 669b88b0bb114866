"""Losses, metrics, optimizers and the pure update."""

from .layerwise import per_layer
from .losses import centering_penalty, pairwise_loss, ratings_loss
from .metrics import preference_metrics
from .objectives import Objective, pairwise_objective, with_frozen
from .optimizers import adamw, learning_rate_schedule, make_optimizer
from .step import TrainState, accumulate, apply_gradients, init_state, jit_update, update

__all__ = [
    "Objective",
    "TrainState",
    "accumulate",
    "adamw",
    "apply_gradients",
    "centering_penalty",
    "init_state",
    "jit_update",
    "learning_rate_schedule",
    "make_optimizer",
    "pairwise_loss",
    "pairwise_objective",
    "per_layer",
    "preference_metrics",
    "ratings_loss",
    "update",
    "with_frozen",
]
