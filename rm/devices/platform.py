"""The platform that code is traced for, and the memory that its C library keeps."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


def platform() -> str:
    """The platform that code is traced for: cpu, gpu, cuda or tpu."""
    return _TARGET.get() or jax.default_backend()


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Makes `platform` return `target` inside the block, to trace code for devices that this machine lacks."""
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)


def give_back_memory() -> None:
    """Gives the system what the C library keeps of freed memory, where it can be told to (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
