"""The plan of a run's batches, a function of the data, seed and step alone, and their computation ahead of the loop."""

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from ..data.comparisons import TokenizedComparisons
from ..devices.mesh import own_rows, standard_mesh
from ..model.attention_choice import Layout, default_layout
from ..model.batch import PreferenceBatch
from ..model.sharding import place_batch
from .bin_packing import pack_bins
from .fit_shapes import fit_row_shapes
from .groups import make_items
from .row_shapes import RowShape
from .rows import pack

_UPDATES_AT_ONCE = 1024  # updates whose rows are planned together; bounds the memory


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class BatchPlan:
    """The batches of a run; those of any step are computed without the steps before it."""

    comparisons: TokenizedComparisons
    batch_size: int
    shapes: tuple[RowShape, ...]
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def __repr__(self) -> str:
        shapes = ", ".join(f"{shape.rows} × {'+'.join(map(str, shape.regions))}" for shape in self.shapes)
        updates = f"{self.steps_per_epoch} updates of {self.batch_size} comparisons"
        return f"BatchPlan({updates}, rows {shapes}, seed {self.seed}, of {self.comparisons})"

    @property
    def steps_per_epoch(self) -> int:
        """The number of updates in an epoch; without `drop_last`, the last one takes the remaining comparisons."""
        count = len(self.comparisons)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def indices_at(self, step: int) -> Int64[np.ndarray, "B"]:
        """The comparisons of update `step`, counted from 0; every epoch is shuffled anew."""
        epoch, place = divmod(step, self.steps_per_epoch)
        count = len(self.comparisons)
        order = _order(count, self.seed, epoch) if self.shuffle else np.arange(count)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    @property
    def rows(self) -> int:
        """The number of rows in every micro-batch."""
        return self.shapes[0].rows

    def batch_at(self, step: int, rows: slice = slice(None)) -> list[PreferenceBatch]:
        """The micro-batches of update `step`, or only some rows of each."""
        return pack(self.comparisons, self.indices_at(step), self.shapes, rows=rows)

    def fill(self, steps: Iterable[int] | None = None) -> float:
        """The share of computed positions that hold a token, over `steps` or the first epoch; reads only lengths.

        >>> from rm.data.comparisons import flatten
        >>> from rm.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> comparisons = flatten([[[1] * 32 + [2] * 24, [1] * 32 + [3] * 32]], [0.0], config)
        >>> plan = plan_batches(comparisons, batch_size=1, layout="regions")
        >>> plan.shapes[0].regions, plan.fill()  # 88 of 96
        ((32, 32, 32), 0.9166666666666666)
        """
        steps = list(range(self.steps_per_epoch) if steps is None else steps)
        tokens = positions = 0
        for start in range(0, len(steps), _UPDATES_AT_ONCE):
            indices = [self.indices_at(step) for step in steps[start : start + _UPDATES_AT_ONCE]]
            padded = np.stack([np.pad(row, (0, self.batch_size - len(row)), constant_values=-1) for row in indices])
            needs = make_items(self.comparisons, padded, self.shapes[0]).needs
            counts, _ = pack_bins(needs, self.shapes)
            tokens += int(needs[..., 1:].sum())
            positions += int((counts @ [shape.positions for shape in self.shapes]).sum())
        return tokens / positions


@lru_cache(maxsize=2)  # at the turn of an epoch, two are in use
def _order(count: int, seed: int, epoch: int) -> Int64[np.ndarray, "B"]:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


def plan_batches(
    comparisons: TokenizedComparisons,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    rows: int = 1,
    micro_batch_tokens: int = 4096,
    layout: Layout | Literal["auto"] = "auto",
) -> BatchPlan:
    """Plans the batches of a run over `comparisons`, in a few row shapes fitted to their lengths.

    **Arguments:** `batch_size`, comparisons per update; `shuffle`, anew in every epoch; `drop_last`, whether to skip an
    incomplete last update of an epoch; `rows` per micro-batch, `row_shards(mesh)` or a multiple of it;
    `micro_batch_tokens`, the longest row, unless a comparison is longer; `layout` of the rows: `"regions"` for a prefix
    region and one region per response, which TPUs need, `"gathered"` for the same with a known longest sequence, which
    GPUs need, `"whole"` for a single region, which wastes least, `"auto"` for the one that suits the platform.

    **Raises:** `ValueError` if a number is less than 1, or if there is no update.
    """
    for name, value in {"batch_size": batch_size, "rows": rows}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    if len(comparisons) < (batch_size if drop_last else 1):
        raise ValueError(f"{len(comparisons)} comparisons make no update of {batch_size}; expected at least as many")
    if layout == "auto":
        layout = default_layout()
    return BatchPlan(
        comparisons=comparisons,
        batch_size=batch_size,
        shapes=fit_row_shapes(comparisons, batch_size, rows=rows, micro_batch_tokens=micro_batch_tokens, layout=layout),
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
    )


def prefetch(
    plan: BatchPlan, start: int, stop: int, *, ahead: int = 2, mesh: Mesh | None = None
) -> Generator[list[PreferenceBatch], None, None]:
    """Yields `plan.batch_at(step)` for the steps from `start` up to but excluding `stop`, computed in a thread.

    **Arguments:** `ahead`, the number of updates that are prepared in advance; `mesh`, the devices that the batches are
    placed on; each process packs the rows of its own devices only.

    **Raises:** the error of `plan.batch_at`, at its step. Leaving the loop ends the thread.

    Example: `for batches in rm.prefetch(plan, 0, plan.steps_per_epoch): state, metrics = step(state, batches)`.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1, found {ahead}")

    mesh = mesh and standard_mesh(mesh)

    def make(step: int) -> list[PreferenceBatch]:
        if mesh is None:
            return plan.batch_at(step)
        batches = plan.batch_at(step, own_rows(plan.rows, mesh))
        return [place_batch(batch, mesh, rows=plan.rows) for batch in batches]

    steps = iter(range(start, stop))
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(make, step) for step in islice(steps, ahead))
        while waiting:
            waiting.extend(pool.submit(make, step) for step in islice(steps, 1))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
