"""Rewards from a server of `python -m rm serve`, asked over HTTP; imports neither JAX nor PyTorch."""

from .http import score

__all__ = ["score"]
