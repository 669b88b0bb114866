"""Docstrings as the reference shows them: examples as code, formulas typeset."""

import re
from typing import Any

import griffe

_MATHEMATICAL = set("σθ∇Δ√Σ±←²ᵀ·∈≤≥½")  # a backticked text with one of these is a formula, not code
_SYMBOLS = {"σ": r"\sigma", "θ": r"\theta", "∇": r"\nabla", "Δ": r"\Delta ", "Σ": r"\sum ", "±": r"\pm", "←": r"\leftarrow"}
_SYMBOLS |= {"²": "^2", "ᵀ": r"^\top", "·": r"\cdot", "∈": r"\in", "≤": r"\le", "≥": r"\ge", "½": r"\tfrac12", "…": r"\ldots"}
_SYMBOLS |= {"%": r"\%", "{": r"\{", "}": r"\}", "#": r"\#", "&": r"\&", "−": "-"}
_FUNCTIONS = {"log", "exp", "max", "min"}
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1[^ \n].*|\n\1 +\S.*)*", re.MULTILINE)


def typeset(text: str) -> str:
    """The text with its backticked formulas as TeX.

    >>> typeset("the loss `-log σ(chosen - rejected)` of `rewards[..., 0]`")
    'the loss $-\\\\log \\\\sigma(\\\\text{chosen} - \\\\text{rejected})$ of `rewards[..., 0]`'
    """
    parts = _FENCE.split(text)
    return "".join(part if number % 2 else _SPAN.sub(_formula, part) for number, part in enumerate(parts))


def _formula(match: re.Match) -> str:
    return f"${tex(match[1])}$" if set(match[1]) & _MATHEMATICAL else match[0]


def tex(formula: str) -> str:
    """A formula of a docstring in TeX.

    >>> tex("Σ n_b / n · |accuracy_b - c|")
    '\\\\sum n_{b} / n \\\\cdot |\\\\text{accuracy}_{b} - c|'
    >>> tex("q kᵀ / √E"), tex("√(p(1 - p)/n) x")
    ('q k^\\\\top / \\\\sqrt{E}', '\\\\sqrt{p(1 - p)/n} x')
    """
    words = re.sub(r"[A-Za-z]\w*", _word, formula)
    return "".join(_SYMBOLS.get(letter, letter) for letter in _roots(words)).strip()


def _word(match: re.Match) -> str:
    """A word upright, a letter in italics, what follows an underscore below it; braces are marked until the end."""
    name, _, below = match[0].partition("_")
    name = rf"\{name}" if name in _FUNCTIONS else name if len(name) == 1 else f"\\text⟦{name}⟧"
    return f"{name}_⟦{below}⟧" if below else f"{name} " if name.startswith("\\") and name[1:] in _FUNCTIONS else name


def _roots(text: str) -> str:
    """Roots over a letter or what stands in parentheses."""
    while "√" in text:
        before, _, after = text.partition("√")
        length = _closing(after) if after.startswith("(") else 1
        inside = after[1 : length - 1] if after.startswith("(") else after[:1]
        text = rf"{before}\sqrt⟦{inside}⟧{after[length:]}"
    return text


def _closing(text: str) -> int:
    """Where the parenthesis that the text begins with is closed."""
    depth = 0
    for place, letter in enumerate(text, 1):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)


_SYMBOLS |= {"⟦": "{", "⟧": "}"}


def as_markdown(docstring: str) -> str:
    """A docstring with fenced examples and typeset formulas."""
    fenced = _EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", docstring)
    return typeset(fenced)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is shown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
