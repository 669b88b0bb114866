"""Questions as chats: texts, transcripts, and the columns of a question."""

import re
from typing import Any

from .render import Messages, Row, RowError, shorten

SPEAKERS = ("user", "assistant")
_HUMAN = re.compile(r"\n\n(Human|Assistant):")  # Anthropic's marks of turns
_EXTRA_ID = re.compile(r"\n<extra_id_1>(User|Assistant)\n")  # HelpSteer2's, none before the first turn


def turns(text: str) -> Messages:
    """The turns of a transcript, with Anthropic's marks or HelpSteer2's; any other text is one turn of the user.

    >>> turns("\\n\\nHuman: Hi\\n\\nAssistant: Hello")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if text.startswith("\n\nHuman:"):
        _, *parts = (part.strip() for part in _HUMAN.split(text))
    else:
        parts = ["User", *_EXTRA_ID.split(text)]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": "assistant" if name == "Assistant" else "user", "content": said} for name, said in pairs]


def asked(text: Any) -> Any:
    """A question, or a transcript up to its last answer, as a chat; what is one already stays."""
    if not isinstance(text, str):
        return text
    *earlier, last = turns(text)
    return earlier if last == {"role": "assistant", "content": ""} else [*earlier, last]


def question(row: Row, *names: str) -> Messages:
    """The chat that the columns of a question make: the pairs of `history`, then their texts, one a line."""
    texts = [row.get(name) or "" for name in names]
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str):
            raise RowError(f"field {name!r}: expected text, found {shorten(text)}")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise RowError(f"field 'history': expected pairs of question and answer, found {shorten(history)}")
    earlier = [{"role": role, "content": text} for turn in history for role, text in zip(SPEAKERS, turn, strict=True)]
    return [*earlier, {"role": "user", "content": "\n".join(text for text in texts if text)}]
