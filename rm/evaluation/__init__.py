"""Rewards of texts and comparisons, and evaluations of models: statistics, figures and the report."""

from . import plots, statistics
from .report import findings
from .scoring import comparison_rewards, evaluate, score

__all__ = [
    "comparison_rewards",
    "evaluate",
    "findings",
    "plots",
    "score",
    "statistics",
]
