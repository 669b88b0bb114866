"""The reward model: configuration, batch, forward pass, attention implementations, sharding and loading."""

from .adapters import add_lora, freeze_layers, merge_lora, trainable
from .attention_choice import Attention
from .batch import PreferenceBatch
from .compute import Compute, Remat
from .config import LlamaConfig
from .llama import RewardModel, hidden_states, init_reward_model, ratings, rewards
from .loading import load_config, load_reward_model
from .rope import Rope
from .sharding import partition_specs, place_batch, place_model

__all__ = [
    "Attention",
    "Compute",
    "LlamaConfig",
    "PreferenceBatch",
    "Remat",
    "RewardModel",
    "Rope",
    "add_lora",
    "freeze_layers",
    "hidden_states",
    "init_reward_model",
    "load_config",
    "load_reward_model",
    "merge_lora",
    "partition_specs",
    "place_batch",
    "place_model",
    "ratings",
    "rewards",
    "trainable",
]
