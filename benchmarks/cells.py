"""The cells of matrix.py and kill.py, and how far each may be from one device."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.xla import FEW_OPTIMIZATIONS

ONE = "data=1"
MESHES = (ONE, "data=4", "fsdp=4", "fsdp=2,tensor=2", "data=2,context=2", "fsdp=2,context=2,tensor=2")
OPTIMIZERS = ("adamw", "lion", "muon", "adafactor", "MultiSteps")
TYPES: dict[str, dict[str, Any]] = {  # the arguments by which each differs from float32
    "float32": {},
    "bfloat16 moments": {"moments": "bfloat16"},
    "bfloat16 parameters": {"parameters": "bfloat16"},
    "offload": {"offload": True},
}
# The largest difference of a loss, and of all weights in shares of the distance that training has moved them.
# One device differs as much from itself where the comparisons are in other rows: sums in another order round otherwise.
BOUNDS = {
    "float32": (1e-5, 2e-4),  # Adam divides by the root of its second moment: rounding of a gradient near 0 counts
    "bfloat16 moments": (1e-4, 2e-2),  # a moment that rounds the other way differs by 1/128 of itself
    "bfloat16 parameters": (1e-2, 0.1),  # so does a weight, which for a norm (near 1) is more than an update moves it
    "offload": (1e-5, 2e-4),  # computes as float32 does
}
WIDER = {
    "lion": {"float32": (1e-3, 0.05), "bfloat16 moments": (5e-3, 0.1), "offload": (1e-3, 0.05)},  # signs turn near 0
    "muon": {"bfloat16 parameters": (1e-2, 0.2)},  # every singular value counts alike; in other rows: 3e-3, 0.12
}


def bounds(optimizer: str, types: str) -> tuple[float, float]:
    return WIDER.get(optimizer, {}).get(types, BOUNDS[types])


def set_devices() -> None:
    """Makes eight virtual devices, and a cache of all programs, which are small and many; before JAX is imported."""
    wait = "--xla_cpu_collective_call_terminate_timeout_seconds=300"  # devices on few cores wait for one another
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FEW_OPTIMIZATIONS} {wait}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
