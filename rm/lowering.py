"""Which form of attention a forward takes: the fastest of its platform that is exact for the rows it is given."""

import logging
from functools import cache
from typing import Literal

import jax.numpy as jnp

from .errors import ConfigError
from .host import platform
from .splash_attention import splash_takes

Attention = Literal["auto", "xla", "block", "splash"]

_FASTEST: dict[str, Attention] = {"cpu": "block", "tpu": "splash"}


def choose_attention(attention: Attention, regions: tuple[int, ...], dtype, context: int = 1) -> Attention:
    """The form to take; where `auto` has to fall back to `xla`, it says why, once, in one line on the log.

    **Arguments:** `context`, the devices that a row is cut over.

    **Raises:** `ConfigError` where a form was asked for that is not exact here.

    >>> choose_attention("xla", (2, 1, 1), jnp.float32)
    'xla'
    """
    form = _FASTEST.get(platform(), "xla") if attention == "auto" else attention
    reason = _refuses(form, regions, dtype, context)
    if reason and attention != "auto":
        raise ConfigError(f"attention {form!r} {reason}; use 'auto' or 'xla'")
    if reason:
        _say(f"attention by 'xla': {form!r} {reason}")
    return "xla" if reason else form


def _refuses(form: Attention, regions: tuple[int, ...], dtype, context: int) -> str | None:
    if form != "splash" or (platform() == "tpu" and context == 1 and splash_takes(regions, dtype)):
        return None
    if platform() != "tpu":
        return f"is for TPUs, found {platform()}"
    if context > 1:
        return f"takes whole rows, found context={context}"
    if dtype != jnp.bfloat16:
        return f"takes bfloat16, found {jnp.dtype(dtype).name}"
    return f"takes rows of several regions, found {regions}"


@cache
def _say(line: str) -> None:
    logging.getLogger("rm").warning(line)
