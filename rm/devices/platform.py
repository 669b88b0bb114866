"""The platform that code is traced for, and the cache of compiled programs on disk."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

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


def keep_compiled(directory: str | Path | None = None) -> None:
    """Makes JAX cache compiled programs on disk, so that the next process does not compile them again.

    The commands call this; a notebook may call it before it computes anything.

    **Arguments:** `directory`, by default `rm/compiled` in the user's cache folder (`XDG_CACHE_HOME` moves it). A
    directory already set in JAX (`JAX_COMPILATION_CACHE_DIR`) stays in use, and a cache that was turned off
    (`JAX_ENABLE_COMPILATION_CACHE=false`) stays off.

    Example: `rm.keep_compiled()`.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(directory or default))


def give_back_memory() -> None:
    """Gives the system what the C library keeps of freed memory, where it can be told to (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
