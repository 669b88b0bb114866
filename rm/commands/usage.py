"""What is wrong with a command line, in one line: an unknown command or flag, and the nearest one; what is missing."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from ..errors import RmError
from .options import flag


def check_usage(argv: Sequence[str], commands: Mapping[str, type]) -> None:
    """Checks the names in a command line before its values are parsed.

    **Raises:** `RmError` for a command or a flag that does not exist, and where a flag that is needed is missing.
    """
    if not argv or argv[0].startswith("-") or {"-h", "--help"} & set(argv):
        return
    name, *rest = argv
    if name not in commands:
        raise RmError(f"no command {name!r}{_nearest(name, commands)}; there are {', '.join(commands)}")
    fields = dataclasses.fields(commands[name])
    flags = {flag(field.name) for field in fields}
    both = flags | {f"--no-{each.removeprefix('--')}" for each in flags}
    given = [argument.partition("=")[0].replace("_", "-") for argument in rest if argument.startswith("--")]
    where = f"python -m rm {name} --help lists all"
    for each in given:
        if each not in both:
            raise RmError(f"{name} has no flag {each}{_nearest(each, sorted(flags))}; {where}")
    nothing = dataclasses.MISSING
    needed = [flag(field.name) for field in fields if field.default is nothing and field.default_factory is nothing]
    missing = [each for each in needed if each not in given]
    if missing:
        raise RmError(f"{name} needs {', '.join(missing)}; {where}")


def _nearest(name: str, known: Sequence[str] | Mapping[str, type]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", perhaps {found[0]}" if found else ""
