"""Prompts and responses to text: joined as strings, or rendered by the chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from ..errors import DataError, TokenizerError
from ..text.messages import SPEAKERS
from ..text.tokenizer import Tokenizer

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_OBJECT = (dict, Mapping)  # the first is far quicker to tell
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}


class RowError(DataError):
    """What is wrong with a row; `reason` is how the table counts it where such rows are dropped."""

    def __init__(self, message: str, reason: str = "malformed"):
        super().__init__(message)
        self.reason = reason


def render_response(row: Row, response: Any, field: str, tokenizer: Tokenizer) -> tuple[str, str, bool]:
    """The whole text of the row's prompt and a response, `"text"` or `"chat"`, and whether the response is empty.

    Text: the end-of-sequence token is appended where missing, prompt and response are joined as strings. Chat: the
    template renders prompt and response as one conversation.

    **Raises:** `RowError`, naming the field.
    """
    prompt = row.get("prompt", row.get("conversations"))
    if isinstance(response, str) and isinstance(prompt, str | None):
        eos = tokenizer.eos_token or ""
        whole = (prompt or "") + (response if response.endswith(eos) else response + eos)
        return check_text(whole), "text", response in ("", eos)
    own = [{"role": "assistant", "content": response}] if isinstance(response, str) else as_messages(response)
    before = [] if prompt is None else as_messages(prompt)
    if isinstance(prompt, str) and own:  # a prompt as text beside chats: they begin with it, or it is the first turn
        user = [{"role": "user", "content": prompt}]
        said = [message.get("content") for message in own if message.get("role") == "user"]
        before = [] if prompt in said else user if own[0].get("role") == "assistant" else None
    if not own or before is None:
        found = shorten(response) + ("" if prompt is None else f" with a prompt {shorten(prompt)}")
        raise RowError(
            f"field {field!r}: expected text or a list of messages (and a prompt of the same kind), found {found}"
        )
    last = own[-1]
    empty = last.get("content") in ("", None) and not last.get("tool_calls")
    return render_messages(row, [*before, *own], tokenizer), "chat", empty


def as_messages(value: Any) -> Messages | None:
    """A conversation, where `value` is one: messages with `role` and `content`, or ShareGPT's `from` and `value`."""
    value = [value] if isinstance(value, _OBJECT) else value
    if is_messages(value):
        return list(value)
    if is_sharegpt(value):
        return [
            {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in value
        ]
    return None


def is_messages(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a conversation: a list of dicts with a `role`."""
    return isinstance(value, list) and all(isinstance(message, _OBJECT) and "role" in message for message in value)


def is_sharegpt(value: Any) -> bool:
    """Whether a value is a conversation in ShareGPT's keys."""
    value = [value] if isinstance(value, _OBJECT) else value
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, _OBJECT) and isinstance(turn.get("from"), str) for turn in value)
    )


def render_messages(row: Row, messages: Sequence[Row], tokenizer: Tokenizer) -> str:
    """A conversation through the chat template, with the row's `tools` and `chat_template_kwargs`.

    Nulls are values: only keys of messages that are null are left out, as `transformers` leaves them out.

    **Raises:** `RowError`, naming the field.
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


def _check_template(asked: Any, tokenizer: Tokenizer) -> None:
    """Refuses a template that a row or a request brings along: a template is a program."""
    known = [*(["default"] if tokenizer.chat_template is not None else []), *tokenizer.named_templates]
    if asked is not None and asked not in known:
        raise RowError(
            "field 'chat_template_kwargs': chat_template must name one of the tokenizer's "
            f"({', '.join(known) or 'none'}), found {shorten(asked)}; another template is given with --chat-template"
        )


def _is_complete(message: Row) -> bool:
    """Whether a message has a role and something to say; a tool may say an object."""
    content, role = message.get("content"), message.get("role")
    if isinstance(role, str) and isinstance(content, str):
        return True
    result = isinstance(content, Mapping) and role not in SPEAKERS
    return isinstance(role, str) and (isinstance(content, list) or result or bool(message.get("tool_calls")))


def check_text(text: str) -> str:
    """The text, refused where UTF-8 cannot write it.

    **Raises:** `RowError`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"the text holds half a character ({error.reason}), expected whole ones") from None
    return text


def shorten(value: Any) -> str:
    """The kind of a value and how it begins, for an error of one line."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
