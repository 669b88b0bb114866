"""A tokenizer's files for an export: the same ids and texts in every version of transformers, on every day."""

import re
from datetime import date, datetime, time
from typing import Any

from .tokenizer import TOKENS, Tokenizer
from .tokenizer_files import dump_json, parse_json

_STANDARD = {*TOKENS, "sep_token", "cls_token", "mask_token"}
_LEFT_OUT = {"auto_map", "from_slow", "tokenizer_file", "vocab_file"}  # code and files that an export lacks
# how Qwen 2's tokenizers split texts
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ASKS_FOR_DATE = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")


def portable_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer by name, unchanged except by `portable_config` and `with_date`."""
    config = portable_config(tokenizer)
    if "chat_template" in config:
        config["chat_template"] = _with_dates(config["chat_template"], tokenizer.today)
    files = {"tokenizer_config.json": config}
    if "special_tokens_map.json" in tokenizer.files:
        files["special_tokens_map.json"] = _without_list(parse_json(tokenizer.files, "special_tokens_map.json"))
    out = dict(tokenizer.files)
    for name, value in files.items():
        if name not in out or value != parse_json(out, name):
            out[name] = dump_json(value)
    templates = {name: content.decode() for name, content in out.items() if name.endswith(".jinja")}
    return out | {name: with_date(template, tokenizer.today).encode() for name, template in templates.items()}


def portable_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer_config.json`, changed so that `transformers` 4.57 and 5 both use `tokenizer.json` as it stands.

    The class becomes `PreTrainedTokenizerFast`: version 5 rebuilds others without the normalizer of `tokenizer.json`,
    and 4.57 does not know the class that version 5 writes. Defaults of the old class are written out: special tokens,
    and `add_prefix_space`, with which 4.57 overrides a `ByteLevel` pre-tokenizer. A list of `extra_special_tokens`,
    which 4.57 cannot read, becomes `additional_special_tokens`, which both read.

    Source: `PreTrainedTokenizerFast.__init__` of `transformers` 4.57.6, `AutoTokenizer.from_pretrained` of 5.24.0.
    """
    config = _without_list(parse_json(tokenizer.files, "tokenizer_config.json"))
    out = {name: value for name, value in config.items() if name not in _LEFT_OUT}
    out["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokens = {name: getattr(tokenizer, name) for name in TOKENS} | dict(tokenizer.named_tokens)
    for name, token in tokens.items():
        stated = out.get(name)
        if token is not None and token != (stated.get("content") if isinstance(stated, dict) else stated):
            out[name] = token
    if named := {name: token for name, token in tokens.items() if name not in _STANDARD}:
        out["extra_special_tokens"] = named
    splitter = parse_json(tokenizer.files, "tokenizer.json").get("pre_tokenizer") or {}
    if splitter.get("type") == "ByteLevel" and splitter.get("add_prefix_space") != out.get("add_prefix_space", False):
        out["add_prefix_space"] = splitter["add_prefix_space"]
    return out


def splits_like_qwen2(tokenizer: Tokenizer) -> bool:
    """True if texts are split as `Qwen2Tokenizer` does, by which `transformers` 5.24 replaces any `qwen2` tokenizer.

    Source: `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` of its `AutoTokenizer`.
    """
    file = parse_json(tokenizer.files, "tokenizer.json")
    first, *_ = (file.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    return (file.get("normalizer") or {}).get("type") == "NFC" and first.get("pattern") == {"Regex": _QWEN2}


def with_date(template: str, today: date) -> str:
    """The chat template with a fixed date in place of every call of `strftime_now` with a literal format.

    >>> with_date("Today is {{ strftime_now('%d %b %Y') }}.", date(2024, 7, 26))
    "Today is {{ '26 Jul 2024' }}."
    """
    now = datetime.combine(today, time())
    return _ASKS_FOR_DATE.sub(lambda call: f"{call[1]}{now.strftime(call[2])}{call[1]}", template)


def _with_dates(templates: Any, today: date) -> Any:
    """`with_date` for one template, or for several in the forms that `tokenizer_config.json` may have."""
    if isinstance(templates, str):
        return with_date(templates, today)
    if isinstance(templates, dict):
        return {name: _with_dates(value, today) for name, value in templates.items()}
    if isinstance(templates, list):
        return [_with_dates(value, today) for value in templates]
    return templates


def _without_list(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a list of `extra_special_tokens` renamed to `additional_special_tokens`."""
    if not isinstance(config.get("extra_special_tokens"), list):
        return config
    rest = {name: value for name, value in config.items() if name != "extra_special_tokens"}
    listed = config["extra_special_tokens"] or rest.get("additional_special_tokens", [])
    return rest | {"additional_special_tokens": listed}
