"""Messages as chat templates get them: as `transformers` 5.24 passes them on, with content in parts read as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import TokenizerError

Message = Mapping[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")
SPEAKERS = ("system", "developer", "user", "assistant")


def with_reasoning(message: Message) -> Message:
    """A message without keys that are null, its reasoning under the names that templates read.

    >>> with_reasoning({"role": "assistant", "reasoning": "1 + 1", "content": "2", "name": None})
    {'thinking': '1 + 1', 'role': 'assistant', 'reasoning': '1 + 1', 'content': '2', 'reasoning_content': '1 + 1'}

    Source: `_normalize_chat_messages` and `_alias_reasoning_fields` of `transformers/utils/chat_template_utils.py`.
    """
    if None in message.values():
        message = {name: value for name, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def render_parts(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str:
    """The text of a conversation, some of whose messages may have their content in parts.

    Parts pass as they are where the template writes the text of each. Where it fails on them, loses one of them, or
    would write the list as Python does, the message gets its texts instead, joined without anything in between.

    **Arguments:** `render`, from messages to the text.

    **Raises:** `TokenizerError` where a part is no text, naming its place; what `render` raises.

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
        given = [k for k in texts if _lost(k, texts[k], text, messages, render)]
    except TokenizerError:
        if not texts:
            raise
        text, given = "", list(texts)
    if given:
        messages = [_with(message, "".join(texts[k])) if k in given else message for k, message in enumerate(messages)]
        text = render(messages)
    for k in lists:
        if isinstance(messages[k]["content"], list) and str(messages[k]["content"]) in text:
            raise TokenizerError(f"message {k}: the chat template writes its list as Python does; expected a text")
    return text


def _with(message: Message, content: str) -> Message:
    return {**message, "content": content}


def _texts(k: int, message: Message) -> list[str] | None:
    """The text of every part; `None` where the list is a tool's result rather than parts."""
    parts, role = message["content"], message.get("role")
    typed = all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts)
    if not typed and role not in SPEAKERS:
        return None
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            found = "no type" if kind is None else f"type {kind!r}"
            raise TokenizerError(
                f"message {k}, part {number} of its content: expected the type 'text' with a text, found {found}"
            )
    return [part["text"] for part in parts]


def _lost(
    k: int, texts: Sequence[str], text: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
) -> bool:
    """Whether a rendering lacks what the parts of a message say, or has them as a list of Python."""
    if str(messages[k]["content"]) in text or any(part.strip() not in text for part in texts):
        return True
    try:
        return (
            render([_with(message, "") if number == k else message for number, message in enumerate(messages)]) == text
        )
    except TokenizerError:  # it needs a list
        return False
