"""The help of a command: the flags that most people use, or all of them, in groups."""

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from .flags import Flag, flags_of
from .options import flag

_INDENT, _WIDEST = 27, 120  # columns of the flags, and of a line
_CONFIG = "Flags from a TOML, YAML or JSON file, or RUN/run.json; those here win."


def describe_command(name: str, kind: type, *, everything: bool = False) -> str:
    """The help of a command, with the flags that its arguments call `common`, or with `everything`."""
    texts = {each: text for group in reversed(kind.__mro__) for each, text in _texts(group)}
    common = tuple(texts) if everything else getattr(kind, "common", tuple(texts))
    flags = flags_of(kind).values()
    needed = " ".join(f"{flag(f.name)} {f.takes.value}" for f in flags if f.default is dataclasses.MISSING)
    lines = [*_wrap(f"usage: python -m rm {name} ", f"{needed} [flags]".strip()), "", *_wrap("", _summary(kind))]
    lines += [""] * (not everything)
    others = []
    for group, members in _by_group(kind).items():
        title = "Flags of this command" if group is kind else re.split("[.:;]", _summary(group))[0]
        shown = [each for each in members if each.name in common]
        lines += [*[""] * everything, f"{title}:"] if shown else []
        for each in shown:
            lines += _describe(each, texts[each.name] if everything else _first_clause(texts[each.name]))
        others += [title[0].lower() + title[1:]] if members and not shown else []
    lines += ["", *_columns("--config FILE", _CONFIG)]
    if len(common) < len(flags):
        more = ["more of these groups", *others]
        lines += ["", *_wrap(f"python -m rm {name} --help-all explains ", f"{len(flags)} flags: {'; '.join(more)}.")]
    return "\n".join(lines)


def _by_group(kind: type) -> dict[type, list[Flag]]:
    """The flags of a command by the class that declares them, its own first."""
    found: dict[type, list[Flag]] = {kind: []}
    for each in flags_of(kind).values():
        group = next(group for group in kind.__mro__ if each.name in inspect.get_annotations(group))
        found.setdefault(group, []).append(each)
    return found


def _texts(group: type) -> Iterator[tuple[str, str]]:
    """The fields that a class declares itself, each with the text below it."""
    if not dataclasses.is_dataclass(group):
        return
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    for field, below in pairwise(definition.body if isinstance(definition, ast.ClassDef) else []):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield ast.unparse(field.target), " ".join(str(below.value.value).split())


def _describe(each: Flag, text: str) -> list[str]:
    left = f"{flag(each.name)} {each.takes.value}".strip()
    if each.takes.kind is bool and each.default is True:
        left += f", --no-{flag(each.name).removeprefix('--')}"
    return _columns(left, f"{text}{_default(each.default)}")


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return " (needed)"
    if value is None or value is False or value == ():
        return ""
    return f" (default: {' '.join(value) if isinstance(value, tuple) else value})"


def _columns(left: str, right: str) -> list[str]:
    lines = _wrap(" " * _INDENT, right)
    if len(left) + 3 > _INDENT:
        return [f"  {left}", *lines]
    return [f"  {left}".ljust(_INDENT) + lines[0][_INDENT:], *lines[1:]]


def _wrap(before: str, text: str) -> list[str]:
    after = " " * (2 if before.strip() else len(before))
    whole: Any = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, _width(), initial_indent=before, subsequent_indent=after, **whole)


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)


def _summary(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def _first_clause(text: str) -> str:
    return re.split(r"[.;] ", text)[0].rstrip(".") + "."
