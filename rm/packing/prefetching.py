"""Prefetching of batches, so that the host packs while the device computes."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from jax.sharding import Mesh

from ..devices.mesh import own_rows, standard_mesh
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
