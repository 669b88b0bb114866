"""The dimension letters of all shape annotations, and the decorator that checks the annotations.

| letter | meaning                                       | letter | meaning                             |
|--------|-----------------------------------------------|--------|-------------------------------------|
| R      | rows of a batch                               | L      | layers (stacked); labels of a head  |
| N      | tokens of a row: prefixes and responses        | D      | hidden size                         |
| S      | slots: the comparisons that fit into a row    | F      | MLP size                            |
| K      | responses of a comparison                     | V      | vocabulary                          |
| B      | comparisons                                   | G      | key/value heads                     |
| M      | queries of an attention product               | Q      | query heads per key/value head      |
| J      | keys of an attention product                  | E      | head size                           |
| I, O   | in and out features of a linear layer         | H      | query heads, H = G·Q                |
| P      | rank of a low-rank adapter                    |        |                                     |
"""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

Checked = TypeVar("Checked", bound=Callable[..., Any])
_CLASS = re.compile(r"<class '([^']*)'>")
_PLACE = re.compile(r"\b(?:\w+\.)+(\w+)")  # of a type: the modules before its name
_LONGEST = 200  # characters of a value in an error; a model has thousands


def checked(function: Checked) -> Checked:
    """Checks arguments and results against their annotations while JAX traces, so that it costs nothing in a step.

    **Raises:** `jaxtyping.TypeCheckError`, one line that names the argument, what is expected and what was found.
    """
    checking = jaxtyped(typechecker=beartype)(function)
    if isinstance(function, type):
        return checking

    @functools.wraps(checking)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return checking(*args, **kwargs)
        except TypeCheckError as error:
            raise TypeCheckError(_one_line(str(error))) from None

    return call  # pyright: ignore[reportReturnType]


def _one_line(message: str) -> str:
    """The parts of jaxtyping's message that a reader needs."""
    found = re.search(r"(?:parameters|return value) of (\S+?)\.\n", message)
    value = re.search(r"Actual value: (.*?)\nExpected type: (.*?)\.?\n-{3}", message, re.DOTALL)
    if found is None or value is None:
        return message
    name = re.search(r"typechecking parameter '(\w+)'", message)
    axes = ", ".join(re.findall(r"^(\w+=\(?[\d, ]+\)?)$", message, re.MULTILINE))
    expected = _PLACE.sub(r"\1", _CLASS.sub(r"\1", value[2]))
    actual = " ".join(value[1].split())
    actual = actual if len(actual) <= _LONGEST else f"{actual[:_LONGEST]}…"
    where = f"{found[1]}: {name[1] if name else 'the result'}"
    return f"{where}: expected {expected}, found {actual}{f' where {axes}' if axes else ''}"
