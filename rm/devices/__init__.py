"""The devices that compute: platform, meshes, what they tell each other, and several processes."""

from .mesh import make_mesh
from .platform import keep_compiled
from .processes import connect

__all__ = [
    "connect",
    "keep_compiled",
    "make_mesh",
]
