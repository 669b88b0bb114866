"""Checkpoints and exports: what a run leaves on disk."""

from .adapter import save_adapter
from .calibration import Calibration, load_calibration, normalize
from .checkpoints import Checkpoints
from .examples import make_pair, write_llama
from .export import save_reward_model

__all__ = [
    "Calibration",
    "Checkpoints",
    "load_calibration",
    "make_pair",
    "normalize",
    "save_adapter",
    "save_reward_model",
    "write_llama",
]
