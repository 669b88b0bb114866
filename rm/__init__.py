"""Train and use reward models: a Llama backbone with a scalar head, pure functions composed by the caller."""

from . import plots, statistics
from .batch import PreferenceBatch
from .calibration import Calibration, load_calibration, normalize
from .checkpoint import Checkpoints
from .config import LlamaConfig, Rope
from .data.batches import BatchPlan, plan_batches
from .data.comparisons import TokenizedComparisons, mix
from .data.prefetch import prefetch
from .data.sources import load_comparisons
from .data.tokenize import tokenize_comparisons
from .data.tokenizer import Tokenizer, load_tokenizer
from .distributed import connect
from .errors import CheckpointError, ConfigError, DataError, OutputError, RmError, TokenizerError, WeightsError
from .evaluate import comparison_rewards, evaluate, score
from .export import save_reward_model
from .forward import hidden_states, rewards
from .hf import load_reward_model, match_tokenizer
from .host import keep_compiled
from .hub import push_reward_model
from .losses import centering_penalty, pairwise_loss
from .metrics import preference_metrics
from .model import RewardModel, init_reward_model
from .optimizer import adamw, learning_rate_schedule, make_optimizer
from .plan import Plan, plan
from .report import findings
from .sharding import make_mesh, partition_specs, place_batch, place_model
from .update import TrainState, accumulate, apply_gradients, init_state, jit_update, update
from .version import __version__

__all__ = [
    "BatchPlan",
    "Calibration",
    "CheckpointError",
    "Checkpoints",
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
    "apply_gradients",
    "centering_penalty",
    "comparison_rewards",
    "connect",
    "evaluate",
    "findings",
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
    "mix",
    "normalize",
    "pairwise_loss",
    "partition_specs",
    "place_batch",
    "place_model",
    "plan",
    "plan_batches",
    "plots",
    "preference_metrics",
    "prefetch",
    "push_reward_model",
    "rewards",
    "save_reward_model",
    "score",
    "statistics",
    "tokenize_comparisons",
    "update",
]
