"""The plan of an update on given hardware: the memory, time and traffic of every device."""

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
from .estimates import Case, check_case, communication, operations
from .flops import count_parameters
from .memory import Cost, estimate, optimizer_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of an update; bytes are per device, and `None` means not published, or not compiled."""

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
    host_bytes_per_device: int  # of offloaded optimizer state
    compiled: bool  # if false, the peak and the activations are estimated
    compile_seconds: float | None
    attention: str  # the implementation
    attention_kernels: int | None  # calls of attention kernels in the compiled program
    note: str  # the reason for an estimate
    flops: int  # of all devices
    compute_seconds: float | None  # at the published rate
    communication_bytes: dict[str, int]  # sent by a device along each axis
    communication_seconds: float | None  # at the published rate of the links
    largest_batch_size: int
    advice: tuple[str, ...]

    @property
    def missing_bytes(self) -> float:
        """The bytes that a device lacks, 0 if the update fits."""
        return max(0.0, self.peak_bytes_per_device - self.memory_bytes_per_device)

    @property
    def seconds(self) -> float | None:
        """A lower bound on the time of an update: computing and sending overlap, each at its published rate."""
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
    """Plans an update of `batch_size` rows on devices that need not be present; no weights are read.

    The real `update` is compiled for the topology in a subprocess if the folder `compilers` holds a compiler for it;
    otherwise its memory is estimated by formula (`rm.planning.memory`), and `compiled` and `note` say so.

    **Arguments:** `model`, a configuration, a name such as `llama-8b`, a directory or a hub id, of which only
    `config.json` is read; `topology`, such as `v5p:2x2x2`, `h100:8` or `cpu:8`; `mesh`, the size of each axis, such as
    `{"fsdp": 8}`, by default all devices along `fsdp`; `batch_size`, rows of `max_length` tokens in one update;
    `options`, the other fields of `rm.planning.estimates.Case`: `max_length`, `dtype`, `remat`, `optimizer`, `moments`,
    `parameters`, `attention`, `offload`, `part`.

    **Raises:** `ConfigError` if the topology does not exist, or if the mesh does not fit the devices, or does not
    divide the heads, weights or rows.

    >>> cost = plan("llama-70b", "v6e:8x8", batch_size=64, compilers=Path("nowhere"))
    >>> cost.compiled, cost.missing_bytes, round(cost.parameters / 1e9, 1)
    (False, 0.0, 69.5)
    """
    where = parse_topology(topology)
    sizes = {"fsdp": where.devices} if mesh is None else mesh
    if math.prod(sizes.values()) != where.devices:
        shown = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ConfigError(f"mesh {shown} takes {math.prod(sizes.values())} devices, {topology} has {where.devices}")
    case = Case(config=read_config(model), mesh=sizes, rows=batch_size, **options)
    check_case(case)
    with compiling_for(where.chip.platform):  # attention and memory depend on the platform
        form = jnp.dtype(case.dtype), sizes.get("context", 1), case.config.sliding_window
        inputs = Inputs(case.regions, case.config.head_dim, *form)
        case = dataclasses.replace(case, attention=choose_attention(case.attention, inputs))
        folder = compilers or default_compilers()
        cost, compiled, note = estimate(case), None, missing_compiler(where, folder) or ""
        if not note:
            compiled = ask_compiler(case, where, folder)
            cost = cost._replace(activations=max(0, compiled.peak - (cost.peak - cost.activations)))
        return _plan(case, where, cost, compiled, note)


def read_config(model: LlamaConfig | str | Path) -> LlamaConfig:
    """The configuration of a model, given by a preset's name, a `config.json`, a directory or a hub id."""
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


def _plan(case: Case, where: Topology, cost: Cost, compiled: Compiled | None, note: str) -> Plan:
    chip, sent, flops, count = where.chip, communication(case), operations(case), count_parameters(case.config)
    computing = flops / where.devices / chip.flops if chip.flops and case.dtype == "bfloat16" else None
    sending, most = link_seconds(case.mesh, sent, chip), largest_batch(case, cost, chip.memory)
    model_state = (cost.parameters + cost.optimizer + cost.gradients) * where.devices
    copies = math.prod(case.mesh.get(axis, 1) for axis in ("data", "context"))
    return Plan(
        topology=where.name,
        devices=where.devices,
        mesh=case.mesh,
        parameters=count,
        bytes_per_parameter=round(model_state / copies / count, 2),
        memory_bytes_per_device=chip.memory,
        parameter_bytes_per_device=cost.parameters,
        optimizer_bytes_per_device=cost.optimizer,
        gradient_bytes_per_device=cost.gradients,
        activation_bytes_per_device=cost.activations,
        peak_bytes_per_device=cost.peak,
        host_bytes_per_device=optimizer_bytes(case) if case.offload else 0,
        compiled=not note,
        compile_seconds=compiled and compiled.seconds,
        attention=case.attention,
        attention_kernels=compiled and compiled.kernels,
        note=note,
        flops=flops,
        compute_seconds=computing,
        communication_bytes=sent,
        communication_seconds=sending,
        largest_batch_size=most,
        advice=advise(case, cost, where) + more_rows(case.rows, most, computing, sending),
    )


def link_seconds(mesh: dict[str, int], sent: dict[str, int], chip: Chip) -> float | None:
    """A lower bound on the time of communication, summed over the mesh axes.

    An axis whose devices the links connect uses their rate. A longer axis uses the network, where the devices of one
    machine share the work: data that the machine lacks comes in once, through the ports of all its devices.
    """
    seconds, inner = 0.0, 1
    for axis in reversed(AXES):  # neighbours along the last axis are closest
        apart = inner * mesh.get(axis, 1)
        rate = chip.link
        if apart > chip.reach:
            rate = chip.link and chip.network and min(chip.link, chip.network * max(1, chip.reach // inner))
        if rate is None and sent.get(axis):
            return None
        seconds, inner = seconds + sent.get(axis, 0) / (rate or 1), apart
    return seconds
