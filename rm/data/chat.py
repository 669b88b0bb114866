"""Chat templates: conversations to text."""

import functools
import warnings
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from ..errors import RmError, TokenizerError

if TYPE_CHECKING:
    import jinja2

_LONGEST = 100_000  # characters of a template: compiling a longer one takes seconds


def render_chat(template: str, variables: Mapping[str, Any], today: date) -> str:
    """Renders a chat template in jinja's immutable sandbox, with what templates in the wild use.

    `today` is the date that templates which ask for the present one are told (those of Llama 3.2 write it down).

    **Raises:** `TokenizerError` where the template is not valid, refuses the conversation, or takes too long or too
    much memory for it.
    """
    import jinja2

    from .limits import limits

    try:
        with limits():
            return _compile(template).render(strftime_now=_clock(today), **variables)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refused the conversation: {error}") from None
    except RmError:
        raise
    except Exception as error:  # a template is a program: it can fail in any way
        raise TokenizerError(f"the chat template failed on the conversation: {error!r}") from None


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> "jinja2.Template":
    import jinja2

    from .sandbox import Sandbox

    if len(template) > _LONGEST:
        raise TokenizerError(f"the chat template has {len(template)} characters, expected at most {_LONGEST}")
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's, of what the template compiles to
            return Sandbox().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is not valid jinja (line {error.lineno}: {error.message})") from None


def _clock(today: date) -> Callable[[str], str]:
    return datetime(today.year, today.month, today.day).strftime
