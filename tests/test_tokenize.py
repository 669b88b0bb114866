"""Rows to token ids: the conventions are stated as literal ids of a tokenizer of ten words."""

import dataclasses
from itertools import pairwise

import datasets
import numpy as np
import pytest

import rm
from rm.data import tokenize
from rm.data.comparisons import TokenizedComparisons, flatten, reward_index
from rm.data.tokenize import tokenize_comparisons

from .conftest import shared
from .tiny import CONFIG, NAMED, SPECIAL, TEMPLATE, WORDS, make_tokenizer

BOS, EOS, A, B, C, D, AB, USER, ASSISTANT = range(1, 10)


def message(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def chat(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.fixture
def tokenizer(tmp_path) -> rm.Tokenizer:
    return make_tokenizer(tmp_path, NAMED | {"chat_template": TEMPLATE})


def sequences(comparisons: TokenizedComparisons) -> list[list[list[int]]]:
    """The whole sequences of every comparison: the prefix, then what each side has of its own."""
    parts = [[comparisons.tokens[a:b].tolist() for a, b in pairwise(row)] for row in comparisons.offsets.tolist()]
    return [[prefix + part for part in own] for prefix, *own in parts]


def encoded(rows, tokenizer: rm.Tokenizer, **options) -> list[list[list[int]]]:
    return sequences(tokenize_comparisons(rows, tokenizer, CONFIG, **options)[0])


def both(response) -> dict:
    """A row whose sides differ in a last word that `first` cuts off again."""
    return {"chosen": response, "rejected": "d d d" if isinstance(response, str) else chat("d")}


def first(row: dict, tokenizer: rm.Tokenizer) -> list[int]:
    return encoded([row], tokenizer)[0][0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"chosen": "a b"}, [BOS, A, B, EOS], id="EOS appended"),
        pytest.param({"chosen": "a b</s>"}, [BOS, A, B, EOS], id="EOS there already"),
        pytest.param({"chosen": "a</s> b"}, [BOS, A, EOS, B, EOS], id="EOS inside"),
        pytest.param({"chosen": "a</s>\n"}, [BOS, A, EOS, EOS], id="text after EOS"),
        pytest.param({"chosen": ""}, [BOS, EOS], id="empty text"),
        pytest.param({"prompt": None, "chosen": "a b"}, [BOS, A, B, EOS], id="a prompt column without a value"),
        pytest.param({"prompt": "", "chosen": "a b"}, [BOS, A, B, EOS], id="an empty prompt"),
        pytest.param({"prompt": "a ", "chosen": "b"}, [BOS, A, B, EOS], id="prompt kept"),
        pytest.param({"prompt": "a", "chosen": "b c"}, [BOS, AB, C, EOS], id="joined as strings, not as tokens"),
        pytest.param(
            {"prompt": "a</s>", "chosen": ""}, [BOS, A, EOS, EOS], id="the prompt's EOS is not the response's"
        ),
        pytest.param({"chosen": "a zebra"}, [BOS, A, 0, EOS], id="unknown word"),
    ],
)
def test_text(tokenizer, row, expected):
    assert first({"rejected": "d d d"} | row, tokenizer) == expected


def test_text_without_an_end_token_stays_as_it_is(tmp_path):
    assert first(both("a b"), make_tokenizer(tmp_path, {"bos_token": "<s>"})) == [BOS, A, B]


TURNS = [BOS, USER, A, EOS, ASSISTANT, B, C, EOS]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"prompt": chat("a"), "chosen": message("assistant", "b c")}, TURNS, id="explicit prompt"),
        pytest.param({"chosen": chat("a", "b c")}, TURNS, id="implicit prompt"),
        pytest.param({"prompt": None, "chosen": chat("a", "b c")}, TURNS, id="a prompt column without a value"),
        pytest.param({"chosen": chat("a", "")}, [BOS, USER, A, EOS, ASSISTANT, EOS], id="empty response"),
        pytest.param(
            {"chosen": chat("a", "b</s>")}, [BOS, USER, A, EOS, ASSISTANT, B, EOS, EOS], id="EOS in a message"
        ),
    ],
)
def test_chat_goes_through_the_template_with_exactly_one_bos(tokenizer, row, expected):
    """The template writes BOS and the post-processor adds one: only one of them may."""
    rejected = message("assistant", "d") if row.get("prompt") else chat("a", "d")
    assert first(row | {"rejected": rejected}, tokenizer) == expected


def test_explicit_and_implicit_prompts_give_the_same_ids(tokenizer):
    """A peer scores the completion alone when the prompt is an explicit string."""
    sides = {"chosen": "a", "rejected": "c"}
    explicit = [{"prompt": "a b ", **sides}]
    implicit = [{side: "a b " + text for side, text in sides.items()}]
    assert encoded(explicit, tokenizer) == encoded(implicit, tokenizer) == [[[BOS, A, B, A, EOS], [BOS, A, B, C, EOS]]]


def test_rejected_is_encoded_as_chosen_is(tokenizer):
    rows = [
        {"chosen": "a", "rejected": "b", "prompt": "c "},
        {"chosen": chat("a", "b"), "rejected": chat("a", "c")},
    ]
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert encoded(rows, tokenizer) == [pair[::-1] for pair in encoded(swapped, tokenizer)]


def test_a_margin_stays_with_its_row_when_rows_before_it_are_dropped(tokenizer):
    """And the table adds up. A peer shifts the rest."""
    rows = [
        ("a", "b", 0.5),
        ("a", "a", 1.0),  # identical
        ("a b c d", "a", 1.5),  # chosen over 5 tokens
        ("a", "a b c", 2.0),  # exactly 5
        ("zebra", "gnu", 2.5),  # identical in tokens
        ("a", "a b c d", 3.0),  # rejected over 5 tokens
        ("c", "d", -4.0),
    ]
    rows = [dict(zip(("chosen", "rejected", "margin"), row, strict=True)) for row in rows]
    comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG, max_length=5)
    assert table == {
        "read": 7,
        "comparisons": 7,
        "kept": 3,
        "dropped": {"over_length": 2, "identical": 1, "identical_as_rendered": 1},
        "formats": {"text, implicit prompt": 7},
        "columns_not_read": [],
        "without_prompt": 2,
        "begins_the_other": 1,
        "ends_with_user": 0,
        "messages_as_text": 0,
        "fields_not_rendered": {},
        "empty_responses": 0,
        "truncated": 0,
        "double_bos_removed": 0,
        "repeated": 0,
        "contradicting": 0,
        "tokens": (3 + 3) + (3 + 5) + (3 + 3),
        "tokens_stored": (1 + 2 + 2) + (2 + 1 + 3) + (1 + 2 + 2),
        "saved_by_shared_prefix": 1 - 16 / 20,
        "length": {"p50": 3, "p90": 5, "p99": 5, "max": 5},
        "prefix_length": {"p50": 1, "p90": 2, "p99": 2, "max": 2},
        "chosen_longer": 0.0,
    }
    assert comparisons.margin.tolist() == [0.5, 2.0, -4.0]
    assert comparisons.margin.dtype == np.float32
    assert [pair[0][1] for pair in sequences(comparisons)] == [A, A, C]
    assert len(comparisons) == 3
    without = tokenize_comparisons([{"chosen": "a", "rejected": "b"}], tokenizer, CONFIG)[0]
    assert without.margin.tolist() == [0.0]


def test_an_empty_response_in_a_chat_is_kept(tokenizer):
    """Real data has them."""
    rows = [{"prompt": chat("a"), "chosen": message("assistant", "b"), "rejected": message("assistant", "")}]
    comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG)
    assert table["kept"] == 1
    assert comparisons.lengths.tolist() == [[5, 2, 1]]


def test_sharing_stores_the_prefix_once_and_changes_no_sequence(tokenizer):
    rows = [{"chosen": "a b c", "rejected": "a b d d"}, {"chosen": "a", "rejected": "a b"}]
    expected = [[[BOS, A, B, C, EOS], [BOS, A, B, D, D, EOS]], [[BOS, A, EOS], [BOS, A, B, EOS]]]
    for share_prefix, lengths in ((True, [[3, 2, 3], [2, 1, 2]]), (False, [[0, 5, 6], [0, 3, 4]])):
        comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG, share_prefix=share_prefix)
        assert sequences(comparisons) == expected
        assert comparisons.lengths.tolist() == lengths
        assert comparisons.ends.tolist() == [[4, 5], [2, 3]]
        assert comparisons.num_tokens.tolist() == [11, 7]
        assert (table["tokens"], table["tokens_stored"]) == (18, sum(map(sum, lengths)))


def test_a_sequence_that_dynamic_rotary_scaling_stretches_shares_nothing():
    """Its frequencies depend on its own length, so its prompt's keys are nobody else's."""
    config = dataclasses.replace(CONFIG, rope=rm.Rope(type="dynamic", factor=2.0), max_position_embeddings=4)
    comparisons = flatten([[[1, 2, 3], [1, 2, 4, 5]], [[1, 2, 3], [1, 2, 3, 4, 5]]], [0.0, 0.0], config)
    assert comparisons.lengths.tolist() == [[2, 1, 2], [0, 3, 5]]


@pytest.mark.parametrize(
    ("ids", "pad", "expected"),
    [
        ([5, 6, 2], 0, 2),
        ([5, 6, 2], None, 2),
        ([5, 6, 2], 2, 1),  # pad is EOS: one token early, as `transformers` reads it
        ([5, 2, 2], 2, 0),
        ([2, 5, 2], 2, 1),
        ([2, 2], 2, 0),
        ([5], 0, 0),
        ([0, 5], 0, 1),
    ],
)
def test_the_reward_is_read_at_the_rightmost_token_that_is_not_padding(ids, pad, expected):
    assert reward_index(np.array(ids, np.int32), pad) == expected
    comparison = flatten([[ids]], [0.0], dataclasses.replace(CONFIG, pad_token_id=pad))
    assert comparison.ends.tolist() == [[expected]]


def test_rows_of_text_and_chat_keep_their_order_over_chunks(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize, "_CHUNK", 3)
    rows = [
        {side: f"{word} {end}" if i % 3 else chat(word, end) for side, end in (("chosen", "a"), ("rejected", "b"))}
        for i, word in enumerate("abcddcba")
    ]
    together = encoded((row for row in rows), tokenizer)  # an iterator, as streaming gives it
    assert together == [encoded([row], tokenizer)[0] for row in rows]
    assert together[0][0] == [BOS, USER, A, EOS, ASSISTANT, A, EOS]
    assert together[1] == [[BOS, B, A, EOS], [BOS, B, B, EOS]]


TOOLS = "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}" + TEMPLATE
WORD = "{{ word | default('d') }} {{ 'c' if thinking }} " + TEMPLATE


@pytest.mark.parametrize(
    ("template", "column", "value", "added"),
    [
        pytest.param(TOOLS, "tools", [{"name": "a"}, {"name": "b"}], [A, B], id="tools as a list"),
        pytest.param(TOOLS, "tools", '[{"name": "a"}, {"name": "b"}]', [A, B], id="tools as JSON"),
        pytest.param(TOOLS, "tools", None, [], id="no tools"),
        pytest.param(WORD, "chat_template_kwargs", {"word": "b", "thinking": True}, [B, C], id="kwargs"),
        pytest.param(WORD, "chat_template_kwargs", {"thinking": True}, [D, C], id="other kwargs"),
        pytest.param(WORD, "chat_template_kwargs", None, [D], id="no kwargs"),
    ],
)
def test_tools_and_template_arguments_of_a_row_reach_the_template(tmp_path, template, column, value, added):
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": template})
    row = {"chosen": chat("a", "b"), "rejected": chat("a", "c"), column: value}
    assert first(row, tokenizer) == [*added, BOS, USER, A, EOS, ASSISTANT, B, EOS]


def test_a_tokenizer_that_knows_more_than_the_embedding_is_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path, words=[*WORDS, "extra"], special=SPECIAL)
    with pytest.raises(rm.TokenizerError, match="token ids reach 10, the model has 10 rows"):
        tokenize_comparisons([{"chosen": "a", "rejected": "b"}], tokenizer, CONFIG)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """A real tokenizer, a configuration that fits it, and a cache of its own for `datasets`."""
    tokenizer = rm.load_tokenizer(shared("tokenizers/smollm2-135m-instruct"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        yield tokenizer, dataclasses.replace(CONFIG, vocab_size=49152)


def test_the_real_tokenizer_gives_the_ids_that_its_files_state(smollm2):
    tokenizer, _ = smollm2
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.max_token_id) == (2, 2, 49151)
    ids = tokenizer.encode(tokenizer.apply_chat_template(chat("Hi", "")), add_special_tokens=False)
    assert [i for i in ids if i < 3] == [1, 2, 1, 2, 1, 2]  # <|im_start|> and <|im_end|> of system, user, assistant
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n")


def test_real_pairs_as_texts_with_an_implicit_prompt(smollm2):
    rows = rm.load_comparisons(shared("data/hh-rlhf/harmless-base.raw.jsonl.gz"))
    comparisons, table = tokenize_comparisons(rows, *smollm2, max_length=1024)
    assert table["read"] == 2312
    assert table["read"] == table["kept"] + sum(table["dropped"].values())
    assert all(pair[0][-1] == pair[1][-1] == 2 for pair in sequences(comparisons)[:200])  # EOS
    assert table["tokens_stored"] < 0.7 * table["tokens"]  # the dialogue that both sides share is stored once
