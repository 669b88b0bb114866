"""Blocks and functions that chat templates use and jinja lacks; imported only when a template is rendered."""

from typing import Any, ClassVar

import jinja2.utils
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension


class Generation(Extension):
    """The block `{% generation %}`, which marks the assistant's text: its body, rendered in a scope of its own."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> nodes.Node:
        """Parses the block as a call that returns its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any):  # `self` may be one of the names
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class MakeDict:
    """The function `dict` of templates; Python's class would expose more attributes than a template needs."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Returns `dict(*args, **kwargs)`."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Returns `dict.fromkeys(*args)`."""
        return dict.fromkeys(*args)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a name in a namespace may not begin with an underscore, found {name!r}")
