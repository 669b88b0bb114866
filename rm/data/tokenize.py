"""Preference rows to token ids with the prefix that the responses share; the conventions are TRL's."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeGuard

from ..config import LlamaConfig
from ..errors import DataError, TokenizerError
from .comparisons import TokenizedComparisons, flatten
from .tokenizer import Tokenizer

Row = Mapping[str, Any]
_CHUNK = 1024  # rows whose texts are in memory at a time


def tokenize_comparisons(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    config: LlamaConfig,
    *,
    max_length: int = 1024,
    share_prefix: bool = True,
    source: str = "data",
) -> tuple[TokenizedComparisons, dict[str, Any]]:
    """Tokenizes rows of `chosen` and `rejected`, each a text or a list of messages, `prompt` optional.

    Text: the end-of-sequence token is appended where missing, prompt and response are joined as strings and tokenized
    once. Chat: the template renders prompt and response as one conversation, and no special token is added to that.
    A comparison with a side over `max_length` tokens, or with two identical sides, is dropped and counted.

    **Arguments:** `rows`, a `datasets.Dataset` or dicts, which may also hold `margin`, `tools` and
    `chat_template_kwargs`; `config`, for the pooling rule and the vocabulary; `share_prefix`, whether a comparison's
    common token prefix is kept once; `source`, the name that errors use.

    **Returns:** the comparisons, and a table of what was read, kept and dropped.

    **Raises:** `DataError`, naming the row and the field; `TokenizerError` where the tokenizer does not fit the model.
    """
    check_vocabulary(tokenizer, config)
    pairs, margins = [], []
    dropped = {"over_length": 0, "identical": 0}
    read = 0
    for sides, margin in _encode(rows, tokenizer, source):
        read += 1
        reason = _reason_to_drop(sides, max_length)
        if reason:
            dropped[reason] += 1
        else:
            pairs.append(sides)
            margins.append(margin)
    table = {"read": read, "kept": len(pairs), "dropped": dropped}
    if not pairs:
        raise DataError(
            f"{source}: no comparison is left of {read} (over {max_length} tokens: {dropped['over_length']}, "
            f"identical: {dropped['identical']}); raise --max-length or check the data"
        )
    comparisons = flatten(pairs, margins, config, share_prefix=share_prefix)
    return comparisons, table | {"tokens": int(comparisons.num_tokens.sum()), "tokens_stored": len(comparisons.tokens)}


def check_vocabulary(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    """Raises `TokenizerError` where the tokenizer knows ids that the embedding lacks."""
    if tokenizer.max_token_id >= config.vocab_size:
        raise TokenizerError(
            f"the tokenizer is larger than the embedding: token ids reach {tokenizer.max_token_id}, the model has "
            f"{config.vocab_size} rows; use the tokenizer that belongs to the model"
        )


def _reason_to_drop(sides: Sequence[Sequence[int]], max_length: int) -> str | None:
    if max(map(len, sides)) > max_length:
        return "over_length"
    return "identical" if sides[0] == sides[1] else None


def _encode(rows: Iterable[Row], tokenizer: Tokenizer, source: str) -> Iterator[tuple[list[list[int]], float]]:
    """The two token sequences and the margin of every row, encoded in chunks."""
    numbered = enumerate(rows)
    while chunk := list(islice(numbered, _CHUNK)):
        rendered = [_render_row(row, tokenizer, f"{source}: row {number}") for number, row in chunk]
        ids: list[list[int]] = [[]] * (2 * len(chunk))
        for chat in (False, True):
            where = [2 * i + side for i, (_, is_chat, _) in enumerate(rendered) if is_chat == chat for side in (0, 1)]
            texts = [rendered[w // 2][0][w % 2] for w in where]
            for w, encoded in zip(where, tokenizer.encode_batch(texts, add_special_tokens=not chat), strict=True):
                ids[w] = encoded
        for i, (_, _, margin) in enumerate(rendered):
            for name, side in zip(("chosen", "rejected"), ids[2 * i : 2 * i + 2], strict=True):
                if not side:
                    raise DataError(f"{source}: row {chunk[i][0]}: field {name!r} has no tokens; expected at least one")
            yield ids[2 * i : 2 * i + 2], margin


def _render_row(row: Row, tokenizer: Tokenizer, where: str) -> tuple[tuple[str, str], bool, float]:
    """The texts of both sides, whether they are rendered chats, and the margin."""
    for name in ("chosen", "rejected"):
        if name not in row:
            raise DataError(f"{where}: no column {name!r}; found {', '.join(row)}, expected chosen, rejected, [prompt]")
    chosen, chat = render_response(row, "chosen", tokenizer, where)
    rejected, other = render_response(row, "rejected", tokenizer, where)
    if chat != other:
        raise DataError(f"{where}: chosen and rejected must both be texts or both be messages")
    return (chosen, rejected), chat, _margin(row, where)


def render_response(row: Row, field: str, tokenizer: Tokenizer, where: str) -> tuple[str, bool]:
    """The text of `prompt` + `field`, and whether the chat template rendered it."""
    response, prompt = row[field], row.get("prompt")
    if isinstance(response, str) and isinstance(prompt, str | None):
        eos = tokenizer.eos_token or ""
        return check_text((prompt or "") + (response if response.endswith(eos) else response + eos), where), False
    if is_messages(response) and (prompt is None or is_messages(prompt)):
        return render_messages(row, [*(prompt or []), *response], tokenizer, where), True
    raise DataError(
        f"{where}: field {field!r}: expected text or a list of messages (and a prompt of the same kind), found "
        f"{type(response).__name__} with a prompt of type {type(prompt).__name__}"
    )


def render_messages(row: Row, messages: Sequence[Row], tokenizer: Tokenizer, where: str) -> str:
    """A conversation through the chat template, with the row's `tools` and `chat_template_kwargs`."""
    tools, variables = row.get("tools"), _without_nulls(row.get("chat_template_kwargs") or {})
    if not isinstance(variables, dict) or not variables.keys().isdisjoint(("messages", "tools")):
        raise DataError(f"{where}: field 'chat_template_kwargs': expected an object without messages and tools")
    messages = _without_nulls(messages)
    for message in messages:
        content, role = message.get("content"), message.get("role")
        if not isinstance(role, str) or not (isinstance(content, str | list) or message.get("tool_calls")):
            raise DataError(f"{where}: a message needs a role and a content (or tool_calls), found {message}")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else _without_nulls(tools)
        return check_text(tokenizer.apply_chat_template(messages, tools=tools, **variables), where)
    except TokenizerError as error:
        raise DataError(f"{where}: {error}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: field 'tools': not valid JSON ({error.msg})") from None


def check_text(text: str, where: str) -> str:
    """The text, refused where UTF-8 cannot write it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the text holds half a character ({error.reason}), expected whole ones") from None
    return text


def _without_nulls(value: Any) -> Any:
    """The value without keys that are null: columnar files give every message the keys that any message has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def is_messages(value: Any) -> TypeGuard[list[Row]]:
    """Whether a value is a conversation: a list of dicts with a `role`."""
    return isinstance(value, list) and all(isinstance(message, Mapping) and "role" in message for message in value)


def _margin(row: Row, where: str) -> float:
    if "margin" not in row:
        return 0.0
    margin = row["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) < 3e38:
        raise DataError(f"{where}: field 'margin': expected a finite number in every row, found {margin!r}")
    return float(margin)
