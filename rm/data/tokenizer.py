"""The tokenizer of a Hugging Face directory: token ids as `transformers` gives them."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ..errors import TokenizerError
from ..hub import RECORD, check_unchanged, own_file, resolve_directory
from .chat import render_chat

Messages = Sequence[Mapping[str, Any]]

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FILES += ("added_tokens.json", "tokenizer.model")
DATE = date(2024, 7, 26)  # what Llama 3's templates say where they are told no date
# transformers' classes, without Tokenizer and Fast, which tokenizer.json describes in full
_CLASSES = {"PreTrained", "TokenizersBackend", "Llama", "CodeLlama", "GPT2", "GPTNeoX", "Qwen2", "Gemma", "Cohere"}
_LONGER = 100  # times that a normalizer may make a text
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


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
        with _library("the tokenizer cannot encode the text"):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`, special tokens included."""
        with _library("the tokenizer cannot decode the ids"):
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
        special = {name: getattr(self, name) for name in _SPECIAL if getattr(self, name) is not None}
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
    with _library(f"{directory / 'tokenizer.json'}: cannot be read"):
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        backend.no_padding()
        backend.no_truncation()
        if not backend.get_vocab_size():
            raise TokenizerError(f"{directory / 'tokenizer.json'}: the vocabulary is empty; expected tokens")
    _check_normalizer(parse_json(files, "tokenizer.json", directory).get("normalizer"), directory / "tokenizer.json")
    config = parse_json(files, "tokenizer_config.json", directory)
    _check_class(config, directory / "tokenizer_config.json")
    legacy = parse_json(files, "special_tokens_map.json", directory)
    special = {name: _content(config.get(name) or legacy.get(name)) for name in _SPECIAL}
    for name, token in special.items():
        if not isinstance(token, str | None):
            raise TokenizerError(f"{directory / 'tokenizer_config.json'}: {name} must be a text, found {token!r}")
    try:
        _register_special_tokens(backend, config, special)
        _set_bos_eos(backend, config, special)
        template = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else _chat_template(config)
        if not isinstance(template, str | None):
            raise ValueError(f"chat_template is a {type(template).__name__}, expected a text")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{directory / 'chat_template.jinja'}: not valid UTF-8 ({error.reason}); save it as UTF-8"
        ) from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{directory / 'tokenizer_config.json'}: not as expected ({error!r})") from None
    bos, eos, unk, pad = (special[name] for name in _SPECIAL)
    return Tokenizer(
        backend=backend,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        pad_token=pad,
        chat_template=template,
        files=dict(files),
    )


@contextmanager
def _library(failure: str) -> Iterator[None]:
    """One kind for what `tokenizers` raises, which is plain `Exception`, or no `Exception` at all where Rust panics."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{failure} ({error})") from None


def _check_normalizer(normalizer: Any, source: Path) -> None:
    """Refuses replacements that make a text many times as long, each of what the one before has made."""
    several = normalizer.get("normalizers") if isinstance(normalizer, Mapping) else None
    parts = several if isinstance(several, list) else [normalizer]
    contents = [part["content"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("content"), str)]
    times = math.prod(max(1, len(content)) for content in contents)
    if times > _LONGER:
        raise TokenizerError(f"{source}: the normalizer can make a text {times} times as long, expected {_LONGER}")


def parse_json(files: Mapping[str, bytes], name: str, directory: Path = Path()) -> dict[str, Any]:
    """The JSON object in one of the files, empty where there is no such file."""
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{directory / name}: not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{directory / name}: expected a JSON object, found {type(value).__name__}; download it again"
        )
    return value


def dump_json(value: Mapping[str, Any]) -> bytes:
    """A JSON file's bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # half a character, as JSON writes it


def _check_class(config: Mapping[str, Any], source: Path) -> None:
    """A class of another name brings code of its own, which may encode otherwise than `tokenizer.json` says."""
    name = config.get("tokenizer_class")
    if name is not None and str(name).removesuffix("Fast").removesuffix("Tokenizer") not in _CLASSES:
        raise TokenizerError(
            f"{source}: unknown tokenizer class {name!r}; expected PreTrainedTokenizerFast or one that tokenizer.json "
            f"describes in full ({', '.join(sorted(_CLASSES - {'PreTrained'}))}, with Tokenizer or TokenizerFast)"
        )


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def _register_special_tokens(backend: tokenizers.Tokenizer, config: Mapping, special: Mapping[str, str | None]) -> None:
    """Makes special tokens that `tokenizer.json` does not list whole tokens, as `transformers` does."""
    listed = {token.content for token in backend.get_added_tokens_decoder().values()}
    by_id = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    for _, token in by_id:
        if token["content"] not in listed:
            add = backend.add_special_tokens if token.get("special") else backend.add_tokens
            options = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
            add([tokenizers.AddedToken(token["content"], special=bool(token.get("special")), **options)])
            listed.add(token["content"])
    backend.add_special_tokens([token for token in special.values() if token is not None and token not in listed])


def _set_bos_eos(backend: tokenizers.Tokenizer, config: Mapping, special: Mapping[str, str | None]) -> None:
    """`add_bos_token` and `add_eos_token`, where stated, overrule the post-processor of `tokenizer.json`."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    bos = special["bos_token"] if config.get("add_bos_token") else None
    eos = special["eos_token"] if config.get("add_eos_token") else None
    around = [token for token in (bos, eos) if token is not None]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    backend.post_processor = tokenizers.processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=single, pair=None, special_tokens=[(token, backend.token_to_id(token)) for token in around]
    )


def _chat_template(config: Mapping[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
