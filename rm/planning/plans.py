"""What an update needs before any of it is bought: memory, time and traffic of every device."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..devices.mesh import AXES
from ..devices.platform import compiling_for
from ..errors import ConfigError, RmError
from ..files.hub import read_json, resolve_directory
from ..model.attention_choice import Inputs, choose_attention
from ..model.config import LlamaConfig
from ..model.presets import PRESETS
from .advice import advise, largest_batch, more_rows
from .chips import Chip, Topology, parse_topology
from .compiled import Compiled, ask_compiler, default_compilers, missing_compiler
from .estimates import Case, Cost, check_case, communication, estimate, operations, optimizer_bytes
from .flops import count_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What an update costs; bytes are those of one device, `None` stands for what nobody has published."""

    topology: str
    devices: int
    mesh: dict[str, int]
    parameters: int
    bytes_per_parameter: float
    memory_bytes_per_device: float
    parameter_bytes_per_device: int
    optimizer_bytes_per_device: int
    gradient_bytes_per_device: int
    activation_bytes_per_device: int  # with gathered weights and the compiler's buffers
    peak_bytes_per_device: int
    host_bytes_per_device: int  # of the optimizer's state, where the host keeps it
    compiled: bool  # else the peak and the activations are estimated
    compile_seconds: float | None
    attention: str  # its form
    attention_kernels: int | None  # calls of it in the compiled program, where it is a kernel
    note: str  # why it is an estimate
    flops: int  # of all devices
    compute_seconds: float | None  # at the published rate
    communication_bytes: dict[str, int]  # sent by a device along each axis
    communication_seconds: float | None  # at the published rate of the links
    largest_batch_size: int
    advice: tuple[str, ...]

    @property
    def missing_bytes(self) -> float:
        """By how much a device is too small, 0 where it fits."""
        return max(0.0, self.peak_bytes_per_device - self.memory_bytes_per_device)

    @property
    def seconds(self) -> float | None:
        """The least time of an update: computing and sending at once, each at its published rate."""
        if self.compute_seconds is None:
            return None
        return max(self.compute_seconds, self.communication_seconds or 0.0)


def plan(
    model: LlamaConfig | str | Path,
    topology: str,
    *,
    mesh: dict[str, int] | None = None,
    batch_size: int = 8,
    compilers: Path | None = None,
    **options: Any,
) -> Plan:
    """What an update of `batch_size` rows costs on devices that need not be here; no weights are read.

    The real `update` is compiled for the topology in a process of its own, where `compilers` holds a compiler for it;
    elsewhere its memory is estimated by formula (`rm.estimate`), and `compiled` and `note` say so.

    **Arguments:** `model`, a configuration, a name such as `llama-8b`, a directory or a hub id, of which only
    `config.json` is read; `topology`, such as `v5p:2x2x2`, `h100:8` or `cpu:8`; `mesh`, `{"fsdp": 8}` or products, by
    default all devices along `fsdp`; `batch_size`, rows of `max_length` tokens in one update; `options`, the other
    fields of `rm.estimate.Case`: `max_length`, `dtype`, `remat`, `optimizer`, `moments`, `parameters`, `attention`,
    `offload`.

    **Raises:** `ConfigError` where the topology does not exist or the mesh does not divide the devices, heads, weights
    or rows.

    >>> found = plan("llama-70b", "v6e:8x8", batch_size=64, compilers=Path("nowhere"))
    >>> found.compiled, found.missing_bytes, round(found.parameters / 1e9, 1)
    (False, 0.0, 69.5)
    """
    where = parse_topology(topology)
    sizes = {"fsdp": where.devices} if mesh is None else mesh
    if math.prod(sizes.values()) != where.devices:
        shown = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ConfigError(f"mesh {shown} takes {math.prod(sizes.values())} devices, {topology} has {where.devices}")
    case = Case(config=read_config(model), mesh=sizes, rows=batch_size, **options)
    check_case(case)
    with compiling_for(where.chip.platform):  # what `auto` stands for there
        inputs = Inputs(case.regions, 1, case.config.head_dim, jnp.dtype(case.dtype), sizes.get("context", 1))
        form = choose_attention(case.attention, inputs)
    case = dataclasses.replace(case, attention=form)
    folder = compilers or default_compilers()
    cost, found, note = estimate(case), None, missing_compiler(where, folder) or ""
    if not note:
        found = ask_compiler(case, where, folder)
        cost = cost._replace(activations=max(0, found.peak - (cost.peak - cost.activations)))
    return _plan(case, where, cost, found, note)


def read_config(model: LlamaConfig | str | Path) -> LlamaConfig:
    """The architecture of a model of which there need not be more than a name or a `config.json`."""
    if isinstance(model, LlamaConfig):
        return model
    if str(model) in PRESETS:
        return PRESETS[str(model)]
    path = Path(model)
    try:
        file = path if path.is_file() else resolve_directory(model, ["config.json"]) / "config.json"
    except RmError as error:
        raise ConfigError(f"{error}; or one of {', '.join(PRESETS)}") from None
    return LlamaConfig.from_hf(read_json(file), source=str(file))


def _plan(case: Case, where: Topology, cost: Cost, found: Compiled | None, note: str) -> Plan:
    chip, sent, flops, count = where.chip, communication(case), operations(case), count_parameters(case.config)
    computing = flops / where.devices / chip.flops if chip.flops and case.dtype == "bfloat16" else None
    sending, most = link_seconds(case.mesh, sent, chip), largest_batch(case, cost, chip.memory)
    kept = (cost.parameters + cost.optimizer + cost.gradients) * where.devices
    copies = math.prod(case.mesh.get(axis, 1) for axis in ("data", "context"))
    return Plan(
        topology=where.name,
        devices=where.devices,
        mesh=case.mesh,
        parameters=count,
        bytes_per_parameter=round(kept / copies / count, 2),
        memory_bytes_per_device=chip.memory,
        parameter_bytes_per_device=cost.parameters,
        optimizer_bytes_per_device=cost.optimizer,
        gradient_bytes_per_device=cost.gradients,
        activation_bytes_per_device=cost.activations,
        peak_bytes_per_device=cost.peak,
        host_bytes_per_device=optimizer_bytes(case) if case.offload else 0,
        compiled=not note,
        compile_seconds=found and found.seconds,
        attention=case.attention,
        attention_kernels=found and found.kernels,
        note=note,
        flops=flops,
        compute_seconds=computing,
        communication_bytes=sent,
        communication_seconds=sending,
        largest_batch_size=most,
        advice=advise(case, cost, where) + more_rows(case.rows, most, computing, sending),
    )


def link_seconds(mesh: dict[str, int], sent: dict[str, int], chip: Chip) -> float | None:
    """The least time that sending takes, axis by axis.

    An axis within reach of the links goes at their rate. One beyond goes by network, where the devices that it has in
    one machine take turns: what the machine lacks comes in once, through the ports of all of them.
    """
    seconds, inner = 0.0, 1
    for axis in reversed(AXES):  # the last are neighbours
        apart = inner * mesh.get(axis, 1)
        rate = chip.link
        if apart > chip.reach:
            rate = chip.link and chip.network and min(chip.link, chip.network * max(1, chip.reach // inner))
        if rate is None and sent.get(axis):
            return None
        seconds, inner = seconds + sent.get(axis, 0) / (rate or 1), apart
    return seconds
