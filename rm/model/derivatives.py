"""Derivatives of the forward pass: hand-written backward passes, fast, give gradients; JAX's own give all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import jax

from ..errors import ConfigError

Derivatives = Literal["first", "any"]

_ANY: ContextVar[bool] = ContextVar("any", default=False)
_ADVICE = "rm.Compute(derivatives='any') has forward mode (jax.jvp) and higher derivatives"


@contextmanager
def providing(derivatives: Derivatives) -> Iterator[None]:
    """Inside the block `choose_backward` follows `derivatives`, and JAX's error about forward mode is one of ours.

    **Raises:** `ConfigError` where JAX differentiates in forward mode through a hand-written backward pass.
    """
    token = _ANY.set(derivatives == "any")
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ConfigError(f"forward-mode differentiation of the fast forward pass: {_ADVICE}") from None
    finally:
        _ANY.reset(token)


def choose_backward(plain: Callable, fast: Callable) -> Callable:
    """`plain`, which JAX differentiates, for any derivatives; else `fast`, whose backward pass is hand-written."""
    return plain if _ANY.get() else fast


def first_only(backward: Callable) -> Callable:
    """Wraps a backward pass so that differentiating it raises an error of one line.

    Second derivatives through it would be wrong where it reads bits (`transposed`), and fail where it loops.

    **Raises:** `ConfigError` when it is differentiated.
    """

    @jax.custom_jvp
    def guarded(*args: Any) -> Any:
        return backward(*args)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise ConfigError(f"second derivatives of the fast forward pass: {_ADVICE}")

    return guarded
