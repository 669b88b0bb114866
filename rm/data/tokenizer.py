"""The tokenizer of a Hugging Face directory: token ids as `transformers` gives them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ..errors import TokenizerError
from ..hub import RECORD, check_unchanged, own_file, resolve_directory
from .chat import render_chat
from .tokenizer_files import SPECIAL, one_error, parse_json, read_backend, read_chat_template, set_special_tokens

Messages = Sequence[Mapping[str, Any]]

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FILES += ("added_tokens.json", "tokenizer.model")
DATE = date(2024, 7, 26)  # what Llama 3's templates say where they are told no date


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text and conversations to token ids.

    `files` are the bytes of the directory it came from, which an export repeats unchanged; `today` is the
    date that chat templates are told, so that a reward does not change with the calendar.
    """

    backend: tokenizers.Tokenizer
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str | None
    files: Mapping[str, bytes]
    today: date = DATE

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, what `transformers`' `tokenizer(text)` gives."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for many texts, in parallel."""
        with one_error("the tokenizer cannot encode the text"):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`, special tokens included."""
        with one_error("the tokenizer cannot decode the ids"):
            return self.backend.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str | None) -> int | None:
        """The id of a token, `None` where the vocabulary lacks it."""
        return None if token is None else self.backend.token_to_id(token)

    @property
    def pad_token_id(self) -> int | None:
        """The id of the padding token."""
        return self.token_id(self.pad_token)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the end-of-sequence token."""
        return self.token_id(self.eos_token)

    @functools.cached_property
    def max_token_id(self) -> int:
        """The largest id that a text can contain."""
        return max(self.backend.get_vocab(with_added_tokens=True).values())

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation, rendered by the chat template.

        **Arguments:** `messages`, dicts with `role` and `content`; `tools`, JSON schemas; `variables`, whatever else
        the template reads.

        **Raises:** `TokenizerError` where there is no template, or where the template refuses the conversation.
        """
        if self.chat_template is None:
            raise TokenizerError(
                "the tokenizer has no chat template, so it cannot render messages; expected `chat_template` in "
                "tokenizer_config.json or a chat_template.jinja, or data with plain texts"
            )
        special = {name: getattr(self, name) for name in SPECIAL if getattr(self, name) is not None}
        return render_chat(
            self.chat_template,
            special
            | {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
            | variables,
            self.today,
        )


def load_tokenizer(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    chat_template: str | Path | None = None,
    today: date | None = None,
) -> Tokenizer:
    """The tokenizer of a directory or a hub repository, from its `tokenizer.json`.

    Special tokens come from `tokenizer_config.json`, else `special_tokens_map.json`; the chat template from
    `chat_template.jinja`, else `tokenizer_config.json`.

    **Arguments:** `chat_template`, a file with another template, which an export carries instead; `today`, the date
    that templates are told: when `None`, the one that the directory's `rm.json` records, else 2024-07-26.

    **Raises:** `TokenizerError` where a file is missing or unreadable, `RmError` where the hub has no such repository.
    """
    directory = resolve_directory(path_or_hub_id, (*FILES, RECORD), revision=revision)
    files = {name: content for name in FILES if (content := _read(own_file(directory / name))) is not None}
    check_unchanged(directory, files)
    if "tokenizer.json" not in files:
        raise TokenizerError(
            f"{directory / 'tokenizer.json'}: no such file; convert the tokenizer to the `tokenizers` format"
        )
    if chat_template is not None:
        content = _read(Path(chat_template))
        if content is None:
            raise TokenizerError(f"{chat_template}: no such file; expected a chat template (jinja)")
        files["chat_template.jinja"] = content
    tokenizer = tokenizer_from_files(files, directory)
    return dataclasses.replace(tokenizer, today=today or _recorded_date(directory))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from None


def _recorded_date(directory: Path) -> date:
    record = parse_json({RECORD: _read(own_file(directory / RECORD)) or b"{}"}, RECORD, directory)
    try:
        return date.fromisoformat(record.get("chat_template_date", DATE.isoformat()))
    except (TypeError, ValueError):
        found = record["chat_template_date"]
        raise TokenizerError(
            f"{directory / RECORD}: chat_template_date must be a date like 2024-07-26, found {found!r}"
        ) from None


def tokenizer_from_files(files: Mapping[str, bytes], directory: Path = Path()) -> Tokenizer:
    """A tokenizer from the contents of its files; `directory` is where errors say they lie."""
    backend = read_backend(files, directory)
    special: dict[str, Any] = set_special_tokens(backend, files, directory)
    template = read_chat_template(files, directory)
    return Tokenizer(backend=backend, **special, chat_template=template, files=dict(files))
