"""Rewards over HTTP."""

from .app import make_app
from .batching import Batcher
from .models import ServedModel
from .requests import Limits
from .scorer import Scorer
from .server import make_server, run_server
from .traffic import make_metrics

__all__ = [
    "Batcher",
    "Limits",
    "Scorer",
    "ServedModel",
    "make_app",
    "make_metrics",
    "make_server",
    "run_server",
]
