"""The errors that users can put right, each with a one-line message: where, expected, found, what to do."""

import functools
import logging
import os
import re
from collections.abc import Mapping

_SECRETS = re.compile(r"(?<=:/)/?[^/\s@]+(?=@)|\bhf_\w{8,}")  # NAME:PASSWORD in a URL, tokens of the hub
_SYSTEM = re.compile(r"(?i:os_error_code='|os error |\[errno )(\d+)")  # of TensorStore; of Rust; of Arrow and Python
_LONGEST = 2000  # characters of a message; the values it quotes can have any length


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, up to 200 characters, or the exception's type if it has no message.

    >>> first_line(OSError("no room\\nTraceback")), first_line(KeyError())
    ('no room', 'KeyError')
    """
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def system_reason(error: BaseException) -> str:
    """The system's own reason in an exception, such as a full disk, else the first line of its message.

    >>> system_reason(ValueError("Error writing …: 7 bytes [os_error_code='28']")), system_reason(ValueError("no"))
    ('No space left on device', 'no')
    """
    found = _SYSTEM.search(str(error))
    return os.strerror(int(found[1])) if found else getattr(error, "strerror", None) or first_line(error)


@functools.cache
def warn_once(line: str) -> None:
    """Logs a warning, the same one only once."""
    logging.getLogger("rm").warning(line)


def check_list(name: str, value: object) -> None:
    """Refuses a single text or mapping where a list is meant: its characters or keys would be taken one by one.

    **Raises:** `ConfigError`.
    """
    if isinstance(value, str | bytes | Mapping):
        kind = "mapping" if isinstance(value, Mapping) else "text"
        raise ConfigError(f"{name}: expected a list, found a single {kind}; put it into a list")


class RmError(Exception):
    """An error that the user can put right; `python -m rm` prints it as one line and exits with code 2."""

    def __init__(self, message: str):
        text = " ".join(line.strip() for line in message.splitlines())  # messages of other libraries have several lines
        text = _SECRETS.sub("…", text)
        super().__init__(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


class ConfigError(RmError):
    """A `config.json` that does not describe a supported reward model, or options that contradict each other."""


class WeightsError(RmError):
    """Weights that cannot be read, or that do not fit the configuration."""


class TokenizerError(RmError):
    """A tokenizer or a chat template that cannot be used."""


class DataError(RmError):
    """A data set with an unreadable file, or an invalid row or field."""


class CheckpointError(RmError):
    """A checkpoint that cannot be restored, or that has changed since it was written."""


class OutputError(RmError):
    """An output path that cannot be written to, or that already holds something."""
