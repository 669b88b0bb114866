"""One family of errors: every message is a single line that says where, what was expected, what was found and what to do."""


class RmError(Exception):
    """Something the user can put right; `python -m rm` prints it as one line and exits with code 2."""


class ConfigError(RmError):
    """A `config.json` that does not describe a Llama reward model, or options that contradict each other."""


class WeightsError(RmError):
    """Weights that cannot be read, or that do not fit the configuration."""


class TokenizerError(RmError):
    """A tokenizer or a chat template that cannot be used."""


class DataError(RmError):
    """A data set whose file, row or field is not what it should be."""


class OutputError(RmError):
    """A place that cannot be written to, or that already holds something."""
