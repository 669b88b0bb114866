"""Finds fields of messages that a chat template ignores, by rendering rows without them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from .formats import Example, parse_row
from .render import Row, RowError

_USUAL = {"role", "content", "from", "value"}
_TRIED = 8  # rows of a chunk that are rendered without a given field


def count_fields(
    rows: Sequence[Row], examples: Mapping[int, Example], first: int, tokenizer: Tokenizer
) -> Counter[tuple[str, str]]:
    """Counts the rows with each non-standard field of messages, and the tried rows whose text the field changes."""
    counts: Counter[tuple[str, str]] = Counter()
    tried: Counter[str] = Counter()
    for number, example in examples.items():
        row = rows[number - first] if example.kind == "chat" else {}
        for field in sorted(set(_fields(row))):
            counts["field", field] += 1
            if tried[field] < _TRIED:
                tried[field] += 1
                counts["field_rendered", field] += _is_rendered(row, field, example, tokenizer)
    return counts


def _fields(row: Row) -> Iterator[str]:
    for value in row.values():
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, dict) and not message.keys() <= _USUAL and ("role" in message or "from" in message):
                yield from (name for name, item in message.items() if name not in _USUAL and item is not None)


def _is_rendered(row: Row, field: str, example: Example, tokenizer: Tokenizer) -> bool:
    try:
        rendered = parse_row({name: _without(value, field) for name, value in row.items()}, tokenizer)
    except RowError:  # the template or the format needs the field
        return True
    return rendered.sequences != example.sequences


def _without(value: Any, field: str) -> Any:
    if isinstance(value, list):
        return [_without(item, field) for item in value]
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return {name: item for name, item in value.items() if name != field}
    return value
