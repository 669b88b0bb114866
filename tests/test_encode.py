"""What becomes of comparisons: cut, dropped, tokenized in processes, kept on disk, mixed."""

import dataclasses
import os
from pathlib import Path

import datasets
import numpy as np
import pytest

import rm
from rm.data import tokenize
from rm.data.tokenize import tokenize_comparisons

from .conftest import shared
from .test_tokenize import ASSISTANT, BOS, EOS, USER, A, B, C, D, chat, encoded, message, sequences
from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), NAMED | {"chat_template": TEMPLATE})


LONG = {"prompt": "a b c d ", "chosen": "a", "rejected": "b b"}  # 7 and 8 tokens, of which 5 are shared


@pytest.mark.parametrize(
    ("truncation", "max_length", "expected"),
    [
        ("drop", 8, [[BOS, A, B, C, D, A, EOS], [BOS, A, B, C, D, B, B, EOS]]),
        ("drop", 7, "over_length"),
        ("truncate-left-prompt", 7, [[BOS, B, C, D, A, EOS], [BOS, B, C, D, B, B, EOS]]),
        ("truncate-left-prompt", 5, [[BOS, D, A, EOS], [BOS, D, B, B, EOS]]),
        ("truncate-left-prompt", 4, [[BOS, A, EOS], [BOS, B, B, EOS]]),
        ("truncate-left-prompt", 3, "over_length"),  # the responses do not fit
        ("truncate-right", 7, [[BOS, A, B, C, D, A, EOS], [BOS, A, B, C, D, B, B]]),
        ("truncate-right", 6, [[BOS, A, B, C, D, A], [BOS, A, B, C, D, B]]),
        ("truncate-right", 5, "identical_after_truncation"),
    ],
)
def test_truncation(tokenizer, truncation, max_length, expected):
    short = {"chosen": "a", "rejected": "b"}  # so that something is left
    comparisons, table = tokenize_comparisons(
        [LONG, short], tokenizer, CONFIG, truncation=truncation, max_length=max_length
    )
    dropped = {expected: 1} if isinstance(expected, str) else {}
    assert sequences(comparisons)[:-1] == ([] if dropped else [expected])
    assert table["dropped"] == dropped
    assert table["truncated"] == (not dropped and truncation != "drop")


def test_without_bos_the_prompt_is_cut_from_its_first_token(tmp_path):
    plain = make_tokenizer(tmp_path, NAMED, adds_bos=False)
    assert encoded([LONG], plain, truncation="truncate-left-prompt", max_length=5) == [
        [[C, D, A, EOS], [C, D, B, B, EOS]]
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"chosen": "<s> a", "rejected": "<s>b"}, [[BOS, A, EOS], [BOS, B, EOS]], id="a text with BOS"),
        pytest.param(
            {"chosen": chat("<s>", "b"), "rejected": chat("<s>", "c")},
            [[BOS, USER, BOS, EOS, ASSISTANT, x, EOS] for x in (B, C)],
            id="BOS inside a message",
        ),
        pytest.param(
            {"chosen_ids": [BOS, BOS, A], "rejected_ids": [BOS, B]},
            [[BOS, BOS, A], [BOS, B]],
            id="token ids are as they are given",
        ),
    ],
)
def test_no_sequence_begins_with_two_bos(tokenizer, row, expected):
    comparisons, table = tokenize_comparisons([row], tokenizer, CONFIG)
    assert sequences(comparisons) == [expected]
    assert table["double_bos_removed"] == (2 if "chosen" in row and isinstance(row["chosen"], str) else 0)


def test_a_template_that_writes_two_bos_gives_one(tmp_path):
    twice = make_tokenizer(tmp_path, NAMED | {"chat_template": "{{ bos_token }}" + TEMPLATE})
    assert encoded([{"chosen": chat("a"), "rejected": chat("b")}], twice) == [[[BOS, USER, x, EOS] for x in (A, B)]]


def test_empty_responses_are_counted_and_left_out_on_request(tokenizer):
    rows = [
        {"chosen": "a", "rejected": ""},
        {"prompt": "a ", "chosen": "</s>", "rejected": "b"},
        {"prompt": chat("a"), "chosen": message("assistant", "b"), "rejected": message("assistant", "")},
        {"prompt": "", "chosen": "a", "rejected": "b"},
    ]
    _, table = tokenize_comparisons(rows, tokenizer, CONFIG)
    assert (table["kept"], table["empty_responses"], table["dropped"]) == (4, 3, {})
    _, table = tokenize_comparisons(rows, tokenizer, CONFIG, drop_empty=True)
    assert (table["kept"], table["empty_responses"], table["dropped"]) == (1, 0, {"empty_response": 3})


def test_a_limit_ends_reading_and_the_table_still_adds_up(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize, "_CHUNK", 4)
    taken = []
    rows = (taken.append(i) or {"chosen": f"a {'b ' * (i % 3)}", "rejected": "c"} for i in range(100))
    comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG, limit=6)
    assert (len(comparisons), len(taken), table["read"]) == (6, 8, 8)
    assert table["dropped"] == {"not_needed": 2}
    assert table["comparisons"] == 8


@pytest.fixture(scope="module")
def real() -> tuple[datasets.Dataset, rm.Tokenizer, rm.LlamaConfig]:
    """2,500 real pairs, a real tokenizer and a configuration that fits it."""
    smollm2 = rm.load_tokenizer(shared("tokenizers/smollm2-135m-instruct"))
    rows = rm.load_comparisons(shared("data/hh-rlhf/pairs.jsonl.gz"))
    return rows.select(range(2500)), smollm2, dataclasses.replace(CONFIG, vocab_size=49152)


def same(one: rm.TokenizedComparisons, other: rm.TokenizedComparisons) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.long
def test_processes_give_what_one_gives_in_its_order(real):
    alone, parallel = (tokenize_comparisons(*real, max_length=512, num_proc=n, cache=False) for n in (1, 2))
    assert same(alone[0], parallel[0])
    assert alone[1] == parallel[1]


@pytest.mark.long
def test_an_error_in_a_process_names_the_row(real):
    rows, *rest = real
    rows = [*rows, {"chosen": 5, "rejected": "b"}]
    with pytest.raises(rm.DataError, match=r"^pairs: row 2500: field 'chosen'"):
        tokenize_comparisons(rows, *rest, num_proc=2, source="pairs")


@pytest.fixture
def encodes(monkeypatch, tmp_path) -> list[int]:
    """How many rows each call to the tokenizer is for; the cache is empty."""
    calls = []
    original = tokenize.parse_chunk
    monkeypatch.setattr(tokenize, "parse_chunk", lambda rows, *rest: calls.append(len(rows)) or original(rows, *rest))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return calls


def test_the_same_data_tokenizer_and_options_are_not_tokenized_twice(tokenizer, encodes):
    rows = [{"chosen": "a", "rejected": "b", "id": i, "margin": i / 2} for i in range(3)]
    once = tokenize_comparisons(datasets.Dataset.from_list(rows), tokenizer, CONFIG)
    # another object, in other pieces, with another column that is not read
    pieces = [datasets.Dataset.from_list([row | {"note": 7}]) for row in rows]
    again = tokenize_comparisons(datasets.concatenate_datasets(pieces), tokenizer, CONFIG)
    assert encodes == [3]
    assert same(once[0], again[0])
    assert (once[1].pop("columns_not_read"), again[1].pop("columns_not_read")) == (["id"], ["id", "note"])
    assert once[1] == again[1]


def test_other_data_tokenizer_or_options_are_tokenized_anew(tokenizer, encodes):
    rows = datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "d"}])
    other = datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "c d"}])
    today = dataclasses.replace(tokenizer, today=tokenizer.today.replace(year=2025))
    templated = dataclasses.replace(
        tokenizer, files={**tokenizer.files, "chat_template.jinja": b"{{ messages[0].content }}"}
    )
    padded = dataclasses.replace(CONFIG, pad_token_id=2)
    for arguments in ((rows, tokenizer, CONFIG), (other, tokenizer, CONFIG), (rows, today, CONFIG)):
        tokenize_comparisons(*arguments)
    tokenize_comparisons(rows, templated, CONFIG)
    tokenize_comparisons(rows, tokenizer, padded)
    tokenize_comparisons(rows, tokenizer, CONFIG, max_length=5)
    tokenize_comparisons(rows, tokenizer, CONFIG, cache=False)
    assert encodes == [2] * 7


def test_a_damaged_entry_is_made_again(tokenizer, encodes, tmp_path):
    rows = datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}])
    first, _ = tokenize_comparisons(rows, tokenizer, CONFIG)
    (tokens,) = (tmp_path / "rm-tokenized").glob("*/tokens.bin")
    os.truncate(tokens, tokens.stat().st_size - 4)
    second, _ = tokenize_comparisons(rows, tokenizer, CONFIG)
    assert encodes == [1, 1]
    assert same(first, second)


def test_a_cache_that_cannot_be_written_is_none(tokenizer, monkeypatch, tmp_path):
    Path(tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    rows = datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}])
    assert len(tokenize_comparisons(rows, tokenizer, CONFIG)[0]) == 1


def made(tokenizer: rm.Tokenizer, count: int, word: str) -> rm.TokenizedComparisons:
    rows = [{"chosen": f"{word} {'a ' * i}", "rejected": word + " b", "margin": i} for i in range(count)]
    return tokenize_comparisons(rows, tokenizer, CONFIG)[0]


def test_taking_comparisons_keeps_each_whole(tokenizer):
    comparisons = made(tokenizer, 6, "c")
    taken = comparisons.take([4, 0, 4])
    assert sequences(taken) == [sequences(comparisons)[i] for i in (4, 0, 4)]
    assert taken.margin.tolist() == [4, 0, 4]
    assert np.array_equal(taken.keys, comparisons.keys[[4, 0, 4]])
    assert np.array_equal(taken.ends, comparisons.ends[[4, 0, 4]])
    assert len(comparisons.take([])) == 0


@pytest.mark.parametrize(
    ("weights", "counts"), [(None, [30, 10]), ([1, 1], [10, 10]), ([0.7, 0.3], [23, 10]), ([3, 1], [30, 10])]
)
def test_a_mixture_takes_as_many_as_the_ratio_allows(tokenizer, weights, counts):
    parts = [made(tokenizer, 30, "c"), made(tokenizer, 10, "d")]
    mixture, taken = rm.mix(parts, weights, seed=1)
    assert taken == counts
    words = [pair[0][1] for pair in sequences(mixture)]
    assert [words.count(C), words.count(D)] == counts
    assert len(set(zip(words, mixture.margin.tolist(), strict=True))) == sum(counts)  # none is taken twice
    again, _ = rm.mix(parts, weights, seed=1)
    assert same(mixture, again)
