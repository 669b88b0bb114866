"""Which form of attention a forward takes: the fastest of its platform that is exact for the rows it is given."""

import logging
from functools import cache
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from ..devices.platform import platform
from ..errors import ConfigError

Attention = Literal["auto", "xla", "block", "splash", "cudnn"]
Layout = Literal["whole", "regions"]  # of rows: segments one after the other, or a region for each of their parts

_PLATFORMS = {"block": ("cpu",), "splash": ("tpu",), "cudnn": ("gpu", "cuda")}
_TYPES = {"splash": (jnp.bfloat16,), "cudnn": (jnp.bfloat16, jnp.float16)}


class Inputs(NamedTuple):
    """What a form of attention may ask about."""

    regions: tuple[int, ...]
    slots: int  # comparisons that a row has room for
    head_dim: int
    dtype: Any
    context: int = 1  # devices that a row is cut over


def choose_attention(attention: Attention, inputs: Inputs) -> Attention:
    """The form to take; where `auto` takes `xla` in place of a platform's own, it says why, once, on the log.

    **Raises:** `ConfigError` where a form was asked for that is not exact here.

    >>> choose_attention("xla", Inputs((2, 1, 1), 1, 64, jnp.float32))
    'xla'
    """
    if attention == "auto":
        form = next((form for form, on in _PLATFORMS.items() if platform() in on), "xla")
        reason = "has not yet been run on a GPU; ask for it by name" if form == "cudnn" else refuses(form, inputs)
        if reason:
            _say(f"attention by 'xla': {form!r} {reason}")
        return "xla" if reason else form  # pyright: ignore[reportReturnType]
    reason = refuses(attention, inputs)
    if reason:
        raise ConfigError(f"attention {attention!r} {reason}; use 'auto' or 'xla'")
    return attention


def default_layout() -> Layout:
    """The layout of rows for the platform's form of attention: whole segments for blocks, regions for kernels."""
    return "whole" if platform() == "cpu" else "regions"


def refuses(form: str, inputs: Inputs) -> str | None:
    """Why a form is not exact, or not to be had, for these inputs; `None` where it is. `xla` always is.

    The kernels need a region for each part of a segment: of several parts in one region, all see the prefix, so to a
    kernel they would be of one kind and see each other. They take as many keys as queries, which rows cut along
    `context` do not have; and `cudnn` knows one segment a row. Neither keeps float32: products of it are rounded.

    >>> from rm.devices.platform import compiling_for
    >>> with compiling_for("tpu"):
    ...     [refuses("splash", Inputs(regions, 4, 128, jnp.bfloat16)) for regions in ((64, 32, 32), (64,))]
    [None, 'takes rows of several regions, found (64,)']
    """
    regions, slots, head_dim, dtype, context = inputs
    if form in ("xla", "block"):
        return None
    if platform() not in _PLATFORMS[form]:
        return f"is for {'TPUs' if form == 'splash' else 'GPUs'}, found {platform()}"
    if context > 1:
        return f"takes whole rows, found context={context}"
    if len(regions) < 2:
        return f"takes rows of several regions, found {regions}"
    if form == "cudnn" and slots > 1:
        return f"takes one comparison a row, found room for {slots}"
    heads = form == "splash" or (head_dim % 8 == 0 and head_dim <= 128)  # cuDNN: 256 on some GPUs only
    takes = heads and dtype in _TYPES[form]
    return None if takes else f"does not take {jnp.dtype(dtype).name} with heads of {head_dim}"


@cache
def _say(line: str) -> None:
    logging.getLogger("rm").warning(line)
