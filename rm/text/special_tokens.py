"""The special tokens named in a tokenizer's files, with the ids that `transformers` 5.24 gives them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import TokenizerError
from .tokenizer_files import as_expected, parse_json

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2: dict[str, str] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_COHERE = ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>", "<SEP>", "<PAD>", "<CLS>", "<MASK_TOKEN>")
# transformers' classes (less Tokenizer and Fast) that tokenizer.json describes in full, and their default tokens
CLASSES: dict[str, dict[str, str]] = {
    "PreTrained": {},
    "TokenizersBackend": {},
    "Llama": _LLAMA,
    "CodeLlama": _LLAMA,
    "GPT2": _GPT2,
    "GPTNeoX": _GPT2 | {"pad_token": "<|padding|>"},
    "Qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "Gemma": {name: f"<{name[:-6]}>" for name in ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token")},
    "Cohere": dict(zip(_NAMES, _COHERE, strict=True)),
}
_Token = str | tokenizers.AddedToken


def set_special_tokens(backend: tokenizers.Tokenizer, files: Mapping[str, bytes], directory: Path) -> dict[str, str]:
    """The special tokens by name; those that `tokenizer.json` lacks are added to `backend`.

    Source: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of `transformers`.
    """
    source = directory / "tokenizer_config.json"
    config = parse_json(files, source.name, directory)
    legacy = {} if "added_tokens_decoder" in config else parse_json(files, "special_tokens_map.json", directory)
    defaults = _defaults(config, backend, source)
    with as_expected(source):
        named, extra = _listed(config, legacy, defaults)
        special = {_content(token) for token in (*(named[name] for name in _NAMES if name in named), *extra)}
        added = _added(config, parse_json(files, "added_tokens.json", directory), special, backend)
        by_content = {token.content: token for token in added}
        named = {name: by_content.get(_content(token), token) for name, token in named.items()}
        _add(backend, added, named, extra)
        backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    return {name: _content(token) for name, token in named.items()}


def contradiction(backend: tokenizers.Tokenizer, special: Mapping[str, str], config: Mapping[str, Any]) -> str | None:
    """A sentence on how `add_bos_token` and `add_eos_token` contradict `tokenizer.json`; `None` if they agree."""
    ids = backend.encode("a").ids
    ends = {"bos_token": ids[:1], "eos_token": ids[-1:]}
    wrong = []
    for name, end in ends.items():
        flag, token = config.get(f"add_{name}"), special.get(name)
        adds = token is not None and end == [backend.token_to_id(token)]
        if token is not None and isinstance(flag, bool) and flag != adds:
            wrong.append(f"add_{name} is {str(flag).lower()}, tokenizer.json adds {'one' if adds else 'none'}")
    return f"{' and '.join(wrong)}; tokenizer.json decides, as in transformers 5" if wrong else None


def _defaults(config: Mapping[str, Any], backend: tokenizers.Tokenizer, source: Path) -> dict[str, str]:
    """The default special tokens of the tokenizer's class, as far as the vocabulary has them.

    Unknown classes are refused: their code may encode differently from `tokenizer.json`.
    """
    name = config.get("tokenizer_class")
    kind = "PreTrained" if name is None else str(name).removesuffix("Fast").removesuffix("Tokenizer")
    if kind not in CLASSES:
        raise TokenizerError(
            f"{source}: unknown tokenizer class {name!r}; expected PreTrainedTokenizerFast or one that tokenizer.json "
            f"describes in full ({', '.join(sorted(CLASSES.keys() - {'PreTrained'}))}, with Tokenizer or TokenizerFast)"
        )
    padding = {"pad_token": backend.padding["pad_token"]} if backend.padding else {}
    return {name: token for name, token in (CLASSES[kind] | padding).items() if backend.token_to_id(token) is not None}


def _listed(
    config: Mapping[str, Any], legacy: Mapping[str, Any], defaults: Mapping[str, str]
) -> tuple[dict[str, _Token], list[_Token]]:
    """The named and the unnamed special tokens; `legacy` is the content of `special_tokens_map.json`."""
    merged = dict(config)
    if "additional_special_tokens" in merged and not merged.get("extra_special_tokens"):
        merged["extra_special_tokens"] = merged.pop("additional_special_tokens")
    named = _take_named(merged) | _take_object(merged)
    before = merged.get("extra_special_tokens")
    merged |= legacy
    if before and isinstance(legacy.get("extra_special_tokens"), list):
        merged["extra_special_tokens"] = [*before, *(t for t in legacy["extra_special_tokens"] if t not in before)]
    named = _take_named(legacy) | named | _take_object(merged)
    if "additional_special_tokens" in merged:
        merged.setdefault("extra_special_tokens", merged["additional_special_tokens"])
    standard = {name: merged.get(name, defaults.get(name)) for name in _NAMES}
    tokens = {name: _token(value, name) for name, value in (standard | named).items() if value}
    return tokens, [_token(value) for value in merged.get("extra_special_tokens") or []]


def _take_named(config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens under names that are not standard, such as `image_token`."""
    names = (name for name in config if name.endswith("_token") and name not in _NAMES)
    return {name: config[name] for name in names if isinstance(config[name], str | Mapping)}


def _take_object(config: dict[str, Any]) -> dict[str, Any]:
    """Removes `extra_special_tokens` from the configuration and returns it, if it is an object."""
    return config.pop("extra_special_tokens") if isinstance(config.get("extra_special_tokens"), dict) else {}


def _added(
    config: Mapping[str, Any], numbered: Mapping[str, int], special: set[str], backend: tokenizers.Tokenizer
) -> list[tokenizers.AddedToken]:
    """The tokens of `added_tokens_decoder`, else of `added_tokens.json`, in order of id."""
    if "added_tokens_decoder" in config:
        by_id = {int(number): _added_token(token) for number, token in config["added_tokens_decoder"].items()}
    else:
        taken = backend.get_added_tokens_decoder()
        by_id = {
            number: tokenizers.AddedToken(token, normalized=token not in special, special=token in special)
            for token, number in numbered.items()
            if number not in taken
        }
    return [token for _, token in sorted(by_id.items())]


def _add(
    backend: tokenizers.Tokenizer,
    added: Sequence[tokenizers.AddedToken],
    named: Mapping[str, _Token],
    extra: Sequence[_Token],
) -> None:
    """Adds the tokens that `backend` lacks: those with an id, then those with a name, then the rest."""
    present = backend.get_added_tokens_decoder().values()
    unchanged = {repr(token) for token in present}
    contents = {token.content for token in present} | {token.content for token in added}
    tokens = [token for token in added if repr(token) not in unchanged]
    for token in (*named.values(), *extra):
        if _content(token) not in contents:
            tokens.append(tokenizers.AddedToken(token, special=True) if isinstance(token, str) else token)
            contents.add(_content(token))
    names = {_content(token) for token in named.values()}
    for token in tokens:
        token.special = token.special or token.content in names
    backend.add_tokens(tokens)


def _added_token(value: Mapping[str, Any]) -> tokenizers.AddedToken:
    options = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return tokenizers.AddedToken(value["content"], **{key: bool(value[key]) for key in options if key in value})


def _token(value: Any, name: str = "a special token") -> _Token:
    """A token as files state it: a text, or an object with the text and options for matching it."""
    if isinstance(value, Mapping):
        return _added_token(value)
    if not isinstance(value, str):
        raise TokenizerError(f"tokenizer_config.json: {name} must be a text, found {value!r}")
    return value


def _content(token: _Token) -> str:
    return token if isinstance(token, str) else token.content
