"""Chat templates: conversations to text, as `transformers` 5.24 renders them."""

import functools
import json
import time
import warnings
from collections.abc import Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from ..errors import RmError, TokenizerError

if TYPE_CHECKING:
    import jinja2

SECONDS = 5.0  # limit for rendering one conversation
CHARACTERS = 20_000_000  # limit of one conversation's text


def render_chat(template: str, variables: Mapping[str, Any], today: date) -> str:
    """Renders a chat template in jinja's immutable sandbox, within `SECONDS` and `CHARACTERS`.

    The limits are checked whenever the template writes: one that computes for long without writing is not stopped.

    **Arguments:** `variables`, by name; `today`, the date that `strftime_now` formats (Llama 3.2's templates write it).

    **Raises:** `TokenizerError` where the template is not valid, refuses the conversation, or exceeds a limit.

    >>> render_chat("{{ messages[0].content }}, {{ strftime_now('%Y') }}", {"messages": [{"content": "Hi"}]}, date.max)
    'Hi, 9999'

    Source: `transformers/utils/chat_template_utils.py`.
    """
    import jinja2

    try:
        return _write(compile_template(template, today), variables)
    except RmError:
        raise
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refused the conversation: {error}") from None
    except Exception as error:  # a template is a program: it can fail in any way
        raise TokenizerError(f"the chat template failed on the conversation: {error!r}") from None


def _write(template: "jinja2.Template", variables: Mapping[str, Any]) -> str:
    pieces, size, deadline = [], 0, time.monotonic() + SECONDS
    for piece in template.generate(variables):
        pieces.append(piece)
        size += len(piece)
        if size > CHARACTERS:
            raise TokenizerError(f"the chat template wrote more than {CHARACTERS:,} characters for the conversation")
        if time.monotonic() > deadline:
            raise TokenizerError(f"the chat template ran longer than {SECONDS:g} s on the conversation")
    return "".join(pieces)


@functools.lru_cache(maxsize=64)
def compile_template(template: str, today: date) -> "jinja2.Template":
    """Compiles a chat template; raises `TokenizerError` where it is not valid."""
    import jinja2

    clock = datetime(today.year, today.month, today.day).strftime
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's warnings about the generated code
            return environment().from_string(template, globals={"strftime_now": clock})
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is not valid jinja (line {error.lineno}: {error.message})") from None


@functools.cache
def environment() -> "jinja2.Environment":
    """Jinja's immutable sandbox with the blocks, filters and functions that chat templates use."""
    import jinja2.ext
    import jinja2.sandbox

    from .jinja_parts import Generation, MakeDict, Namespace

    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {"raise_exception": _raise_exception, "dict": MakeDict(), "namespace": Namespace}
    return sandbox


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # jinja's own filter escapes HTML characters, which the model has never seen
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
