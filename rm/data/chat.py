"""Chat templates: conversations to text."""

import functools
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, ClassVar

from ..errors import RmError, TokenizerError


def render_chat(template: str, variables: Mapping[str, Any], today: date) -> str:
    """Renders a chat template in jinja's immutable sandbox, with what templates in the wild use.

    `today` is the date that templates which ask for the present one are told (those of Llama 3.2 write it down).

    **Raises:** `TokenizerError` where the template is not valid, or refuses the conversation.
    """
    import jinja2

    try:
        return _compile(template).render(strftime_now=_clock(today), **variables)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refused the conversation: {error}") from None
    except RmError:
        raise
    except Exception as error:  # a template is a program: it can fail in any way
        raise TokenizerError(f"the chat template failed on the conversation: {error!r}") from None


@functools.lru_cache(maxsize=16)
def _compile(template: str):
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant says; the text passes through."""

        tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is not valid jinja (line {error.lineno}: {error.message})") from None


def _clock(today: date) -> Callable[[str], str]:
    return datetime(today.year, today.month, today.day).strftime


def _to_json(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    # jinja's own filter escapes HTML characters, which the model has never seen
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
