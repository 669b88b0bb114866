"""What is wrong with a command line, in one line: names that do not exist, and the nearest; values; what is missing."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ..errors import RmError
from .flags import Flag, find_flag, flags_of, nearest, spelling


def check_usage(argv: Sequence[str], commands: Mapping[str, type]) -> None:
    """Checks the names and the values in a command line before it is parsed.

    **Raises:** `RmError` for a command or a flag that does not exist, for a value of another type than the flag's, and
    where a command, a value, or a flag that is needed is missing.
    """
    if not argv:
        raise RmError(f"expected a command: {', '.join(commands)}; python -m rm --help says what each does")
    if argv[0].startswith("-"):
        return
    name, *rest = argv
    check_command(name, commands)
    flags, given = flags_of(commands[name]), set()
    where = f"python -m rm {name} --help-all lists all"
    for argument, values in _groups(rest):
        if argument is None:
            raise RmError(f"{name}: expected a flag, found {values[0]!r}; {where}")
        if (found := find_flag(flags, argument)) is None:
            raise RmError(f"{name} has no flag {spelling(argument)}{nearest(spelling(argument), flags)}; {where}")
        given.add(found.name)
        check_values(found, argument, values)
    nothing = dataclasses.MISSING
    missing = [each for each, flag in flags.items() if flag.default is nothing and flag.name not in given]
    if missing:
        raise RmError(f"{name} needs {', '.join(missing)}; {where}")


def _groups(words: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Each flag with what is given to it; first what comes before any flag."""
    flag, values = None, []
    for word in words:
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag is not None or values:
            yield flag, values
        flag, equals, value = word.partition("=")
        values = [value] * bool(equals)
    if flag is not None or values:
        yield flag, values


def check_command(name: str, commands: Mapping[str, type]) -> None:
    """Refuses a command that does not exist."""
    if name not in commands:
        raise RmError(f"no command {name!r}{nearest(name, commands)}; there are {', '.join(commands)}")


def check_values(flag: Flag, argument: str, values: Sequence[str]) -> None:
    """Refuses what is given to a flag, where it is too much, too little or of another type."""
    takes = flag.takes
    if takes.kind is bool:
        if values:
            raise RmError(f"{argument}: is on where it stands, and takes no value, found {values[0]!r}")
        return
    wrong = next((value for value in values if not takes.accepts(value)), None)
    if wrong is not None or (not values and not takes.several):
        raise RmError(f"{argument}: expected {takes.words}, found {'nothing' if wrong is None else repr(wrong)}")
    if len(values) > 1 and not takes.several:
        raise RmError(f"{argument}: expected one value, found {len(values)}: {' '.join(values)}")
