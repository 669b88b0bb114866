"""What the flags of several commands may be."""

import math
from typing import Any

from ..errors import ConfigError


def flag(name: str) -> str:
    """How the command line spells an argument.

    >>> flag("max_length")
    '--max-length'
    """
    return f"--{name.replace('_', '-')}"


def check_positive(arguments: Any, *names: str) -> None:
    """Refuses arguments that are there and not greater than 0.

    **Raises:** `ConfigError`, naming the flag.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{flag(name)} must be greater than 0, found {value}")


def check_not_negative(arguments: Any, *names: str) -> None:
    """Refuses arguments less than 0.

    **Raises:** `ConfigError`, naming the flag.
    """
    for name in names:
        if getattr(arguments, name) < 0:
            raise ConfigError(f"{flag(name)} must not be negative, found {getattr(arguments, name)}")


def check_finite(arguments: Any) -> None:
    """Refuses numbers that are infinite or none.

    **Raises:** `ConfigError`, naming the flag.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{flag(name)} must be finite, found {value}")
