"""Docstrings as Markdown: examples as code, formulas as TeX."""

import re

_MATHEMATICAL = set("σθ∇Δ√Σ±←²ᵀ·∈≤≥½")  # a backticked text with one of these is a formula, not code
_SYMBOLS = {
    "σ": r"\sigma",
    "θ": r"\theta",
    "∇": r"\nabla",
    "Δ": r"\Delta ",
    "Σ": r"\sum ",
    "±": r"\pm",
    "←": r"\leftarrow",
}
_SYMBOLS |= {
    "²": "^2",
    "ᵀ": r"^\top",
    "·": r"\cdot",
    "∈": r"\in",
    "≤": r"\le",
    "≥": r"\ge",
    "½": r"\tfrac12",
    "…": r"\ldots",
}
_SYMBOLS |= {"%": r"\%", "{": r"\{", "}": r"\}", "#": r"\#", "&": r"\&", "−": "-", "₁": "_1", "₂": "_2"}
_SYMBOLS |= {"ᵢ": "_i", "ⱼ": "_j", "⌊": r"\lfloor ", "⌋": r"\rfloor", "×": r"\times", "≠": r"\ne", "∞": r"\infty"}
_SYMBOLS |= {"α": r"\alpha", "β": r"\beta", "λ": r"\lambda", "ε": r"\varepsilon", "μ": r"\mu", "τ": r"\tau"}
_SYMBOLS |= {"⟦": "{", "⟧": "}"}  # marks for the braces of TeX, until those of the formula are escaped
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
    formula = tex(match[1]) if set(match[1]) & _MATHEMATICAL else "…"
    return f"${formula}$" if formula.isascii() else match[0]  # with a letter that is not known it stays as it is


def tex(formula: str) -> str:
    """A formula of a docstring in TeX.

    >>> tex("Σ n_b / n · |accuracy_b - c|")
    '\\\\sum n_{b} / n \\\\cdot |\\\\text{accuracy}_{b} - c|'
    >>> tex("q kᵀ / √E"), tex("√(p(1 - p)/n) x")
    ('q k^\\\\top / \\\\sqrt{E}', '\\\\sqrt{p(1 - p)/n} x')
    """
    words = re.sub(r"[A-Za-z]\w*", _word, formula, flags=re.ASCII)
    return re.sub(" +", " ", "".join(_SYMBOLS.get(letter, letter) for letter in _roots(words))).strip()


def _word(match: re.Match) -> str:
    """A word upright, a letter in italics, what follows an underscore below it; braces are marked until the end."""
    name, _, below = match[0].partition("_")
    if len(below) > 2:  # the name of a function or a field
        return f"\\text⟦{match[0]}⟧".replace("_", r"\_")
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


def as_markdown(docstring: str) -> str:
    """A docstring with fenced examples and typeset formulas."""
    fenced = _EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", docstring)
    return typeset(fenced)
