"""`Compute`: options that change the speed, memory and rounding of a forward pass, and nothing else."""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.sharding import Mesh

from ..devices.mesh import standard_mesh
from ..devices.platform import target
from ..errors import ConfigError
from .attention_choice import Attention
from .derivatives import Derivatives

Remat = Literal["none", "dots", "full"]


def choose_dtype(dtype: Any) -> Any:
    """The type of a computation; of `"auto"`, the fastest of the device: bfloat16 on TPUs, and on GPUs that have it.

    >>> choose_dtype("auto"), choose_dtype("bfloat16")  # on a CPU
    (dtype('float32'), dtype(bfloat16))
    """
    if not isinstance(dtype, str) or dtype != "auto":
        return jnp.dtype(dtype)
    device = target()
    fast = device.platform == "tpu" or (device.capability or 0.0) >= 8.0
    return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Options of a forward pass that change its speed and memory; the rewards stay the same up to rounding.

    **Arguments:** `dtype`, the type of activations and matrix products (norms, softmax and the head stay float32), or
    `"auto"`, the fastest of the device;
    `remat`, what the backward pass recomputes: `"full"` every block, `"dots"` everything except products with weights,
    `"none"` nothing; `attention`, the implementation: `"xla"` is plain attention, `"block"` skips blocks that no query
    sees, `"splash"` and `"cudnn"` are kernels for TPUs and GPUs, `"auto"` is the platform's own where that is exact,
    else `"xla"`, and logs the reason; `mesh`, the devices that compute together (`make_mesh`), each with a shard of
    the model (`partition_specs`) and of the rows; `derivatives`, which ones can be taken: `"first"`, gradients in
    reverse mode, the fastest; `"any"`, also forward mode (`jax.jvp`) and higher derivatives, with plain attention and,
    in bfloat16, gradients of weights that are rounded to bfloat16.

    **Raises:** `ConfigError` for an unknown `remat`, `attention` or `derivatives`.

    >>> Compute(dtype="bfloat16", remat="none").dtype
    dtype(bfloat16)
    """

    dtype: Any = jnp.float32
    remat: Remat = "full"
    attention: Attention = "auto"
    mesh: Mesh | None = None
    derivatives: Derivatives = "first"

    def __post_init__(self):
        object.__setattr__(self, "dtype", choose_dtype(self.dtype))  # so that `jnp.bfloat16` and `"bfloat16"` are equal
        if self.mesh is not None:
            object.__setattr__(self, "mesh", standard_mesh(self.mesh))
        for name, kind in {"remat": Remat, "attention": Attention, "derivatives": Derivatives}.items():
            if getattr(self, name) not in get_args(kind):
                found = f"expected one of {', '.join(get_args(kind))}, found {getattr(self, name)!r}"
                raise ConfigError(f"{name}: {found}")
