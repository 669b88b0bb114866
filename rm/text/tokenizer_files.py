"""The files of a tokenizer: its vocabulary, its configuration, its chat templates."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import TokenizerError

NAMED_TEMPLATES = "additional_chat_templates"  # a folder


def read_backend(files: Mapping[str, bytes], directory: Path) -> tokenizers.Tokenizer:
    """The `tokenizers.Tokenizer` that `tokenizer.json` describes."""
    source = directory / "tokenizer.json"
    with one_error(f"{source}: cannot be read"):
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        if not backend.get_vocab_size():
            raise TokenizerError(f"{source}: the vocabulary is empty; expected tokens")
    return backend


def read_chat_templates(files: Mapping[str, bytes], directory: Path) -> dict[str, str]:
    """The chat templates by name; `default` is used unless another one is requested.

    A `default` in the folder `additional_chat_templates` takes precedence over `chat_template.jinja`. If any of these
    files exists, `chat_template` in `tokenizer_config.json` is ignored, as in `transformers` 5.24.
    """
    names = {"default": "chat_template.jinja"}
    names |= {Path(name).stem: name for name in files if name.startswith(f"{NAMED_TEMPLATES}/")}
    templates = {name: _text(files, file, directory) for name, file in names.items() if file in files}
    return templates or _configured_templates(files, directory)


def _configured_templates(files: Mapping[str, bytes], directory: Path) -> dict[str, str]:
    with as_expected(directory / "tokenizer_config.json"):
        value = parse_json(files, "tokenizer_config.json", directory).get("chat_template")
        if isinstance(value, list):
            value = {entry["name"]: entry["template"] for entry in value}
        templates = value if isinstance(value, dict) else {} if value is None else {"default": value}
        for template in templates.values():
            if not isinstance(template, str):
                raise ValueError(f"chat_template is a {type(template).__name__}, expected a text")
    return templates


def _text(files: Mapping[str, bytes], name: str, directory: Path) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{directory / name}: not valid UTF-8 ({error.reason}); save it as UTF-8") from None


@contextmanager
def as_expected(source: Path) -> Iterator[None]:
    """Turns errors from reading a configuration of unexpected form into `TokenizerError`."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{source}: not as expected ({error!r})") from None


@contextmanager
def one_error(failure: str) -> Iterator[None]:
    """Turns errors of `tokenizers` into `TokenizerError`, also Rust panics, which do not derive from `Exception`."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{failure} ({error})") from None


def parse_json(files: Mapping[str, bytes], name: str, directory: Path = Path()) -> dict[str, Any]:
    """The JSON object in one of the files; empty if there is no such file."""
    source = directory / name
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{source}: not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{source}: expected a JSON object, found {type(value).__name__}; download it again")
    return value


def dump_json(value: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file with this value."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # lone surrogates become escapes
