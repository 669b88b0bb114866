"""Which derivatives a forward pass has: hand-written backward passes are fast, and have the first in reverse mode."""

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
    """Makes `plain` choose by `derivatives` inside the block, and says in one line that forward mode is not there.

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


def plain(function: Callable, fast: Callable) -> Callable:
    """The function as JAX differentiates it, where any derivative is asked for; else `fast`, with its own backward."""
    return function if _ANY.get() else fast


def once(backward: Callable) -> Callable:
    """A backward pass that JAX shall not differentiate again, which it says in one line.

    **Raises:** `ConfigError` when it is differentiated.
    """

    @jax.custom_jvp
    def guarded(*args: Any) -> Any:
        return backward(*args)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise ConfigError(f"second derivatives of the fast forward pass: {_ADVICE}")

    return guarded
