"""Batches computed ahead, so that the host packs while the device works."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from jax.sharding import Mesh

from ..devices.mesh import own_rows
from ..model.batch import PreferenceBatch
from ..model.sharding import place_batch
from .batches import BatchPlan


def prefetch(
    plan: BatchPlan,
    start: int,
    stop: int,
    *,
    ahead: int = 2,
    mesh: Mesh | None = None,
) -> Generator[list[PreferenceBatch], None, None]:
    """`plan.batch_at(step)` for the steps from `start` to before `stop`, computed in a thread.

    **Arguments:** `ahead`, how many updates are computed or waiting beyond the one that the loop has; `mesh`, the
    devices that the batches go to; each process makes the rows of its own alone.

    **Raises:** at its step, what `plan.batch_at` raised. Leaving the loop ends the thread.

    Example: `for batches in rm.prefetch(plan, 0, plan.steps_per_epoch): state, metrics = step(state, batches)`.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1, found {ahead}")

    def make(step: int) -> list[PreferenceBatch]:
        if mesh is None:
            return plan.batch_at(step)
        own = plan.batch_at(step, own_rows(plan.rows, mesh))
        return [place_batch(batch, mesh, rows=plan.rows) for batch in own]

    steps = iter(range(start, stop))
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(make, step) for step in islice(steps, ahead))
        while waiting:
            waiting.extend(pool.submit(make, step) for step in islice(steps, 1))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
