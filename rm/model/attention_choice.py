"""The choice of an attention implementation: the fastest one on the platform that is exact for the rows."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from ..devices.platform import platform, target
from ..errors import ConfigError, warn_once
from .derivatives import Derivatives

Attention = Literal["auto", "xla", "block", "splash", "cudnn"]
# Of rows: whole segments one after the other; one region for each part; the same, where attention gathers sequences.
Layout = Literal["whole", "regions", "gathered"]

_PLATFORMS = {"block": ("cpu",), "splash": ("tpu",), "cudnn": ("gpu", "cuda")}
_TYPES = {"splash": (jnp.bfloat16,), "cudnn": (jnp.bfloat16, jnp.float16)}


class Inputs(NamedTuple):
    """The inputs of attention, as far as an implementation depends on them."""

    regions: tuple[int, ...]
    head_dim: int
    dtype: Any
    context: int = 1  # devices that a row is sharded over
    window: int | None = None
    derivatives: Derivatives = "first"

    @property
    def shorter_window(self) -> int | None:
        """The sliding window; `None` if it hides nothing, because the rows hold no longer sequences."""
        longest = self.context * (self.regions[0] + max(self.regions[1:], default=0))
        return self.window if self.window is not None and self.window < longest else None


def choose_attention(attention: Attention, inputs: Inputs) -> Attention:
    """The implementation to use; if `auto` falls back to `xla`, it logs the reason once.

    **Raises:** `ConfigError` if the implementation named by `attention` is not exact here.

    >>> choose_attention("xla", Inputs((2, 1, 1), 64, jnp.float32))
    'xla'
    """
    if attention == "auto" and inputs.derivatives == "any":
        return "xla"
    if attention == "xla" and inputs.derivatives == "first" and platform() == "cpu":
        warn_once("attention by 'xla' on a CPU takes many times the time and memory of 'block', which 'auto' takes")
    if attention == "auto":
        name = next((name for name, platforms in _PLATFORMS.items() if platform() in platforms), "xla")
        reason = refuses(name, inputs)
        if reason:
            warn_once(f"attention by 'xla', slower than {name!r}, which {reason}")
        return "xla" if reason else name  # pyright: ignore[reportReturnType]
    reason = refuses(attention, inputs)
    if reason:
        raise ConfigError(f"attention {attention!r} {reason}; use 'auto' or 'xla'")
    return attention


def default_layout() -> Layout:
    """The row layout for the platform's attention: whole segments for blocks, regions for kernels."""
    return "whole" if platform() == "cpu" else "regions" if platform() == "tpu" else "gathered"


def refuses(name: str, inputs: Inputs) -> str | None:
    """The reason why an implementation is unavailable or not exact for these inputs, else `None`.

    `xla` and `block` are always exact. A kernel needs one region for each part of a segment, because it cannot keep two
    parts in the same region from seeing each other. It needs as many keys as queries, which rows sharded along
    `context` do not have, and rounds float32 products. `splash` has no sliding windows. `cudnn` needs an NVIDIA GPU
    since Ampere.

    >>> from rm.devices.platform import compiling_for
    >>> with compiling_for("tpu"):
    ...     [refuses("splash", Inputs(regions, 128, jnp.bfloat16)) for regions in ((64, 32, 32), (64,))]
    [None, 'takes rows of several regions, found (64,)']
    """
    regions, head_dim, dtype, context, window, derivatives = inputs
    if name == "xla":
        return None
    if derivatives == "any":
        return "has gradients only, and derivatives='any' asks for more"
    if name == "block":
        return None
    if platform() not in _PLATFORMS[name]:
        return f"is for {'TPUs' if name == 'splash' else 'GPUs'}, found {platform()}"
    if context > 1:
        return f"takes whole rows, found context={context}"
    if len(regions) < 2:
        return f"takes rows of several regions, found {regions}"
    if name == "splash" and inputs.shorter_window is not None:
        return f"has no sliding window, and sequences in these rows may be longer than the model's of {window}"
    capability = target().capability or 0.0
    if name == "cudnn" and capability < 8.0:
        return f"needs an NVIDIA GPU of compute capability 8.0 or more, found {capability or 'another'}"
    heads_fit = name == "splash" or (head_dim % 8 == 0 and head_dim <= (256 if capability >= 9.0 else 128))
    supported = heads_fit and dtype in _TYPES[name]
    return None if supported else f"does not take {jnp.dtype(dtype).name} with heads of {head_dim}"
