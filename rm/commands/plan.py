"""`python -m rm plan`: whether an update fits the devices, before anything is downloaded or paid for."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from ..devices.mesh import parse_mesh
from ..files.output import check_file, replace_file
from ..model.compute import Remat
from ..planning.plans import Plan, plan
from ..training.optimizers import Dtype
from .options import PartOptions, StateOptions, UpdateOptions, names_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments(PartOptions, UpdateOptions, StateOptions):
    """Say what an update needs on devices that need not be here; exits with 1 where it does not fit."""

    common: ClassVar = (
        "model",
        "topology",
        "mesh",
        "batch_size",
        "max_length",
        "optimizer",
        "dtype",
        "remat",
        "lora_rank",
        "offload",
        "json",
    )

    model: str
    """llama-1b, -3b, -8b, -70b or -405b, qwen3-0.6b, -4b or -8b, qwen2.5-7b or mistral-7b; or a config.json, a
    directory or a hub id that has one."""
    topology: str
    """Devices, such as v5e:4x4, v5p:2x2x2, v6e:8x8, h100:8, h200:1, rtx4090:1 or cpu:8."""
    mesh: str | None = None
    """Mesh of the devices, such as fsdp=8 or data=2,fsdp=4; by default all along fsdp."""
    batch_size: int = 8
    """Rows of --max-length tokens at once: a quarter of a row is prompt, the rest two responses."""
    max_length: int = 2048
    """Tokens of a row."""
    dtype: Dtype = "bfloat16"
    """Type of activations and matrix products."""
    remat: Remat = "full"
    """Recomputation in the backward pass: full needs the least memory, none the least time."""
    compilers: Path | None = None
    """Folder of compilers; by default RM_COMPILERS, else rm/compilers in the user's cache folder."""
    json: Path | None = None
    """File to write the same figures to."""


def plan_command(args: PlanArguments) -> int:
    """Prints the plan; 1 where the update does not fit."""
    if args.json:
        check_file(args.json)
    ours = {"json"} | names_of(PartOptions)
    given: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in ours}
    given["part"] = args.part()
    given["mesh"] = None if args.mesh is None else parse_mesh(args.mesh)
    found = plan(**given)
    if args.json:
        values = dataclasses.asdict(found) | {"missing_bytes": found.missing_bytes, "seconds": found.seconds}
        replace_file(args.json, json.dumps(values, indent=2) + "\n")
    print("\n".join(describe(found)))
    return 1 if found.missing_bytes else 0


def describe(found: Plan) -> list[str]:
    """The lines that `python -m rm plan` prints."""
    shown = ",".join(f"{axis}={size}" for axis, size in found.mesh.items())
    source = (
        f"compiled in {found.compile_seconds:.0f} s" if found.compiled else f"ESTIMATED, not compiled: {found.note}"
    )
    kept = f"{found.parameters / 1e9:.2f} billion parameters, {found.bytes_per_parameter:.1f} bytes each in all"
    lines = [f"{found.topology}, {found.devices} devices, mesh {shown}; {kept}", source, "", "GB of one device"]
    names = ("parameter", "optimizer", "gradient", "activation", "peak", "memory")
    sizes = [getattr(found, f"{name}_bytes_per_device") for name in names]
    labels = ("parameters", "optimizer", "gradients", "activations and the rest", "peak", "memory of the device")
    lines += [f"  {label:26}{size / 1e9:9.2f}" for label, size in zip(labels, sizes, strict=True)]
    if found.host_bytes_per_device:
        lines.append(f"  {'optimizer, kept by the host':26}{found.host_bytes_per_device / 1e9:9.2f}")
    lines += ["", f"{found.flops / 1e12:,.1f} TFLOP an update"]
    if found.compute_seconds is not None:
        lines[-1] += f": at least {found.compute_seconds:.3f} s of computing at the published peak rate"
    for axis, sent in found.communication_bytes.items():
        lines.append(f"{axis}: a device sends {sent / 1e9:.2f} GB an update")
    if found.communication_bytes and found.communication_seconds is not None:
        lines[-1] += f"; all axes at least {found.communication_seconds:.3f} s at the links' published rate"
    lines.append(f"largest batch that fits at once: {found.largest_batch_size} rows")
    lines += [f"advice: {text}" for text in found.advice]
    if found.missing_bytes:
        return [*lines, f"DOES NOT FIT: {found.missing_bytes / 1e9:.2f} GB of a device are missing"]
    return [*lines, "fits"]
