"""The device that code is traced for, and the memory that the host's C library keeps."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax


class Target(NamedTuple):
    """A kind of device, as far as code depends on it."""

    platform: str  # cpu, gpu, cuda or tpu
    capability: float | None = None  # of an NVIDIA GPU: 9.0 for an H100
    memory: int | None = None  # bytes that JAX may take, where it tells


_TARGET: ContextVar[Target | None] = ContextVar("target", default=None)
_PLANNED = {"gpu": 9.0, "cuda": 9.0}  # the capability of a GPU that only its platform is known of


def target() -> Target:
    """The device that code is traced for: this process's first, or that of `compiling_for`."""
    return _TARGET.get() or describe(jax.local_devices()[0])


def describe(device: Any) -> Target:
    """The kind of a JAX device.

    >>> describe(jax.devices("cpu")[0])
    Target(platform='cpu', capability=None, memory=None)
    """
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU, or one of AMD, whose name is none
        capability = None
    memory = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return Target(device.platform, capability, memory)


def platform() -> str:
    """The platform that code is traced for: cpu, gpu, cuda or tpu."""
    return target().platform


def on_gpu() -> bool:
    """True where code is traced for GPUs."""
    return platform() not in ("cpu", "tpu")


@contextmanager
def compiling_for(kind: str | Target) -> Iterator[None]:
    """Makes `target` return a kind of device inside the block, to trace code for devices that this machine lacks."""
    token = _TARGET.set(Target(kind, _PLANNED.get(kind)) if isinstance(kind, str) else kind)
    try:
        yield
    finally:
        _TARGET.reset(token)


def give_back_memory() -> None:
    """Gives the system what the C library keeps of freed memory, where it can be told to (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
