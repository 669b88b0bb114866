"""What is computed on: the platform that code is traced for, and compiled programs kept on disk."""

import os
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
    """Has what is traced in the block take the forms of another platform, whose devices are not here."""
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)


def keep_compiled(directory: str | Path | None = None) -> None:
    """Has JAX keep what it compiles in a folder, and read it from there in the next process.

    The commands call this; a notebook may, before it computes anything.

    **Arguments:** `directory`, by default `rm/compiled` in the user's cache folder (`XDG_CACHE_HOME` moves it). Where
    JAX has been given one already (`JAX_COMPILATION_CACHE_DIR`), that stays, and so does a cache that was turned off
    (`JAX_ENABLE_COMPILATION_CACHE=false`).

    Example: `rm.keep_compiled()`.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(directory or default))
