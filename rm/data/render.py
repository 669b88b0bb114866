"""Prompts and responses to text: joined as strings, or rendered by the chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError, TokenizerError
from ..text.messages import SPEAKERS
from ..text.tokenizer import Tokenizer

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_OBJECT = (dict, Mapping)  # the first is much faster to check
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}


class RowError(DataError):
    """An error in a row, naming the field; the table counts dropped rows by `reason`."""

    def __init__(self, message: str, reason: str = "malformed"):
        super().__init__(message)
        self.reason = reason


class NoPair(RowError):
    """A row without two responses to compare, which is left out and counted, and no error."""

    def __init__(self):
        super().__init__("field 'responses': expected at least two", "single_response")


def render_response(row: Row, response: Any, field: str, tokenizer: Tokenizer) -> tuple[str, str, bool]:
    """The text of prompt and response, its kind (`"text"` or `"chat"`), and whether the response is empty.

    Text: the end-of-sequence token is appended where missing, prompt and response are joined as strings. Chat: the
    template renders prompt and response as one conversation, after the system message of the column `system`. A text
    prompt beside such a column is a chat, in every row, for there is no text to join a system message to.
    """
    prompt = row.get("prompt", row.get("conversations"))
    if isinstance(response, str) and (prompt is None or (isinstance(prompt, str) and "system" not in row)):
        eos = tokenizer.eos_token or ""
        text = (prompt or "") + (response if response.endswith(eos) else response + eos)
        return check_text(text), "text", response in ("", eos)
    turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else as_messages(response)
    earlier = [] if prompt is None else as_messages(prompt)
    if isinstance(prompt, str) and turns:  # a text prompt with a chat: the chat contains it, or it is the first turn
        user = [{"role": "user", "content": prompt}]
        questions = [message.get("content") for message in turns if message.get("role") == "user"]
        earlier = [] if prompt in questions else user if turns[0].get("role") == "assistant" else None
    if earlier and turns and turns[: len(earlier)] == earlier:  # the response is the whole conversation
        earlier = []
    if not turns or earlier is None:
        found = shorten(response) + ("" if prompt is None else f" with a prompt {shorten(prompt)}")
        raise RowError(f"field {field!r}: expected text or messages (and a prompt of the same kind), found {found}")
    last = turns[-1]
    empty = last.get("content") in ("", None) and not last.get("tool_calls")
    return render_messages(row, _with_system(row.get("system"), [*earlier, *turns]), tokenizer), "chat", empty


def _with_system(system: Any, messages: Messages) -> Messages:
    """The conversation after its system message; one that begins with that message already stays."""
    if not system:
        return messages
    first = {"role": "system", "content": system}
    if not isinstance(system, str):
        raise RowError(f"field 'system': expected text, found {shorten(system)}")
    if messages[0].get("role") == "system" and messages[0] != first:
        raise RowError("field 'system': the conversation begins with another system message; remove one of them")
    return messages if messages[0] == first else [first, *messages]


def as_messages(value: Any) -> Messages | None:
    """The messages of a conversation, also one with ShareGPT's keys; `None` if `value` is not a conversation."""
    value = [value] if isinstance(value, _OBJECT) else value
    if isinstance(value, list) and all(isinstance(message, _OBJECT) and "role" in message for message in value):
        return list(value)
    if is_sharegpt(value):
        return [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in value]
    return None


def is_sharegpt(value: Any) -> bool:
    """True for a conversation with ShareGPT's keys, `from` and `value`."""
    value = [value] if isinstance(value, _OBJECT) else value
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, _OBJECT) and isinstance(turn.get("from"), str) for turn in value)
    )


def render_messages(row: Row, messages: Sequence[Row], tokenizer: Tokenizer) -> str:
    """Renders a conversation by the chat template, with the row's `tools` and `chat_template_kwargs`.

    Null keys of messages are left out, as in `transformers`; all other nulls are kept.
    """
    arguments = row.get("chat_template_kwargs") or {}
    if not isinstance(arguments, dict) or not arguments.keys().isdisjoint(("self", "messages", "tools")):
        raise RowError("field 'chat_template_kwargs': expected an object without self, messages and tools")
    _check_template(arguments.get("chat_template"), tokenizer)
    for message in messages:
        if not _is_complete(message):
            raise RowError(f"a message needs a role and a content (or tool_calls), found {shorten(message)}")
    try:
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return check_text(tokenizer.apply_chat_template(messages, tools=tools, **arguments))
    except TokenizerError as error:
        raise RowError(str(error)) from None
    except json.JSONDecodeError as error:
        raise RowError(f"field 'tools': not valid JSON ({error.msg})") from None


def _check_template(requested: Any, tokenizer: Tokenizer) -> None:
    """Refuses a template from a row or a request, which may only name one: a template is a program."""
    named = [*(["default"] if tokenizer.chat_template is not None else []), *tokenizer.named_templates]
    if requested is not None and requested not in named:
        expected = f"chat_template must name one of the tokenizer's ({', '.join(named) or 'none'})"
        raise RowError(
            f"field 'chat_template_kwargs': {expected}, found {shorten(requested)}; "
            "another template is given with --chat-template"
        )


def _is_complete(message: Row) -> bool:
    """True if a message has a role and a content or tool calls; a tool's content may be an object."""
    content, role = message.get("content"), message.get("role")
    if isinstance(role, str) and isinstance(content, str):
        return True
    result = isinstance(content, Mapping) and role not in SPEAKERS
    return isinstance(role, str) and (isinstance(content, list) or result or bool(message.get("tool_calls")))


def check_text(text: str) -> str:
    """Returns the text, or raises `RowError` where UTF-8 cannot encode it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"the text holds half a character ({error.reason}), expected whole ones") from None
    return text


def shorten(value: Any) -> str:
    """The type of a value and its beginning, for an error of one line."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
