"""Meshes of devices: their axes, and the rows of a batch that each device computes."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..errors import ConfigError

AXES = ("data", "fsdp", "context", "tensor")  # the last varies fastest: neighbours exchange the most
ROWS = ("data", "fsdp")  # the axes that the rows of a batch are sharded over


def make_mesh(
    *, data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of all devices, or of `devices`; their number must be the product of the sizes.

    **Arguments:** `data`, copies of the model, each with its own rows of a batch; `fsdp`, shards of weights, gradients
    and moments (Rajbhandari et al. 2019, arXiv 1910.02054, stage 3), each with its own rows too; `tensor`, shards of
    heads and MLP features (Shoeybi et al. 2019, arXiv 1909.08053); `context`, shards of every row's tokens.

    **Raises:** `ConfigError` if a size is less than 1, or if the product is not the number of devices.

    >>> make_mesh(fsdp=1, devices=jax.devices()[:1]).shape["fsdp"]
    1
    """
    sizes = {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
    devices = list(jax.devices() if devices is None else devices)
    shown = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "data=1"
    for axis, size in sizes.items():
        if size < 1:
            raise ConfigError(f"mesh {shown}: {axis} must be at least 1, found {size}")
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(f"mesh {shown} takes {math.prod(sizes.values())} devices, found {len(devices)}")
    return jax.make_mesh(tuple(sizes[axis] for axis in AXES), AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def parse_mesh(text: str) -> dict[str, int]:
    """Parses the sizes of a mesh from a command line, for `make_mesh`.

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


def standard_mesh(mesh: Mesh) -> Mesh:
    """The same devices with all four axes of `make_mesh`; a missing axis has size 1, and every axis is of type Auto.

    **Raises:** `ConfigError` for an axis of another name, and inside `jax.set_mesh` with a mesh that JAX cannot combine
    with this one: with Explicit axes, or with axes in another order.

    >>> standard_mesh(jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])).axis_names
    ('data', 'fsdp', 'context', 'tensor')
    """
    _check_ambient()
    types = (AxisType.Auto,) * len(AXES)
    if mesh.axis_names == AXES and mesh.axis_types == types:
        return mesh
    if others := [name for name in mesh.axis_names if name not in AXES]:
        raise ConfigError(
            f"mesh with the axis {others[0]!r}: expected axes of {', '.join(AXES)}; rm.make_mesh makes one"
        )
    order = [mesh.axis_names.index(axis) for axis in AXES if axis in mesh.axis_names]
    devices = mesh.devices.transpose(order).reshape([mesh.shape.get(axis, 1) for axis in AXES])
    return Mesh(devices, AXES, axis_types=types)


def _check_ambient() -> None:
    """Checks the mesh that `jax.set_mesh` has set, if any."""
    ambient = jax.sharding.get_abstract_mesh()
    names = [name for name in AXES if name in ambient.axis_names]
    if AxisType.Explicit in ambient.axis_types or (names and names != list(ambient.axis_names)):
        kinds = ", ".join(
            f"{a}={n} {t.name}" for (a, n), t in zip(ambient.shape.items(), ambient.axis_types, strict=True)
        )
        raise ConfigError(
            f"jax.set_mesh: expected Auto axes in the order {', '.join(AXES)}, found {kinds}; leave it out (the mesh "
            "in rm.Compute is enough) or set a mesh of rm.make_mesh"
        )


def row_shards(mesh: Mesh | None) -> int:
    """The number of shards of a batch's rows."""
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in ROWS)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """The shardings on a mesh of a tree of specs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a tree are on, or `None` if they are on no mesh or are only traced.

    A mesh whose axes all have names of `make_mesh` becomes the `standard_mesh`; any other stays as it is.
    """
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, Tracer) and isinstance(getattr(leaf, "sharding", None), NamedSharding):
            mesh = leaf.sharding.mesh
            return standard_mesh(mesh) if set(mesh.axis_names) <= set(AXES) else mesh
    return None


def own_rows(rows: int, mesh: Mesh) -> slice:
    """The rows of a batch that the devices of this process compute.

    **Raises:** `ConfigError` if the mesh does not divide the rows.
    """
    check_rows(rows, mesh)
    parts = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,)).values()
    places = [part[0].indices(rows) for part in parts if part]
    return slice(min(start for start, _, _ in places), max(stop for _, stop, _ in places))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Checks that the mesh divides the rows of a batch."""
    parts = row_shards(mesh)
    if not isinstance(rows, numbers.Integral):  # which jaxlib 0.10.2 does not support on a mesh
        raise ConfigError(f"a mesh divides a known number of rows, found {rows}; export with a number, or without mesh")
    if rows % parts:
        raise ConfigError(f"{rows} rows do not divide over data·fsdp = {parts}; plan_batches(…, rows={parts})")
