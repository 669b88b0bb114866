"""The flags of a command, as its arguments declare them: which there are, what each takes, what a text means."""

import dataclasses
import datetime
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from .options import flag

_WORDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path", datetime.date: "a date, YYYY-MM-DD"}
_VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH", datetime.date: "YYYY-MM-DD"}


class Takes(NamedTuple):
    """What a flag takes: some choices, a value of a type, or both; nothing for a switch, whose type is `bool`."""

    kind: type | None
    choices: tuple[str, ...] = ()
    several: bool = False
    optional: bool = False

    def accepts(self, text: str) -> bool:
        """True for a text that is a value.

        >>> takes(int).accepts("16"), takes(int).accepts("many"), takes(Literal["auto"] | int).accepts("auto")
        (True, False, True)
        """
        if text in self.choices or (self.optional and text == "None"):
            return True
        try:
            return self.kind not in (None, bool) and self._read(text) is not None
        except ValueError:
            return False

    def _read(self, text: str) -> Any:
        return datetime.date.fromisoformat(text) if self.kind is datetime.date else self.kind and self.kind(text)

    @property
    def words(self) -> str:
        """What is expected, for an error."""
        named = [*self.choices, *([_WORDS.get(self.kind, "true or false")] if self.kind else [])]
        return ", ".join(named[:-1]) + " or " * (len(named) > 1) + named[-1]

    @property
    def value(self) -> str:
        """What stands for the value in a help."""
        named = [*self.choices, *([_VALUES[self.kind]] if self.kind in _VALUES else [])]
        return "|".join(named) + " …" * self.several


def takes(hint: Any) -> Takes:
    """What a flag of this type takes.

    >>> takes(tuple[str, ...] | None)
    Takes(kind=<class 'str'>, choices=(), several=True, optional=True)
    """
    if get_origin(hint) in (Union, UnionType):
        parts = [takes(each) for each in get_args(hint) if each is not NoneType]
        kind = next((part.kind for part in parts if part.kind), None)
        choices = tuple(choice for part in parts for choice in part.choices)
        return Takes(kind, choices, any(part.several for part in parts), NoneType in get_args(hint))
    if get_origin(hint) is Literal:
        return Takes(None, get_args(hint))
    if get_origin(hint) is tuple:
        return takes(get_args(hint)[0])._replace(several=True)
    return Takes(hint)


class Flag(NamedTuple):
    """A flag of a command."""

    name: str  # as an argument
    takes: Takes
    default: Any  # `dataclasses.MISSING` where it is needed


def flags_of(kind: type) -> dict[str, Flag]:
    """The flags of a command by their spelling, in order; `kind`, the class of its arguments."""
    return {flag(f.name): Flag(f.name, takes(f.type), f.default) for f in dataclasses.fields(kind)}


def find_flag(flags: Mapping[str, Flag], given: str) -> Flag | None:
    """The flag of a command that `--max_length=3` or `--no-shuffle` is."""
    name = spelling(given)
    found = flags.get(f"--{name.removeprefix('--no-')}")
    return flags.get(name) or (found if found and found.takes.kind is bool else None)


def spelling(given: str) -> str:
    """A flag as it is given, spelt as it is declared.

    >>> spelling("--max_length=3")
    '--max-length'
    """
    return given.partition("=")[0].replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that was meant, for an error; empty where none is near.

    >>> nearest("--modle", ["--model", "--mesh"])
    ', perhaps --model'
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", perhaps {found[0]}" if found else ""
