"""Conversations encoded part by part: the ids must be those of the whole text."""

import dataclasses
import gzip
import itertools
import json
import random

import pytest
import tokenizers

import rm
from rm.data import segments
from rm.data.segments import Segments, split_pattern

from .conftest import shared
from .tiny import NAMED, TEMPLATE, make_tokenizer

REAL = ["tokenizers/smollm2-135m-instruct", "tokenizers/minueza-32m-ultrachat", "models/stories260K"]


def same(tokenizer: rm.Tokenizer, texts: list[str]) -> None:
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    found = Segments(tokenizer)
    for _ in range(2):  # the second time from memory
        assert [ids.tolist() for ids in found.encode(texts)] == expected


@pytest.mark.parametrize("name", REAL)
def test_real_conversations_have_the_ids_of_their_whole_text(name):
    tokenizer = rm.load_tokenizer(shared(name))
    assert split_pattern(tokenizer.backend) is not None
    with gzip.open(shared("data/hh-rlhf/pairs.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 300)]
    conversations = [[*row["prompt"], *row[side]] for row in rows for side in ("chosen", "rejected")]
    if tokenizer.chat_template is None:
        tokenizer = dataclasses.replace(tokenizer, chat_template=TEMPLATE)
    same(tokenizer, [tokenizer.apply_chat_template(messages) for messages in conversations])


@pytest.mark.parametrize("name", REAL)
def test_special_tokens_anywhere_in_a_text_change_nothing(name):
    tokenizer = rm.load_tokenizer(shared(name))
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    pieces = [
        *special,
        *(token[:-1] for token in special),
        *(token[1:] for token in special),
        " ",
        "\n",
        "a",
        "é b",
        "<",
    ]
    generator = random.Random(0)
    same(tokenizer, ["", *("".join(generator.choices(pieces, k=generator.randint(1, 12))) for _ in range(2000))])


def with_tokens(tokenizer: rm.Tokenizer, *added: tokenizers.AddedToken) -> rm.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(list(added))
    return dataclasses.replace(tokenizer, backend=backend)


def cuts(tokenizer: rm.Tokenizer) -> list[str]:
    pattern = split_pattern(tokenizer.backend)
    return [] if pattern is None else pattern.pattern.replace("\\", "").split("|")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), {**NAMED, "chat_template": TEMPLATE})


def test_a_token_that_takes_space_to_its_left_or_that_another_reaches_into_is_no_place_to_cut(tokenizer):
    """Cut before `</s>`, a text that holds the longer token `a</s>` would lose it."""
    assert sorted(cuts(tokenizer)) == ["</s>", "<s>", "<unk>"]
    left = with_tokens(tokenizer, tokenizers.AddedToken("<left>", lstrip=True, normalized=False))
    longer = with_tokens(tokenizer, tokenizers.AddedToken("a</s>", normalized=False))
    assert "<left>" not in cuts(left)
    assert sorted(cuts(longer)) == ["<s>", "<unk>", "a</s>"]
    same(left, ["a  <left> b<left>", "<s>a <left></s>"])
    same(longer, ["a</s>b", "<s>a</s></s>a</s>", "a </s>"])


def test_memory_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(segments, "_REMEMBERED", 20)
    found = Segments(tokenizer)
    for number in range(50):
        found.encode([f"<s>a {'b ' * number}</s>"])
        assert sum(map(len, found._ids)) <= 20
