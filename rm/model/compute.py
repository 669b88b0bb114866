"""Compute: options that change the speed, memory and rounding of a forward, and nothing else."""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.sharding import Mesh

from ..errors import ConfigError
from .attention_choice import Attention

Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a forward is computed: the same rewards up to rounding, at another speed and in another memory.

    **Arguments:** `dtype`, of activations and matrix products (norms, softmax and the head stay float32); `remat`, what
    the backward pass computes again: `"full"` every block, `"dots"` everything but the products with weights, `"none"`
    nothing; `attention`: `"xla"` is the plain form, `"block"` skips what no query sees, `"splash"` and `"cudnn"` are
    kernels of TPUs and GPUs, `"auto"` takes the one of the platform where it is exact, and says why where it does not;
    `mesh`, the devices that compute together (`make_mesh`): each keeps a part of the model (`partition_specs`) and of
    the rows.

    **Raises:** `ConfigError` for an unknown `remat` or `attention`.

    >>> Compute(dtype="bfloat16", remat="none").dtype
    dtype(bfloat16)
    """

    dtype: Any = jnp.float32
    remat: Remat = "full"
    attention: Attention = "auto"
    mesh: Mesh | None = None

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))  # one hash for `jnp.bfloat16` and `"bfloat16"`
        for name, kind in {"remat": Remat, "attention": Attention}.items():
            if getattr(self, name) not in get_args(kind):
                found = f"expected one of {', '.join(get_args(kind))}, found {getattr(self, name)!r}"
                raise ConfigError(f"{name}: {found}")
