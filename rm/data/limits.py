"""What a chat template may take: time, and what it makes, counted; what makes much of little is estimated before.

A single operation can take all time and memory (`'a' * 10**9`), so that looking at the time is not enough.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..errors import TokenizerError

SECONDS = 5.0
CHARACTERS = 20_000_000  # that a rendering may make, everything in between included
_ITEM = 50  # what an item of a list counts: its memory, in characters
SHORT = 10_000  # characters of a text that is not worth counting until it is written
BITS = 20_000  # of a whole number: arithmetic of longer ones takes seconds
# functions whose result can be as large as the product of their arguments
_GROWING = {"ljust", "rjust", "center", "zfill", "expandtabs", "replace", "join", "translate", "to_bytes", "indent"}
_GROWING |= {"batch", "slice", "rfind", "rindex", "rsplit", "rpartition"}
ESTIMATED = _GROWING | {"format", "format_map", "round", "sum", "title"}


@dataclass
class _Budget:
    deadline: float
    characters: int


_budget: ContextVar[_Budget] = ContextVar("budget")  # of the rendering that runs in this thread


@contextmanager
def limits() -> Iterator[None]:
    """What is compiled and rendered inside has the time and the size of one conversation."""
    token = _budget.set(_Budget(time.monotonic() + SECONDS, CHARACTERS))
    try:
        yield
    finally:
        _budget.reset(token)


def tick() -> None:
    """Refuses to go on where the time is over."""
    if time.monotonic() > _budget.get().deadline:
        raise TokenizerError(f"the chat template ran longer than {SECONDS:g} s on the conversation")


def spend(characters: int) -> None:
    """Counts what is made, and refuses to make more than there may be."""
    budget = _budget.get()
    budget.characters -= characters
    if budget.characters < 0:
        raise TokenizerError(f"the chat template wrote more than {CHARACTERS:,} characters for the conversation")


def refuse_over(characters: float) -> None:
    """Refuses what alone would be too much."""
    if characters > CHARACTERS:
        spend(CHARACTERS + 1)


def weight(value: Any) -> int:
    """How much a value holds, in characters, what is in it more than once counted every time."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int) and item.bit_length() > BITS:
            raise TokenizerError(f"the chat template computed a whole number of more than {BITS} bits")
        elif isinstance(item, list | tuple | dict | set | frozenset | type({}.values()) | type({}.items())):
            total += _ITEM * (1 + len(item))
            refuse_over(total)
            stack.extend(item)
            stack.extend(item.values() if isinstance(item, dict) else ())
    refuse_over(total)
    return total


def made(value: Any, *, copied: bool = True) -> Any:
    """Counts what an operation made; `copied` where it holds new texts rather than those that were there."""
    if type(value) is str:
        if len(value) > SHORT:
            spend(len(value))
    elif value is not None and type(value) is not bool:
        held = weight(value)
        spend(held if copied else 8 * len(value) if hasattr(value, "__len__") else 0)
    return value


def estimate(name: str, values: Iterable[Any]) -> None:
    """Refuses a call that would make too much, before it runs."""
    values = list(values)
    if name in ("format", "format_map") and values and isinstance(values[0], str):
        refuse_over(formatted(values[0], values[1:]))
    elif name == "title":
        refuse_over(size(values[0]) * 10)  # it makes a list of every word
    elif name == "round":
        refuse_over(max((size(value) for value in values[1:]), default=0) * 10**5)  # a power of ten
    elif name == "sum" and any(isinstance(value, list | tuple) for value in values[1:]):
        raise TokenizerError("the chat template adds up lists with `sum`, which takes too long; expected numbers")
    elif name == "replace" and len(values) > 2:
        text, old, new = (str(value) for value in values[:3])  # the last two may be by keyword, in any order
        refuse_over(len(text) + max(text.count(old) * len(new), text.count(new) * len(old)))
    else:
        refuse_over(math.prod(max(1, size(value)) for value in values))


def size(value: Any) -> int:
    """How often a function may repeat another of its arguments because of this one."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, dict):
        return weight(value)
    if hasattr(value, "__len__"):
        return len(value)
    return 10**5 if hasattr(value, "__next__") else 1  # the longest range there is


def formatted(text: str, values: list[Any]) -> int:
    """How long a text can become when its placeholders are filled."""
    widths = sum(int(number) for number in re.findall(r"\d+", text))
    if "*" in text or re.search(r"\{[^}]*\{", text):  # widths among the values
        widths += sum(abs(value) for value in _flat(values) if isinstance(value, int)) * len(text)
    return widths + (1 + text.count("%") + text.count("{")) * weight(values)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
