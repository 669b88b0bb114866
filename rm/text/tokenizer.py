"""The tokenizer of a Hugging Face directory: token ids as `transformers` gives them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ..errors import TokenizerError, check_list, warn_once
from ..files.hub import ADAPTER, RECORD, adapter_base, check_unchanged, own_file, read_record, resolve_directory
from .chat import render_chat
from .messages import Message, render_parts, with_reasoning
from .special_tokens import contradiction, set_special_tokens
from .tokenizer_files import NAMED_TEMPLATES, one_error, parse_json, read_backend, read_chat_templates

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FILES += ("added_tokens.json", "tokenizer.model")
TEMPLATES = f"{NAMED_TEMPLATES}/*.jinja"
# arguments of `transformers`' apply_chat_template that are not variables of the template
_NOT_OF_THE_TEXT = {"conversation", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length"}
_NOT_OF_THE_TEXT |= {"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
DATE = date(2024, 7, 26)  # the default date of Llama 3's templates


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Tokenizer:
    """Text and conversations to token ids.

    `chat_template` is the default template, `named_templates` are the others by name; `tool_use` is taken where there
    are tools. `named_tokens` are the special tokens besides the four, for templates (`sep_token`, `image_token`).
    `files` are the contents of the tokenizer's files, which exports copy; `today` is the date that chat templates
    see, so that a reward does not change with the calendar.
    """

    backend: tokenizers.Tokenizer
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str | None
    files: Mapping[str, bytes]
    today: date = DATE
    named_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    named_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        tokens = ", ".join(f"{name} {getattr(self, name)!r}" for name in TOKENS)
        template = f"a chat template of {len(self.chat_template)} characters" if self.chat_template else "no template"
        return f"Tokenizer({self.max_token_id + 1} tokens, {tokens}, {template})"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`, as `tokenizer(text)` gives them in `transformers`."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for many texts, in parallel."""
        check_list("texts", texts)
        with one_error("the tokenizer cannot encode the text"):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids, special tokens included."""
        with one_error("the tokenizer cannot decode the ids"):
            return self.backend.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str | None) -> int | None:
        """The id of a token; `None` if the vocabulary lacks it."""
        return None if token is None else self.backend.token_to_id(token)

    @property
    def pad_token_id(self) -> int | None:
        """The id of the pad token; `None` if there is none."""
        return self.token_id(self.pad_token)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the end-of-sequence token; `None` if there is none."""
        return self.token_id(self.eos_token)

    @functools.cached_property
    def max_token_id(self) -> int:
        """The largest id of the vocabulary, added tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values())

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation, rendered by the chat template as `transformers` 5.24 renders it.

        **Arguments:** `messages`, dicts with `role` and `content`; `tools` (JSON schemas) and `documents`, for
        templates that write them; `chat_template`, another template or the name of one; `variables`, further variables
        of the template.

        **Raises:** `TokenizerError` where there is no template, where it refuses the conversation, or where a variable
        is an argument of the method in `transformers` that changes more than the text, such as `truncation`.
        """
        check_list("messages", messages)
        _check_arguments(tools, documents, variables)
        template = self._template(chat_template, tools)
        tokens = {name: token for name in TOKENS if (token := getattr(self, name)) is not None}
        options = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt} | variables

        def render(messages: Sequence[Message]) -> str:
            return render_chat(template, {**tokens, **self.named_tokens, **options, "messages": messages}, self.today)

        return render_parts(render, [with_reasoning(message) for message in messages])

    def _template(self, requested: str | None, tools: Any) -> str:
        """The requested template, by name or as text; else `tool_use` if there are tools; else the default one."""
        if requested is not None and (requested != "default" or self.chat_template is None):
            return self.named_templates.get(requested, requested)
        if requested is None and tools is not None and "tool_use" in self.named_templates:
            return self.named_templates["tool_use"]
        if self.chat_template is not None:
            return self.chat_template
        found = f" that is the default (only {', '.join(self.named_templates)})" if self.named_templates else ""
        raise TokenizerError(
            f"the tokenizer has no chat template{found}, so it cannot render messages; expected `chat_template` in "
            "tokenizer_config.json or a chat_template.jinja, or data with plain texts"
        )


def _check_arguments(tools: Any, documents: Any, variables: Mapping[str, Any]) -> None:
    for name, value in {"tools": tools, "documents": documents}.items():
        if value is not None and not (isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value)):
            raise TokenizerError(f"{name}: expected a list of objects, found {type(value).__name__} {value!r:.60}")
    if variables.get("continue_final_message"):
        raise TokenizerError("continue_final_message: removes the end, where the reward is read; leave it out")
    for name in _NOT_OF_THE_TEXT & variables.keys():
        raise TokenizerError(f"{name}: is not a variable of chat templates; leave it out")


def load_tokenizer(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    chat_template: str | Path | None = None,
    today: date | None = None,
) -> Tokenizer:
    """The tokenizer of a directory or a hub repository, from its `tokenizer.json`.

    Special tokens come from `special_tokens_map.json` and `tokenizer_config.json`, chat templates from
    `additional_chat_templates`, `chat_template.jinja` or `tokenizer_config.json`, each as `transformers` 5.24 reads
    them. BOS and EOS are added as `tokenizer.json` says; `add_bos_token` is ignored.

    A directory of `peft` without a tokenizer has that of its base.

    **Arguments:** `chat_template`, a file with a template that replaces all others, in exports too; `today`, the date
    that templates see, by default the one in the directory's `rm.json`, else 2024-07-26.

    **Raises:** `TokenizerError` where a file is missing or unreadable, `RmError` where the hub has no such repository.
    """
    patterns = (*FILES, TEMPLATES, RECORD, ADAPTER)
    directory = resolve_directory(path_or_hub_id, patterns, revision=revision)
    if not (directory / "tokenizer.json").exists() and (base := adapter_base(directory)):
        directory = resolve_directory(base[0], patterns, revision=base[1])
    names = (*FILES, *sorted(path.relative_to(directory).as_posix() for path in directory.glob(TEMPLATES)))
    files = {name: content for name in names if (content := _read(own_file(directory / name, directory))) is not None}
    check_unchanged(directory, files)
    if "tokenizer.json" not in files:
        raise TokenizerError(f"{directory / 'tokenizer.json'}: no such file; convert the tokenizer to this format")
    if chat_template is not None:
        content = _read(Path(chat_template))
        if content is None:
            raise TokenizerError(f"{chat_template}: no such file; expected a chat template (jinja)")
        files = {name: content for name, content in files.items() if not name.startswith(NAMED_TEMPLATES)}
        files["chat_template.jinja"] = content
    tokenizer = tokenizer_from_files(files, directory)
    _warn_of_contradiction(tokenizer, directory)
    return dataclasses.replace(tokenizer, today=today or _recorded_date(directory))


def _warn_of_contradiction(tokenizer: Tokenizer, directory: Path) -> None:
    config = parse_json(tokenizer.files, "tokenizer_config.json", directory)
    special = {name: token for name in TOKENS if (token := getattr(tokenizer, name)) is not None}
    with one_error("the tokenizer cannot encode the text"):
        text = contradiction(tokenizer.backend, special, config)
    if text:
        warn_once(f"{directory / 'tokenizer_config.json'}: {text}")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from None


def _recorded_date(directory: Path) -> date:
    record = read_record(directory)
    try:
        return date.fromisoformat(record.get("chat_template_date", DATE.isoformat()))
    except (TypeError, ValueError):
        found = f"chat_template_date must be a date like 2024-07-26, found {record['chat_template_date']!r}"
        raise TokenizerError(f"{directory / RECORD}: {found}") from None


def tokenizer_from_files(files: Mapping[str, bytes], directory: Path = Path()) -> Tokenizer:
    """A tokenizer from the contents of its files; `directory` is their place in errors."""
    backend = read_backend(files, directory)
    special = set_special_tokens(backend, files, directory)
    backend.no_padding()
    backend.no_truncation()
    templates = read_chat_templates(files, directory)
    four: dict[str, Any] = {name: special.pop(name, None) for name in TOKENS}
    return Tokenizer(
        backend=backend,
        **four,
        chat_template=templates.pop("default", None),
        files=dict(files),
        named_templates=templates,
        named_tokens=special,
    )
