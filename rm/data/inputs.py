"""Inputs of `score`: texts, prompts with a response, and conversations, as token ids."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from ..errors import DataError
from ..model.config import LlamaConfig
from ..text.pad_token import check_vocabulary
from ..text.tokenizer import Tokenizer
from .comparisons import with_reward_token
from .encode import without_double_bos
from .render import RowError, as_messages, check_text, render_messages, render_response

Input = str | Mapping[str, Any]

_SLICE = 2**17  # characters that are tokenized together: what a tokenizer makes takes a hundred times their memory
_CHARACTERS = 16  # of an input that are tokenized first, for each token that it may have


def encode_inputs(
    inputs: Iterable[Input],
    tokenizer: Tokenizer,
    config: LlamaConfig,
    *,
    names: Iterable[str],
    counts: Counter[str] | None = None,
    max_length: int | None = None,
    special_tokens: bool = True,
) -> Iterator[Int32[np.ndarray, "_"]]:
    """Yields the token ids of the inputs of `score`, in order; the tokenizer gets a slice of the texts at a time.

    Where the model reads rewards at a token of its own (`reward_token_id`), it is appended.

    **Arguments:** `names`, of the inputs in errors; `counts`, a counter to which `double_bos_removed` is added;
    `max_length`, beyond twice which the rest of an input is not tokenized, for who cuts it off or refuses it;
    `special_tokens`, false where the texts hold all of theirs, as those that a chat template has rendered do.

    **Raises:** `DataError`, naming the input.
    """
    check_vocabulary(tokenizer, config)
    most = None if max_length is None else _CHARACTERS * max_length
    bos, counts = tokenizer.token_id(tokenizer.bos_token), Counter() if counts is None else counts
    for part in _slices(inputs, names, tokenizer, most):
        part = [(name, text, is_chat or not special_tokens) for name, text, is_chat in part]
        for (name, *_), tokens in zip(part, _encode(part, tokenizer, bos, max_length), strict=True):
            if not tokens:
                raise DataError(f"{name}: no tokens; expected at least one")
            ids = without_double_bos(tokens, bos)
            counts["double_bos_removed"] += len(ids) < len(tokens)
            yield np.array(with_reward_token(ids, config), np.int32)


def _slices(
    inputs: Iterable[Input], names: Iterable[str], tokenizer: Tokenizer, most: int | None
) -> Iterator[list[tuple[str, str, bool]]]:
    """Slices of the inputs, about as many characters to tokenize in each: name, text, and whether it is a chat."""
    part, size = [], 0
    for item, name in zip(inputs, names, strict=True):
        try:
            text, is_chat = render_input(item, tokenizer)
        except RowError as error:
            raise DataError(f"{name}: {error}") from None
        part.append((name, text, is_chat))
        size += len(text[:most])
        if size > _SLICE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _encode(
    part: Sequence[tuple[str, str, bool]], tokenizer: Tokenizer, bos: int | None, max_length: int | None
) -> list[Sequence[int]]:
    """The token ids of texts; of a text with over `2 · max_length` tokens, at least as many from its beginning."""
    found: list[Sequence[int]] = [()] * len(part)
    for chat in (False, True):
        where = [i for i, (_, _, is_chat) in enumerate(part) if is_chat == chat]
        size = None if max_length is None else _CHARACTERS * max_length
        while where:
            encoded = tokenizer.encode_batch([part[i][1][:size] for i in where], add_special_tokens=not chat)
            for i, ids in zip(where, encoded, strict=True):
                found[i] = ids
            if size is None or max_length is None:
                break
            short = (i for i in where if len(without_double_bos(found[i], bos)) <= 2 * max_length)
            where = [i for i in short if len(part[i][1]) > size]
            size *= 4
    return found


def render_input(item: Input, tokenizer: Tokenizer) -> tuple[str, bool]:
    """The text of an input, and whether a chat template has rendered it.

    **Raises:** `RowError`.
    """
    if isinstance(item, str) or isinstance(item.get("text"), str):
        return check_text(item if isinstance(item, str) else item["text"]), False
    messages = as_messages(item.get("messages"))
    if messages:
        return render_messages(item, messages, tokenizer), True
    if "response" in item and "prompt" in item:
        text, kind, _ = render_response(item, item["response"], "response", tokenizer)
        return text, kind == "chat"
    raise RowError(f"expected text, prompt and response, or messages; found {', '.join(item) or 'nothing'}")
