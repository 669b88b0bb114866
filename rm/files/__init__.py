"""Files of every kind, with nothing of models: the hub, safetensors, rows, and directories that appear whole."""

from .hub import push_reward_model

__all__ = ["push_reward_model"]
