"""Batches made ahead are those of the plan, and errors and threads stay where they belong."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

import rm
from rm.model.sharding import own_rows

from .test_packing import FIELDS, ten


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_iterating_gives_the_batches_that_each_step_has(ahead):
    plan = rm.plan_batches(ten(), 3, seed=2)
    found = list(rm.prefetch(plan, 2, 9, ahead=ahead))
    assert len(found) == 7
    for step, batches in enumerate(found, 2):
        for one, other in zip(batches, plan.batch_at(step), strict=True):
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert threads() == []


def test_a_mesh_gets_the_rows_that_its_devices_compute():
    """Several processes would each make what the others have made already (test_distributed.py compares the values)."""
    plan, mesh = rm.plan_batches(ten(), 4, rows=8), rm.make_mesh(fsdp=4, context=2)
    assert own_rows(8, mesh) == slice(0, 8), "one process has all devices"
    (batches,) = rm.prefetch(plan, 0, 1, mesh=mesh)
    for one, other in zip(batches, plan.batch_at(0), strict=True):
        assert one.tokens.addressable_shards[0].data.shape[0] == 2
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_steps_are_computed_before_they_are_asked_for_but_not_all_of_them():
    """Else the device waits for the host, or the memory fills with batches."""
    asked, ready = [], threading.Event()

    def batch_at(step: int) -> int:
        asked.append(step)
        if step == 2:
            ready.set()
        return step

    steps = rm.prefetch(SimpleNamespace(batch_at=batch_at), 0, 50, ahead=2)  # pyright: ignore[reportArgumentType]
    assert next(steps) == 0
    assert ready.wait(10)
    steps.close()
    assert asked == [0, 1, 2]
    assert threads() == []


def test_an_error_surfaces_at_its_step():
    def batch_at(step: int) -> int:
        if step == 3:
            raise rm.DataError("row 3")
        return step

    steps = rm.prefetch(SimpleNamespace(batch_at=batch_at), 0, 9, ahead=4)  # pyright: ignore[reportArgumentType]
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(rm.DataError, match="row 3"):
        next(steps)
    assert threads() == []


def test_nothing_ahead_is_refused():
    with pytest.raises(ValueError, match="ahead must be at least 1, found 0"):
        next(rm.prefetch(rm.plan_batches(ten(), 3), 0, 1, ahead=0))
