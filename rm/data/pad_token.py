"""Which token pads. `transformers` reads a reward at the rightmost token that is not padding, so none may end in it."""

import dataclasses

from ..errors import TokenizerError
from .tokenizer import Tokenizer, dump_json, parse_json, tokenizer_from_files

NEW_PAD_TOKEN = "<|pad|>"
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|padding|>", "<|reserved_special_token_0|>")


def choose_pad_token(tokenizer: Tokenizer) -> str | None:
    """A token of the vocabulary that can pad because no sequence ends in it, or `None`."""
    final = {tokenizer.eos_token, tokenizer.bos_token, _last_of_chat(tokenizer)}
    candidates = (tokenizer.pad_token, *_PAD_TOKENS, tokenizer.unk_token)
    known = (token for token in candidates if token not in final and tokenizer.token_id(token) is not None)
    return next(known, None)


def set_pad_token(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """The same tokenizer with another pad token, which its files state too."""
    if token == tokenizer.pad_token:
        return tokenizer
    files = dict(tokenizer.files)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if name in files or name == "tokenizer_config.json":
            files[name] = dump_json(parse_json(files, name) | {"pad_token": token})
    return dataclasses.replace(tokenizer, pad_token=token, files=files)


def add_pad_token(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a new special token `<|pad|>` at the end of its vocabulary."""
    content = parse_json(tokenizer.files, "tokenizer.json")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": tokenizer.max_token_id + 1, "content": NEW_PAD_TOKEN, **flags, "special": True}
    content["added_tokens"] = [*content.get("added_tokens", []), token]
    files = dict(tokenizer.files) | {"tokenizer.json": dump_json(content)}
    return set_pad_token(tokenizer_from_files(files), NEW_PAD_TOKEN)


def _last_of_chat(tokenizer: Tokenizer) -> str | None:
    """The token that ends a rendered conversation, if there is a template."""
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except TokenizerError:
        return None
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.backend.id_to_token(ids[-1]) if ids else None
