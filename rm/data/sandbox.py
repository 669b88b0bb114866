"""Jinja's immutable sandbox, with limits on time and size: a chat template is a program, and may come from strangers.

The time is looked at in loops, calls, filters and every few comparisons; what they make is counted or estimated.
"""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .limits import (
    BITS,
    CHARACTERS,
    ESTIMATED,
    SHORT,
    estimate,
    formatted,
    made,
    refuse_over,
    size,
    spend,
    tick,
    weight,
)

_OF_MARKUP = ("urlize", "xmlattr", "striptags", "wordwrap", "pprint")  # filters too slow to be worth a limit


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments estimated and its result counted."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # it gets the context before the value

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        tick()
        if name in ESTIMATED:
            estimate(name, (*args[first:], *kwargs.values()))
        return made(function(*args, **kwargs), copied=False)

    return limited


@jinja2.pass_context  # so that it is not computed once, when the template is compiled
def _look_at_the_time(context: Any, value: Any, cost: int = 0) -> Any:
    tick()
    spend(cost)
    return value


class _Limits(NodeTransformer):
    """Puts limits into a template; the names of its filters are none that a template can write."""

    comparisons = 0

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        outputs = sum(len(output.nodes) for output in node.find_all(nodes.Output))
        turn = _through("look at the time", nodes.Const(None), nodes.Const(16 * outputs))
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_through("look at the time", nodes.Const(True)), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _through("concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        plain = getattr(node, "ctx", "load") != "load" or all(isinstance(item, nodes.Const) for item in node.items)
        return node if plain else _through("made", node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _through("made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        self.comparisons += 1
        return node if self.comparisons % 16 else _through("look at the time", node)

    visit_Test = visit_Compare


def _through(name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno or 1)


class _Generator(CodeGenerator):
    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        super().visit_Template(_Limits().visit(node), frame)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says; the text passes through."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    def __repr__(self) -> str:  # those inside one another would write themselves without end
        return "<Namespace>"


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates, with what they use in the wild; to be used inside `limits()`."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)  # pyright: ignore[reportAssignmentType]

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        self.filters["tojson"] = self._to_json
        self.filters = {name: _limited(name, function) for name, function in self.filters.items()}
        for name in _OF_MARKUP:
            del self.filters[name]
        own = {"made": functools.partial(made, copied=False), "look at the time": _look_at_the_time}
        self.filters |= own | {"concat": lambda parts: self.concat(map(str, parts))}
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Namespace, "raise_exception": _raise_exception}

    def concat(self, parts: Iterable[str]) -> str:
        """Joins what is written, counted as it comes."""
        parts = list(parts)
        spend(sum(map(len, parts)))
        return "".join(parts)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function, a macro or a method."""
        tick()
        owner, name = getattr(getattr(obj, "__wrapped__", obj), "__self__", None), getattr(obj, "__name__", "")
        if name in ESTIMATED:
            estimate(name, (owner, *args, *kwargs.values()))
        return made(super().call(context, obj, *args, **kwargs), copied=isinstance(owner, str))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes what an operator makes of two values."""
        if operator == "+":  # the most frequent by far
            both = left + right
            return both if type(both) is str and len(both) <= SHORT else made(both)
        tick()
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            refuse_over(size(left) * size(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            refuse_over(left.bit_length() * abs(right) * CHARACTERS / BITS)
        elif operator == "%" and isinstance(left, str):
            refuse_over(formatted(left, [right]))
        return made(super().call_binop(context, operator, left, right))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja's own filter escapes HTML characters, which the model has never seen
        weight(value)
        options: Any = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
        if indent is None:
            return json.dumps(value, **options)
        refuse_over(size(indent) * 10**5)  # at the beginning of every line
        return self.concat(json.JSONEncoder(indent=indent, **options).iterencode(value))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
