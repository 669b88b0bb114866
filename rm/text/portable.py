"""A tokenizer's files as an export carries them: the same ids and texts in every version of transformers on any day."""

import re
from datetime import date, datetime, time
from typing import Any

from .tokenizer import Tokenizer
from .tokenizer_files import dump_json, parse_json

_FOUR = ("bos_token", "eos_token", "unk_token", "pad_token")
_STANDARD = {*_FOUR, "sep_token", "cls_token", "mask_token"}
_LEFT_OUT = {"auto_map", "from_slow", "tokenizer_file", "vocab_file"}  # code and files that an export does not have
_ASKS_FOR_DATE = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")


def portable_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer by name, as they came but for `portable_config` and `with_date`."""
    config = portable_config(tokenizer)
    config |= (
        {"chat_template": _with_dates(config["chat_template"], tokenizer.today)} if "chat_template" in config else {}
    )
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
    """`tokenizer_config.json` without what keeps `transformers` 4.57 or 5 from reading `tokenizer.json` as it stands.

    The class is `PreTrainedTokenizerFast`: others are rebuilt by version 5 without the normalizer of `tokenizer.json`,
    and 4.57 does not know the one that version 5 writes. What a class implies is written out: special tokens, and
    `add_prefix_space`, by which 4.57 overrules a `ByteLevel` pre-tokenizer. A list of `extra_special_tokens`, which
    4.57 cannot read, gets the name that both read.

    Source: `PreTrainedTokenizerFast.__init__` of `transformers` 4.57.6, `AutoTokenizer.from_pretrained` of 5.24.0.
    """
    config = _without_list(parse_json(tokenizer.files, "tokenizer_config.json"))
    out = {name: value for name, value in config.items() if name not in _LEFT_OUT}
    out["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokens = {name: getattr(tokenizer, name) for name in _FOUR} | dict(tokenizer.named_tokens)
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


def with_date(template: str, today: date) -> str:
    """A chat template with a date written where it asks for the present one.

    >>> with_date("Today is {{ strftime_now('%d %b %Y') }}.", date(2024, 7, 26))
    "Today is {{ '26 Jul 2024' }}."
    """
    now = datetime.combine(today, time())
    return _ASKS_FOR_DATE.sub(lambda found: f"{found[1]}{now.strftime(found[2])}{found[1]}", template)


def _with_dates(templates: Any, today: date) -> Any:
    """The same for what `tokenizer_config.json` may hold: a template, or several by name."""
    if isinstance(templates, str):
        return with_date(templates, today)
    if isinstance(templates, dict):
        return {name: _with_dates(value, today) for name, value in templates.items()}
    if isinstance(templates, list):
        return [_with_dates(value, today) for value in templates]
    return templates


def _without_list(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a list of `extra_special_tokens` under its older name."""
    if not isinstance(config.get("extra_special_tokens"), list):
        return config
    rest = {name: value for name, value in config.items() if name != "extra_special_tokens"}
    listed = config["extra_special_tokens"] or rest.get("additional_special_tokens", [])
    return rest | {"additional_special_tokens": listed}
