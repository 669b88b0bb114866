"""Which comparisons each update takes: a pure function of (size, batch size, seed, step)."""

import dataclasses

import numpy as np

from ..batch import PreferenceBatch
from .comparisons import TokenizedComparisons
from .packing import RowShape, fit_row_shape, pack


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of a run, computed for any step without going through the steps before it."""

    comparisons: TokenizedComparisons
    batch_size: int
    shape: RowShape
    seed: int = 0
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch; the last one takes what is left."""
        return -(-len(self.comparisons) // self.batch_size)

    def indices_at(self, step: int) -> np.ndarray:
        """The comparisons of update `step`, counted from 0; every epoch has an order of its own."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.arange(len(self.comparisons))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def batch_at(self, step: int) -> list[PreferenceBatch]:
        """The micro-batches of update `step`, all of one shape."""
        return pack(self.comparisons, self.indices_at(step), self.shape)


def plan_batches(
    comparisons: TokenizedComparisons, batch_size: int, *, seed: int = 0, shuffle: bool = True
) -> BatchPlan:
    """The batches of a run over `comparisons`, in one row shape fitted to their lengths."""
    shape = fit_row_shape(comparisons, batch_size)
    return BatchPlan(comparisons=comparisons, batch_size=batch_size, shape=shape, seed=seed, shuffle=shuffle)
