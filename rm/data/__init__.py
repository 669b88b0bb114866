"""Preference data: rows of any known format to tokenized comparisons."""

from .comparisons import TokenizedComparisons, mix
from .sources import load_comparisons
from .tokenize import tokenize_comparisons

__all__ = ["TokenizedComparisons", "load_comparisons", "mix", "tokenize_comparisons"]
