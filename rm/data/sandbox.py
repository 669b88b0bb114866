"""Jinja's immutable sandbox, with limits on time and size: a chat template is a program, and may come from strangers.

The time is looked at in loops, calls, filters and every few comparisons. A single operation can still take all time and
memory (`'a' * 10**9`), so whatever is made is counted, and what makes much of little is estimated before it runs.
"""

import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..errors import TokenizerError

SECONDS = 5.0
CHARACTERS = 20_000_000  # that a rendering may make, everything in between included
_ITEM = 50  # what an item of a list counts: its memory, in characters
_SHORT = 10_000  # characters of a text that is not worth counting until it is written
_BITS = 20_000  # of a whole number: arithmetic of longer ones takes seconds
_OF_MARKUP = ("urlize", "xmlattr", "striptags", "wordwrap", "pprint")  # filters too slow to be worth a limit
# functions whose result can be as large as the product of their arguments
_GROWING = {"ljust", "rjust", "center", "zfill", "expandtabs", "replace", "join", "translate", "to_bytes", "indent"}
_GROWING |= {"batch", "slice", "rfind", "rindex", "rsplit", "rpartition"}
_ESTIMATED = _GROWING | {"format", "format_map", "round", "sum", "title"}


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


def _tick() -> None:
    if time.monotonic() > _budget.get().deadline:
        raise TokenizerError(f"the chat template ran longer than {SECONDS:g} s on the conversation")


def _spend(characters: int) -> None:
    budget = _budget.get()
    budget.characters -= characters
    if budget.characters < 0:
        raise TokenizerError(f"the chat template wrote more than {CHARACTERS:,} characters for the conversation")


def _refuse_over(characters: float) -> None:
    if characters > CHARACTERS:
        _spend(CHARACTERS + 1)


def _weight(value: Any) -> int:
    """How much a value holds, in characters, what is in it more than once counted every time."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int) and item.bit_length() > _BITS:
            raise TokenizerError(f"the chat template computed a whole number of more than {_BITS} bits")
        elif isinstance(item, list | tuple | dict | set | frozenset | type({}.values()) | type({}.items())):
            total += _ITEM * (1 + len(item))
            _refuse_over(total)
            stack.extend(item)
            stack.extend(item.values() if isinstance(item, dict) else ())
    _refuse_over(total)
    return total


def _made(value: Any, *, copied: bool = True) -> Any:
    """Counts what an operation made; `copied` where it holds new texts rather than those that were there."""
    if type(value) is str:
        if len(value) > _SHORT:
            _spend(len(value))
    elif value is not None and type(value) is not bool:
        weight = _weight(value)
        _spend(weight if copied else 8 * len(value) if hasattr(value, "__len__") else 0)
    return value


def _estimate(name: str, values: Iterable[Any]) -> None:
    """Refuses a call that would make too much, before it runs."""
    values = list(values)
    if name in ("format", "format_map") and values and isinstance(values[0], str):
        _refuse_over(_formatted(values[0], values[1:]))
    elif name == "title":
        _refuse_over(_size(values[0]) * 10)  # it makes a list of every word
    elif name == "round":
        _refuse_over(max((_size(value) for value in values[1:]), default=0) * 10**5)  # a power of ten
    elif name == "sum" and any(isinstance(value, list | tuple) for value in values[1:]):
        raise TokenizerError("the chat template adds up lists with `sum`, which takes too long; expected numbers")
    elif name == "replace" and len(values) > 2:
        text, old, new = (str(value) for value in values[:3])  # the last two may be by keyword, in any order
        _refuse_over(len(text) + max(text.count(old) * len(new), text.count(new) * len(old)))
    else:
        _refuse_over(math.prod(max(1, _size(value)) for value in values))


def _size(value: Any) -> int:
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, dict):
        return _weight(value)
    if hasattr(value, "__len__"):
        return len(value)
    return 10**5 if hasattr(value, "__next__") else 1  # the longest range there is


def _formatted(text: str, values: list[Any]) -> int:
    widths = sum(int(number) for number in re.findall(r"\d+", text))
    if "*" in text or re.search(r"\{[^}]*\{", text):  # widths among the values
        widths += sum(abs(value) for value in _flat(values) if isinstance(value, int)) * len(text)
    return widths + (1 + text.count("%") + text.count("{")) * _weight(values)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments estimated and its result counted."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # it gets the context before the value

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _tick()
        if name in _ESTIMATED:
            _estimate(name, (*args[first:], *kwargs.values()))
        return _made(function(*args, **kwargs), copied=False)

    return limited


@jinja2.pass_context  # so that it is not computed once, when the template is compiled
def _look_at_the_time(context: Any, value: Any, cost: int = 0) -> Any:
    _tick()
    _spend(cost)
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
        own = {"made": functools.partial(_made, copied=False), "look at the time": _look_at_the_time}
        self.filters |= own | {"concat": lambda parts: self.concat(map(str, parts))}
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Namespace, "raise_exception": _raise_exception}

    def concat(self, parts: Iterable[str]) -> str:
        """Joins what is written, counted as it comes."""
        parts = list(parts)
        _spend(sum(map(len, parts)))
        return "".join(parts)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function, a macro or a method."""
        _tick()
        owner, name = getattr(getattr(obj, "__wrapped__", obj), "__self__", None), getattr(obj, "__name__", "")
        if name in _ESTIMATED:
            _estimate(name, (owner, *args, *kwargs.values()))
        return _made(super().call(context, obj, *args, **kwargs), copied=isinstance(owner, str))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes what an operator makes of two values."""
        if operator == "+":  # the most frequent by far
            both = left + right
            return both if type(both) is str and len(both) <= _SHORT else _made(both)
        _tick()
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            _refuse_over(_size(left) * _size(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _refuse_over(left.bit_length() * abs(right) * CHARACTERS / _BITS)
        elif operator == "%" and isinstance(left, str):
            _refuse_over(_formatted(left, [right]))
        return _made(super().call_binop(context, operator, left, right))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja's own filter escapes HTML characters, which the model has never seen
        _weight(value)
        options: Any = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
        if indent is None:
            return json.dumps(value, **options)
        _refuse_over(_size(indent) * 10**5)  # at the beginning of every line
        return self.concat(json.JSONEncoder(indent=indent, **options).iterencode(value))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
