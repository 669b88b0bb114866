"""The choice of a pad token that no sequence ends in: `transformers` reads rewards at the rightmost non-pad token."""

import dataclasses
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from ..errors import TokenizerError
from ..model.config import LlamaConfig
from ..model.llama import RewardModel
from .tokenizer import Tokenizer, tokenizer_from_files
from .tokenizer_files import dump_json, parse_json

NEW_PAD_TOKEN = "<|pad|>"
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|padding|>", "<|reserved_special_token_0|>")


def match_tokenizer(model: RewardModel, tokenizer: Tokenizer) -> tuple[RewardModel, Tokenizer]:
    """Makes a model and a tokenizer agree on the pad token, which decides where the reward is read.

    A model that states a pad token keeps it. Any other gets a pad token that no sequence ends in: the tokenizer's own,
    another one in the vocabulary, or a new one, for which the embedding gains a row if it has no spare one.

    **Raises:** `TokenizerError` where the tokenizer has ids that the embedding lacks, or lacks one that `config` names.
    """
    config, tokenizer = match_config(model.config, tokenizer)
    grow = config.vocab_size - model.config.vocab_size
    embedding = model.embed_tokens
    if grow:
        pad = partial(jnp.pad, pad_width=((0, grow), (0, 0)))
        embedding = jax.jit(pad, out_shardings=embedding.sharding)(embedding)
    return replace(model, embed_tokens=embedding, config=config), tokenizer


def match_config(config: LlamaConfig, tokenizer: Tokenizer) -> tuple[LlamaConfig, Tokenizer]:
    """`match_tokenizer` for the configuration alone, which is enough to tokenize data."""
    check_vocabulary(tokenizer, config)
    reward_token = _named(tokenizer, config, "reward_token_id")
    pad_token = _named(tokenizer, config, "pad_token_id")
    if pad_token is not None and pad_token != reward_token:
        return config, set_pad_token(tokenizer, pad_token)
    token = choose_pad_token(tokenizer, reward_token)
    tokenizer = add_pad_token(tokenizer) if token is None else set_pad_token(tokenizer, token)
    vocab_size = max(config.vocab_size, tokenizer.max_token_id + 1)
    return dataclasses.replace(config, pad_token_id=tokenizer.pad_token_id, vocab_size=vocab_size), tokenizer


def _named(tokenizer: Tokenizer, config: LlamaConfig, name: str) -> str | None:
    """The token whose id the configuration names, if it names one."""
    number = getattr(config, name)
    token = None if number is None or number < 0 else tokenizer.backend.id_to_token(number)
    if number is not None and token is None:
        found = f"config.json says {name} {number}, an id the tokenizer lacks"
        raise TokenizerError(f"{found}; correct it or remove it there")
    return token


def check_vocabulary(tokenizer: Tokenizer, config: LlamaConfig) -> None:
    """Raises `TokenizerError` where the tokenizer has ids that the embedding lacks."""
    if tokenizer.max_token_id >= config.vocab_size:
        raise TokenizerError(
            f"the tokenizer is larger than the embedding: token ids reach {tokenizer.max_token_id}, the model has "
            f"{config.vocab_size} rows; use the tokenizer that belongs to the model"
        )


def choose_pad_token(tokenizer: Tokenizer, reward_token: str | None = None) -> str | None:
    """A token of the vocabulary that no sequence ends in, to be the pad token; `None` if there is none."""
    final = {tokenizer.eos_token, tokenizer.bos_token, _last_of_chat(tokenizer), reward_token}
    unknown = tokenizer.unk_token if tokenizer.eos_token else None  # without EOS, a text may end in an unknown word
    candidates = (tokenizer.pad_token, *_PAD_TOKENS, unknown)
    usable = (token for token in candidates if token not in final and tokenizer.token_id(token) is not None)
    return next(usable, None)


def set_pad_token(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """The tokenizer with another pad token, also in its files."""
    if token == tokenizer.pad_token:
        return tokenizer
    files = dict(tokenizer.files)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if name in files or name == "tokenizer_config.json":
            files[name] = dump_json(parse_json(files, name) | {"pad_token": token})
    return dataclasses.replace(tokenizer, pad_token=token, files=files)


def add_pad_token(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a new special token `<|pad|>` at the end of its vocabulary.

    **Raises:** `TokenizerError` where the token exists already, or gaps in the ids would give it another token's id.
    """
    backend = tokenizer_from_files(tokenizer.files).backend  # a copy to change
    taken = set(backend.get_vocab(with_added_tokens=True).values())
    backend.add_special_tokens([NEW_PAD_TOKEN])
    if backend.token_to_id(NEW_PAD_TOKEN) in taken:
        raise TokenizerError(
            f"{NEW_PAD_TOKEN!r} cannot be added to the tokenizer for padding: it exists already or the ids have "
            "gaps; state in tokenizer_config.json a pad_token that no text ends in"
        )
    # Write all added tokens: those that only the configuration lists would otherwise get ids after the new one.
    added = {"added_tokens": json.loads(backend.to_str())["added_tokens"]}
    content = dump_json(parse_json(tokenizer.files, "tokenizer.json") | added)
    grown = tokenizer_from_files({**tokenizer.files, "tokenizer.json": content})
    return set_pad_token(dataclasses.replace(grown, today=tokenizer.today), NEW_PAD_TOKEN)


def _last_of_chat(tokenizer: Tokenizer) -> str | None:
    """The last token of a rendered conversation, if there is a template."""
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except TokenizerError:
        return None
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.backend.id_to_token(ids[-1]) if ids else None
