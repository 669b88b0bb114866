"""Devices and processes: platform, meshes, collectives, signals and multi-process runs."""

from .mesh import make_mesh
from .platform import keep_compiled
from .processes import connect

__all__ = [
    "connect",
    "keep_compiled",
    "make_mesh",
]
