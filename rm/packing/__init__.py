"""Packing of comparisons into batches: a few static row shapes, little padding, and the batches of every update."""

from .batches import BatchPlan, plan_batches, prefetch

__all__ = ["BatchPlan", "plan_batches", "prefetch"]
