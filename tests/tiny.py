"""A tokenizer of whole words and a small model, plain enough that tests can state token ids and tensor names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import rm

WORDS = ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "ab", "user", "assistant")  # the ids are 0 to 9
SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }}{% endfor %}"
PAIRS_OF_WORDS = (  # a row of every form
    {"prompt": "a b ", "chosen": "c", "rejected": "d"},
    {"chosen": "a b c", "rejected": "a b d", "margin": 1.0},
    {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c", "tools": "[]"},
    {
        side: [{"from": "human", "value": "a"}, {"from": "gpt", "value": word}]
        for side, word in (("chosen", "b"), ("rejected", "c"))
    },
    {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2.5, 3]},
    {"chosen_ids": [1, 3, 4], "rejected_ids": [1, 3, 5], "chat_template_kwargs": {"a": 1}},
)
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CONFIG = rm.LlamaConfig(
    vocab_size=10,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    mlp_bias=True,
)


def write_tokenizer(
    directory: Path,
    config: Mapping[str, object] = NAMED,
    *,
    words: Sequence[str] | Mapping[str, int] = WORDS,
    special: Sequence[str] = SPECIAL,
    adds_bos: bool = True,
    files: Mapping[str, object] | None = None,
) -> Path:
    """Writes `tokenizer.json` (splits at spaces, looks words up), `tokenizer_config.json` and further files."""
    vocabulary = dict(words) if isinstance(words, Mapping) else {word: i for i, word in enumerate(words)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    post_processor = {
        "type": "TemplateProcessing",
        "single": [bos, sequence],
        "pair": [bos, sequence],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [vocabulary.get("<s>")], "tokens": ["<s>"]}},
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[t], "content": t, **flags, "special": True} for t in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": post_processor if adds_bos else None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    directory.mkdir(exist_ok=True)
    for name, content in {"tokenizer.json": tokenizer, "tokenizer_config.json": config, **(files or {})}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def make_tokenizer(directory: Path, config: Mapping[str, object] = NAMED, **options) -> rm.Tokenizer:
    """The same, loaded."""
    return rm.load_tokenizer(write_tokenizer(directory, config, **options))
