"""Devices and processes: platform, meshes, collectives, signals and multi-process runs."""

from .mesh import make_mesh
from .processes import connect
from .program_cache import keep_compiled

__all__ = [
    "connect",
    "keep_compiled",
    "make_mesh",
]
