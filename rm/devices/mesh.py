"""Meshes of devices: their axes, and which rows of a batch each device computes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..errors import ConfigError

AXES = ("data", "fsdp", "context", "tensor")  # the last varies fastest: neighbours exchange the most
ROWS = ("data", "fsdp")  # what the rows of a batch are spread over


def make_mesh(
    *, data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of all devices, or of `devices`, which must be as many as the product of the sizes.

    **Arguments:** `data`, copies of the model, each with its rows of a batch; `fsdp`, parts that weights, gradients
    and moments are kept in (Rajbhandari et al. 2019, arXiv 1910.02054, stage 3), each with its rows too; `tensor`,
    parts that heads and the MLP are computed in (Shoeybi et al. 2019, arXiv 1909.08053); `context`, parts that rows
    are cut into.

    **Raises:** `ConfigError` where a size is less than 1, or the product is not the number of devices.

    >>> make_mesh(fsdp=1, devices=jax.devices()[:1]).shape["fsdp"]
    1
    """
    sizes = {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
    found = list(jax.devices() if devices is None else devices)
    shown = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "data=1"
    for axis, size in sizes.items():
        if size < 1:
            raise ConfigError(f"mesh {shown}: {axis} must be at least 1, found {size}")
    if math.prod(sizes.values()) != len(found):
        raise ConfigError(f"mesh {shown} takes {math.prod(sizes.values())} devices, found {len(found)}")
    return jax.make_mesh(tuple(sizes[axis] for axis in AXES), AXES, (AxisType.Auto,) * len(AXES), devices=found)


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes of a mesh, for `make_mesh`, as a command line gives them.

    >>> parse_mesh("data=2,fsdp=4")
    {'data': 2, 'fsdp': 4}
    """
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not size.isdecimal():
            raise ConfigError(f"mesh {text!r}: expected such as data=2,fsdp=4 (of {', '.join(AXES)}), found {part!r}")
        sizes[axis] = int(size)
    return sizes


def row_shards(mesh: Mesh | None) -> int:
    """Parts that the rows of a batch are spread over."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROWS)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """The shardings of a tree of specs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a tree are on, `None` where they are on no mesh or only traced."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, Tracer) and isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf.sharding.mesh
    return None


def own_rows(rows: int, mesh: Mesh) -> slice:
    """Of the rows of a batch, those that devices of this process compute.

    **Raises:** `ConfigError` where the rows do not divide.
    """
    check_rows(rows, mesh)
    parts = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,)).values()
    places = [part[0].indices(rows) for part in parts if part]
    return slice(min(start for start, _, _ in places), max(stop for _, stop, _ in places))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Refuses rows that the mesh does not divide."""
    parts = row_shards(mesh)
    if rows % parts:
        raise ConfigError(f"{rows} rows do not divide over data·fsdp = {parts}; plan_batches(…, rows={parts})")
