"""Reward models in JAX: Llama, Mistral or Qwen with a scalar head, trained and used by composing pure functions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ConfigError, DataError, OutputError, RmError, TokenizerError, WeightsError
from .version import __version__

if TYPE_CHECKING:
    from .data import TokenizedComparisons, load_comparisons, mix, tokenize_comparisons
    from .devices import connect, keep_compiled, make_mesh
    from .evaluation import comparison_rewards, evaluate, findings, plots, score, statistics
    from .files import push_reward_model
    from .model import (
        Compute,
        LlamaConfig,
        PreferenceBatch,
        RewardModel,
        Rope,
        add_lora,
        freeze_layers,
        hidden_states,
        init_reward_model,
        load_reward_model,
        merge_lora,
        partition_specs,
        place_batch,
        place_model,
        ratings,
        rewards,
        trainable,
    )
    from .packing import BatchPlan, plan_batches, prefetch
    from .planning import Plan, plan
    from .saving import Calibration, Checkpoints, load_calibration, normalize, save_adapter, save_reward_model
    from .text import Tokenizer, load_tokenizer, match_tokenizer
    from .training import (
        TrainState,
        accumulate,
        adamw,
        apply_gradients,
        centering_penalty,
        init_state,
        jit_update,
        learning_rate_schedule,
        make_optimizer,
        pairwise_loss,
        per_layer,
        preference_metrics,
        ratings_loss,
        update,
        with_frozen,
    )

__all__ = [
    "BatchPlan",
    "Calibration",
    "CheckpointError",
    "Checkpoints",
    "Compute",
    "ConfigError",
    "DataError",
    "LlamaConfig",
    "OutputError",
    "Plan",
    "PreferenceBatch",
    "RewardModel",
    "RmError",
    "Rope",
    "TokenizedComparisons",
    "Tokenizer",
    "TokenizerError",
    "TrainState",
    "WeightsError",
    "__version__",
    "accumulate",
    "adamw",
    "add_lora",
    "apply_gradients",
    "centering_penalty",
    "comparison_rewards",
    "connect",
    "evaluate",
    "findings",
    "freeze_layers",
    "hidden_states",
    "init_reward_model",
    "init_state",
    "jit_update",
    "keep_compiled",
    "learning_rate_schedule",
    "load_calibration",
    "load_comparisons",
    "load_reward_model",
    "load_tokenizer",
    "make_mesh",
    "make_optimizer",
    "match_tokenizer",
    "merge_lora",
    "mix",
    "normalize",
    "pairwise_loss",
    "partition_specs",
    "per_layer",
    "place_batch",
    "place_model",
    "plan",
    "plan_batches",
    "plots",
    "preference_metrics",
    "prefetch",
    "push_reward_model",
    "ratings",
    "ratings_loss",
    "rewards",
    "save_adapter",
    "save_reward_model",
    "score",
    "statistics",
    "tokenize_comparisons",
    "trainable",
    "update",
    "with_frozen",
]

_ROOMS = ("data", "devices", "evaluation", "files", "model", "packing", "planning", "saving", "text", "training")


def __getattr__(name: str) -> Any:
    """What is public, or a room, imported when the first is asked for: `rm.client` needs none of it, nor JAX."""
    if name in (*_ROOMS, "client", "serving", "shapes"):
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for room in map(__getattr__, _ROOMS):
        globals().update({each: getattr(room, each) for each in room.__all__ if each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
