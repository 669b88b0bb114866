"""What the files of a tokenizer say: its vocabulary, its special tokens, its chat template."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import TokenizerError

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# transformers' classes, without Tokenizer and Fast, which tokenizer.json describes in full
CLASSES = {"PreTrained", "TokenizersBackend", "Llama", "CodeLlama", "GPT2", "GPTNeoX", "Qwen2", "Gemma", "Cohere"}
_LONGER = 100  # times that a normalizer may make a text


def read_backend(files: Mapping[str, bytes], directory: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer, which neither pads nor truncates."""
    source = directory / "tokenizer.json"
    with one_error(f"{source}: cannot be read"):
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        backend.no_padding()
        backend.no_truncation()
        if not backend.get_vocab_size():
            raise TokenizerError(f"{source}: the vocabulary is empty; expected tokens")
    _check_normalizer(parse_json(files, "tokenizer.json", directory).get("normalizer"), source)
    return backend


def set_special_tokens(
    backend: tokenizers.Tokenizer, files: Mapping[str, bytes], directory: Path
) -> dict[str, str | None]:
    """The special tokens by name, which `backend` then takes as whole tokens, as the configuration asks."""
    source = directory / "tokenizer_config.json"
    config = parse_json(files, "tokenizer_config.json", directory)
    _check_class(config, source)
    legacy = parse_json(files, "special_tokens_map.json", directory)
    special = {name: _content(config.get(name) or legacy.get(name)) for name in SPECIAL}
    for name, token in special.items():
        if not isinstance(token, str | None):
            raise TokenizerError(f"{source}: {name} must be a text, found {token!r}")
    with _as_expected(source):
        _register_special_tokens(backend, config, special)
        _set_bos_eos(backend, config, special)
    return special


def read_chat_template(files: Mapping[str, bytes], directory: Path) -> str | None:
    """The template of `chat_template.jinja`, else of `tokenizer_config.json`."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            source = directory / "chat_template.jinja"
            raise TokenizerError(f"{source}: not valid UTF-8 ({error.reason}); save it as UTF-8") from None
    with _as_expected(directory / "tokenizer_config.json"):
        template = parse_json(files, "tokenizer_config.json", directory).get("chat_template")
        if isinstance(template, list):  # several named ones
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str | None):
            raise ValueError(f"chat_template is a {type(template).__name__}, expected a text")
    return template


@contextmanager
def _as_expected(source: Path) -> Iterator[None]:
    """One kind for what reading a configuration of another form raises."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{source}: not as expected ({error!r})") from None


@contextmanager
def one_error(failure: str) -> Iterator[None]:
    """One kind for what `tokenizers` raises, which is plain `Exception`, or no `Exception` at all where Rust panics."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{failure} ({error})") from None


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


def _check_normalizer(normalizer: Any, source: Path) -> None:
    """Refuses replacements that make a text many times as long, each of what the one before has made."""
    several = normalizer.get("normalizers") if isinstance(normalizer, Mapping) else None
    parts = several if isinstance(several, list) else [normalizer]
    contents = [part["content"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("content"), str)]
    times = math.prod(max(1, len(content)) for content in contents)
    if times > _LONGER:
        raise TokenizerError(f"{source}: the normalizer can make a text {times} times as long, expected {_LONGER}")


def _check_class(config: Mapping[str, Any], source: Path) -> None:
    """A class of another name brings code of its own, which may encode otherwise than `tokenizer.json` says."""
    name = config.get("tokenizer_class")
    if name is not None and str(name).removesuffix("Fast").removesuffix("Tokenizer") not in CLASSES:
        raise TokenizerError(
            f"{source}: unknown tokenizer class {name!r}; expected PreTrainedTokenizerFast or one that tokenizer.json "
            f"describes in full ({', '.join(sorted(CLASSES - {'PreTrained'}))}, with Tokenizer or TokenizerFast)"
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
