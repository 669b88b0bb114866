"""One family of errors, each message a single line: where, what was expected, what was found, what to do."""

import re

_SECRETS = re.compile(r"(?<=:/)/?[^/\s@]+(?=@)|\bhf_\w{8,}")  # NAME:PASSWORD of an address, tokens of the hub
_LONGEST = 2000  # characters of a message: what was found can be of any length


def first_line(error: BaseException) -> str:
    """What an exception says, without what follows the first line and the 200th character; its kind if nothing.

    >>> first_line(OSError("no room\\nTraceback")), first_line(KeyError())
    ('no room', 'KeyError')
    """
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


class RmError(Exception):
    """Something the user can put right; `python -m rm` prints it as one line and exits with code 2."""

    def __init__(self, message: str):
        text = " ".join(line.strip() for line in message.splitlines())  # templates and readers add lines
        text = _SECRETS.sub("…", text)
        super().__init__(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


class ConfigError(RmError):
    """A `config.json` that does not describe a Llama reward model, or options that contradict each other."""


class WeightsError(RmError):
    """Weights that cannot be read, or that do not fit the configuration."""


class TokenizerError(RmError):
    """A tokenizer or a chat template that cannot be used."""


class DataError(RmError):
    """A data set whose file, row or field is not what it should be."""


class CheckpointError(RmError):
    """A checkpoint that is not what was saved."""


class OutputError(RmError):
    """A place that cannot be written to, or that already holds something."""
