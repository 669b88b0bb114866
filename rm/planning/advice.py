"""Advice on how to make an update fit into memory or take less time."""

import dataclasses
import math
from collections.abc import Sequence

from ..devices.platform import platform
from ..errors import ConfigError
from ..model.compute import Remat
from .chips import Topology
from .estimates import Case, check_case
from .memory import Cost, activation_bytes, estimate, optimizer_temporary

LEAST_TOKENS, MOST_TOKENS = 4096, 32768  # of a micro-batch: enough to fill a device, and more than it gains from
_SHARE = 0.9  # of the memory that an update may take by formula


def fit_memory(
    case: Case, memory: int | None, *, remats: Sequence[Remat] = ("none", "dots", "full"), tokens: Sequence[int] = ()
) -> tuple[Remat, int]:
    """The least recomputation, and with it the most tokens of a device's micro-batch, that fit into its memory.

    Several micro-batches take a second copy of the gradients, which is counted. What fits least is taken where nothing
    fits, and where `memory` is not known, as on CPUs.

    **Arguments:** `case`, an update of one row for each device; `remats` and `tokens`, to choose from, the best first.
    """
    tokens = tokens or [MOST_TOKENS >> halved for halved in range(4)]
    for remat in remats:
        for count in tokens:
            rows = case.rows * max(1, count // case.max_length)
            cost = estimate(dataclasses.replace(case, remat=remat, rows=rows))
            if memory and cost.peak + cost.gradients <= _SHARE * memory:
                return remat, count
    return remats[-1], tokens[-1]


def largest_batch(case: Case, cost: Cost, memory: float) -> int:
    """The largest number of rows that fits, if the formula's relative error is the same as at `case.rows`.

    On CPUs a formula that is too high for few rows is not lowered, because it is right for many.
    """
    step = case.mesh.get("data", 1) * case.mesh.get("fsdp", 1)
    optimizer = optimizer_temporary(case)
    correction = cost.activations / max(activation_bytes(case), optimizer)
    correction = max(correction, 1.0) if platform() == "cpu" else correction

    def fits(rows: int) -> bool:
        temporary = max(activation_bytes(dataclasses.replace(case, rows=rows)), optimizer)
        return cost.peak - cost.activations + correction * temporary <= memory

    most = 0
    for bit in reversed(range(20)):
        most += (1 << bit) * fits((most + (1 << bit)) * step)
    return most * step


def more_rows(rows: int, most: int, computing: float | None, sending: float | None) -> tuple[str, ...]:
    """Advises more rows if sending weights, which does not depend on the rows, takes longer than computing."""
    if not computing or not sending or sending <= computing or most <= rows:
        return ()
    enough = min(most, rows * math.ceil(sending / computing))
    return (f"--batch-size {enough}: sending takes {sending / computing:.1f} times as long as computing {rows} rows",)


def advise(case: Case, cost: Cost, where: Topology) -> tuple[str, ...]:
    """Advises flags that make the update fit, or, if it fits already, flags that save computation."""
    if cost.peak > where.chip.memory:
        return _advise_less(case, where)
    for remat in ("none", "dots") if case.remat == "full" else ():
        peak = estimate(dataclasses.replace(case, remat=remat)).peak
        if peak <= 0.9 * where.chip.memory:
            return (f"--remat {remat} fits too ({peak / 1e9:.1f} GB by estimate) and computes less again",)
    return ()


def _advise_less(case: Case, where: Topology) -> tuple[str, ...]:
    """Collects flags that save memory, the least harmful first, until the estimate fits."""
    rows = min(case.rows, where.devices)
    steps = [
        ({"mesh": {"fsdp": where.devices}}, f"--mesh fsdp={where.devices}"),
        ({"remat": "full"}, "--remat full"),
        ({"rows": rows}, f"--batch-size {rows}"),
        ({"moments": "bfloat16"}, "--moments bfloat16"),
        ({"offload": True}, "--offload"),
        ({"parameters": "bfloat16"}, "--parameters bfloat16"),
        ({"optimizer": "adafactor"}, "--optimizer adafactor"),
    ]
    taken: list[str] = []
    peak = estimate(case).peak
    for change, flag in steps:
        changed = dataclasses.replace(case, **change)
        try:
            check_case(changed)
            changed_peak = estimate(changed).peak
        except ConfigError:
            continue
        if changed_peak < peak:
            case, peak, taken = changed, changed_peak, [*taken, flag]
        if peak <= where.chip.memory:
            return (f"{' '.join(taken)}: {peak / 1e9:.1f} GB by estimate",)
    unsharded = sum(estimate(dataclasses.replace(case, mesh={"fsdp": 1}))[:3])
    devices = math.ceil(unsharded / (0.8 * where.chip.memory))
    return (
        f"even with {' '.join(taken) or 'nothing else to change'} it needs {peak / 1e9:.1f} GB; "
        f"parameters, gradients and moments alone take about {devices} such devices, with a row for each",
    )
