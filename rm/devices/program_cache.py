"""The cache of compiled programs on disk."""

import glob
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax

_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")


def keep_compiled(directory: str | Path | None = None) -> None:
    """Makes JAX cache compiled programs on disk, so that the next process does not compile them again.

    The commands call this; a notebook may call it before it computes anything.

    **Arguments:** `directory`, by default `rm/compiled` in the user's cache folder (`XDG_CACHE_HOME` moves it). A
    directory already set in JAX (`JAX_COMPILATION_CACHE_DIR`) stays in use, and a cache that was turned off
    (`JAX_ENABLE_COMPILATION_CACHE=false`) stays off. A damaged program is compiled again and replaced, which is logged,
    unless warnings are turned off.

    Example: `rm.keep_compiled()`.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(directory or default))
    _replace_damaged()


def _replace_damaged() -> None:
    """Removes a damaged program when JAX warns of it; JAX itself would never write over the old file."""
    show = warnings.showwarning
    if getattr(show, "replaces_damaged", False):
        return

    def showwarning(message: Any, *args: Any, **options: Any) -> None:
        if not remove_damaged(str(message)):
            show(message, *args, **options)

    showwarning.replaces_damaged = True  # pyright: ignore[reportFunctionMemberAccess]
    warnings.showwarning = showwarning


def remove_damaged(warning: str) -> bool:
    """Removes all cached programs of the function that a warning of JAX names, for it does not say which is damaged.

    **Returns:** whether any was removed; else the warning stands.
    """
    found = _DAMAGED.match(warning)
    directory = Path(jax.config.values["jax_compilation_cache_dir"] or "")
    programs = list(directory.glob(f"{glob.escape(found[1])}-*-cache")) if found else []
    try:
        for path in programs:
            path.unlink(missing_ok=True)
    except OSError as error:  # a cache that others keep
        logging.getLogger("rm").warning(f"{error.filename}: damaged or of a damaged one's name, and cannot be removed")
        return False
    if programs and found:
        logging.getLogger("rm").warning(
            f"{found[1]}: its compiled program on disk is damaged; it is compiled and written again"
        )
    return bool(programs)
