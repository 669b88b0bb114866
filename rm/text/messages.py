"""Messages as `transformers` 5.24 passes them to chat templates, with content in parts read as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import TokenizerError

Message = Mapping[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")
SPEAKERS = ("system", "developer", "user", "assistant")


def with_reasoning(message: Message) -> Message:
    """The message without its null keys, and with its reasoning under the names that templates read.

    >>> with_reasoning({"role": "assistant", "reasoning": "1 + 1", "content": "2", "name": None})
    {'thinking': '1 + 1', 'role': 'assistant', 'reasoning': '1 + 1', 'content': '2', 'reasoning_content': '1 + 1'}

    Source: `_normalize_chat_messages` and `_alias_reasoning_fields` of `transformers/utils/chat_template_utils.py`.
    """
    if None in message.values():
        message = {name: value for name, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def render_parts(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str:
    """Renders a conversation in which the content of a message may be a list of parts.

    The template gets the parts unchanged if it writes the text of each. If it fails on them, loses one, or prints the
    list as Python does, it gets their concatenated texts instead.

    **Raises:** `TokenizerError` where a part is not text, naming the part; any error of `render`.

    >>> def render(messages):
    ...     return " ".join(str(message["content"]) for message in messages)
    >>> parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you"}]
    >>> render_parts(render, [{"role": "user", "content": parts}])
    'Hello, you'
    """
    lists = [k for k, message in enumerate(messages) if isinstance(message.get("content"), list)]
    if not lists:
        return render(messages)
    texts = {k: texts for k in lists if (texts := _texts(k, messages[k])) is not None}
    try:
        text = render(messages)
        to_join = [k for k in texts if _loses_parts(k, texts[k], text, messages, render)]
    except TokenizerError:
        if not texts:
            raise
        text, to_join = "", list(texts)
    if to_join:
        messages = _with_contents(messages, {k: "".join(texts[k]) for k in to_join})
        text = render(messages)
    for k in lists:
        if isinstance(messages[k]["content"], list) and str(messages[k]["content"]) in text:
            raise TokenizerError(f"message {k}: the chat template prints its content as a Python list; make it a text")
    return text


def _with_contents(messages: Sequence[Message], contents: Mapping[int, str]) -> Sequence[Message]:
    return [{**message, "content": contents[k]} if k in contents else message for k, message in enumerate(messages)]


def _texts(k: int, message: Message) -> list[str] | None:
    """The text of every part; `None` if the list is the result of a tool rather than parts."""
    parts, role = message["content"], message.get("role")
    typed = all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts)
    if not typed and role not in SPEAKERS:
        return None
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            found = "no type" if kind is None else f"type {kind!r}"
            raise TokenizerError(f"message {k}, part {number}: expected the type 'text' with a text, found {found}")
    return [part["text"] for part in parts]


def _loses_parts(
    k: int, texts: Sequence[str], text: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
) -> bool:
    """True if the rendered text lacks a part of message `k`, or contains the list as Python prints it."""
    if str(messages[k]["content"]) in text or any(part.strip() not in text for part in texts):
        return True
    try:
        return render(_with_contents(messages, {k: ""})) == text
    except TokenizerError:  # the template needs a list
        return False
