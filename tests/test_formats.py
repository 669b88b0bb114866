"""The forms of preference data: each gives the token ids that are stated here, and no row is lost unsaid."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rm
from rm.data.formats import COLUMNS, parse_row
from rm.data.render import RowError
from rm.data.tokenize import tokenize_comparisons

from .conftest import shared
from .test_tokenize import ASSISTANT, BOS, EOS, TURNS, USER, A, B, C, D, chat, encoded, message, sequences
from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), NAMED | {"chat_template": TEMPLATE})


def said(speaker: str, text: str) -> dict:
    return {"from": speaker, "value": text}


SIDES = [TURNS, [BOS, USER, A, EOS, ASSISTANT, D, EOS]]  # user: a, assistant: "b c" or "d"


@pytest.mark.parametrize(
    ("row", "form"),
    [
        pytest.param(
            {"prompt": chat("a"), "chosen": message("assistant", "b c"), "rejected": message("assistant", "d")},
            "chat, explicit prompt",
            id="messages",
        ),
        pytest.param({"chosen": chat("a", "b c"), "rejected": chat("a", "d")}, "chat, implicit prompt", id="implicit"),
        pytest.param(
            {"prompt": chat("a"), "chosen": chat("a", "b c")[1], "rejected": chat("a", "d")[1]},
            "chat, explicit prompt",
            id="responses of one message without a list",
        ),
        pytest.param(
            {"prompt": chat("a"), "chosen": "b c", "rejected": "d"},
            "chat, explicit prompt",
            id="messages, then texts",
        ),
        pytest.param(
            {"prompt": "a", "chosen": chat("a", "b c"), "rejected": chat("a", "d")},
            "chat, explicit prompt",
            id="a prompt as text that the chats repeat, as UltraFeedback has it",
        ),
        pytest.param(
            {"prompt": "a", "chosen": message("assistant", "b c"), "rejected": message("assistant", "d")},
            "chat, explicit prompt",
            id="a prompt as text that the chats answer",
        ),
        pytest.param(
            {
                "conversations": [said("human", "a")],
                "chosen": said("gpt", "b c"),
                "rejected": said("gpt", "d"),
            },
            "chat, explicit prompt (from/value)",
            id="ShareGPT, as LLaMA-Factory has it",
        ),
        pytest.param(
            {
                "chosen": [said("human", "a"), said("gpt", "b c")],
                "rejected": [said("human", "a"), said("chatgpt", "d")],
            },
            "chat, implicit prompt (from/value)",
            id="ShareGPT, whole conversations",
        ),
        pytest.param({"chosen_ids": SIDES[0], "rejected_ids": SIDES[1]}, "token ids", id="chosen_ids"),
        pytest.param({"chosen_input_ids": SIDES[0], "rejected_input_ids": SIDES[1]}, "token ids", id="*_input_ids"),
        pytest.param(
            {
                "input_ids_chosen": [2, 2, *SIDES[0]],
                "attention_mask_chosen": [0, 0, *[1] * 8],
                "input_ids_rejected": [*SIDES[1], 2],
                "attention_mask_rejected": [*[1] * 7, 0],
            },
            "token ids",
            id="input_ids_*, padded left and right",
        ),
    ],
)
def test_every_form_gives_the_ids_of_the_same_conversation(tokenizer, row, form):
    comparisons, table = tokenize_comparisons([row], tokenizer, CONFIG)
    assert sequences(comparisons) == [SIDES]
    assert table["formats"] == {form: 1}


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("gpt", "assistant"), ("observation", "tool"), ("system", "system"), ("user", "user")],
)
def test_speakers_of_sharegpt_are_the_roles_of_templates(tokenizer, speaker, role):
    row = {"chosen": [said(speaker, "a")], "rejected": [said("gpt", "b")]}
    assert parse_row(row, tokenizer).sequences[0] == f"<s>{role} a </s>"


RESPONSES = {"prompt": "a ", "responses": ["b", "c", "d"]}


def ranked(*responses: int) -> list[list[int]]:
    return [[BOS, A, response, EOS] for response in responses]


@pytest.mark.parametrize(
    ("column", "pairs", "order"),
    [
        ({"scores": [0.1, 0.9, 0.5]}, [(C, D), (C, B), (D, B)], (C, D, B)),
        ({"ranks": [3, 1, 2]}, [(C, D), (C, B), (D, B)], (C, D, B)),
        ({"scores": [1, 2, 1]}, [(C, B), (C, D)], (C, B, D)),
        ({"scores": [1, 1, 1]}, [], ()),
    ],
    ids=["scores", "ranks, 1 is best", "a tie", "all tied"],
)
def test_kwise_rows_give_every_pair_without_a_tie_or_one_comparison_of_all(tokenizer, column, pairs, order):
    rows = [RESPONSES | column, RESPONSES | {"scores": [3, 2, 1]}]
    comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG)
    assert sequences(comparisons)[:-3] == [ranked(*pair) for pair in pairs]
    assert table["dropped"] == ({"tied": 3 - len(pairs)} if len(pairs) < 3 else {})
    assert table["comparisons"] == 6
    whole, table = tokenize_comparisons(rows, tokenizer, CONFIG, expand_pairs=False)
    assert sequences(whole) == [ranked(*order), ranked(B, C, D)][not order :]
    assert table["dropped"] == ({} if order else {"tied": 1})


def test_the_margin_of_a_pair_is_the_difference_of_its_scores_on_request(tokenizer):
    rows = [RESPONSES | {"scores": [0.0, 3.0, 1.0]}]
    assert tokenize_comparisons(rows, tokenizer, CONFIG)[0].margin.tolist() == [0, 0, 0]
    comparisons, _ = tokenize_comparisons(rows, tokenizer, CONFIG, margin_from_scores=True)
    assert comparisons.margin.tolist() == [2, 3, 1]
    scored = {"chosen": "a", "rejected": "b", "score_chosen": 4, "score_rejected": 1.5}
    assert tokenize_comparisons([scored], tokenizer, CONFIG, margin_from_scores=True)[0].margin.tolist() == [2.5]


def test_pairs_whose_scores_are_too_close_are_left_out(tokenizer):
    sides = {"chosen": "a", "rejected": "b"}
    rows = [sides | {"score_chosen": score, "score_rejected": 1.0} for score in (0.5, 1.5, 2.0, 3.0)]
    comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG, min_score_margin=1.0, margin_from_scores=True)
    assert comparisons.margin.tolist() == [1.0, 2.0]
    assert table["dropped"] == {"below_min_score_margin": 2}


@pytest.mark.parametrize("options", [{"margin_from_scores": True}, {"min_score_margin": 0.5}])
def test_scores_that_are_asked_for_and_not_there_are_named(tokenizer, options):
    with pytest.raises(rm.DataError, match=r"^data: row 0: no column 'score_chosen'"):
        encoded([{"chosen": "a", "rejected": "b"}], tokenizer, **options)


@pytest.mark.parametrize("margins", [(None, 1.0), (1.0, None)])
def test_a_margin_in_some_rows_is_refused(tokenizer, margins):
    rows = [{"chosen": "a", "rejected": "b", "margin": margin} for margin in margins]
    absent = [{name: value for name, value in row.items() if value is not None} for row in rows]
    number = margins.index(None)
    for given_rows in (rows, absent):
        with pytest.raises(rm.DataError, match=f"^data: row {number}: field 'margin': expected .*every row"):
            encoded(given_rows, tokenizer)


def test_malformed_rows_are_left_out_on_request_and_counted_by_reason(tokenizer):
    rows = [
        {"chosen": "a", "rejected": "b"},
        {"chosen": "a"},
        {"chosen": 5, "rejected": "b"},
        {"chosen": "a \ud800", "rejected": "b"},
        {"chosen_ids": [1, 99], "rejected_ids": [1]},
        {"chosen": chat("a", "b"), "rejected": "b"},
        {"chosen": "c", "rejected": "d"},
    ]
    comparisons, table = tokenize_comparisons(rows, tokenizer, CONFIG, invalid="drop")
    assert sequences(comparisons) == [[[BOS, x, EOS], [BOS, y, EOS]] for x, y in ((A, B), (C, D))]
    assert table["dropped"] == {"missing_column": 1, "malformed": 4}
    assert table["formats"] == {"text, implicit prompt": 2}


WHOLE = st.text(max_size=20)
HALF = st.characters(categories=["Cs"])  # put in on purpose: among all characters it is hardly ever drawn
BROKEN = st.builds("{}{}{}".format, WHOLE, HALF, WHOLE)
TEXT = WHOLE | BROKEN | st.sampled_from(["", "a", "b c", "a" * 300, "b " * 300])
SIDE = TEXT | st.builds(chat, TEXT, TEXT) | st.builds(lambda text: [said("human", text), said("gpt", text)], TEXT)
ROWS = st.fixed_dictionaries(
    {"chosen": SIDE, "rejected": SIDE}, optional={"prompt": TEXT | st.builds(chat, TEXT), "tools": st.none()}
)
KWISE = st.fixed_dictionaries(
    {
        "responses": st.lists(TEXT, min_size=1, max_size=4),
        "scores": st.lists(st.integers(0, 3) | st.floats(), max_size=4),
    }
)
IDS = st.fixed_dictionaries({"chosen_ids": st.lists(st.integers(-1, 11)), "rejected_ids": st.lists(st.integers(0, 9))})


GOOD = {"chosen": "a", "rejected": "b"}  # so that something is left whatever the others are


@settings(max_examples=200, deadline=None)
@given(st.lists(ROWS | KWISE | IDS | st.just({}), max_size=8), st.sampled_from(["drop", "truncate-right"]))
def test_whatever_the_rows_each_is_kept_or_counted_and_none_changes_another(tokenizer, rows, truncation):
    """Halves of characters, empty texts, very long ones and all forms in one list."""
    options = {"invalid": "drop", "max_length": 40, "truncation": truncation}
    alone = [tokenize_comparisons([GOOD, row], tokenizer, CONFIG, **options) for row in rows]
    comparisons, table = tokenize_comparisons([GOOD, *rows], tokenizer, CONFIG, **options)
    good, *found = sequences(comparisons)
    assert good == [[BOS, A, EOS], [BOS, B, EOS]]
    assert found == [pair for one, _ in alone for pair in sequences(one)[1:]]
    for _, of_row in alone:
        assert (of_row["kept"] - 1) + sum(of_row["dropped"].values()) > 0
    assert table["dropped"] == sum((Counter(of_row["dropped"]) for _, of_row in alone), Counter())
    assert table["read"] == 1 + len(rows)
    assert max((len(side) for pair in found for side in pair), default=0) <= 40


KEYS = st.sampled_from(["role", "content", "from", "value", "tool_calls", "name"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(COLUMNS)), JSON))
@example({"chosen": {"from": []}, "rejected": "a"})  # once a TypeError
def test_any_json_is_read_or_refused_in_one_line(tokenizer, row):
    try:
        parsed = parse_row(row, tokenizer)
    except RowError as error:
        refused = str(error)
    else:
        assert len(parsed.sequences) == len(parsed.empty) >= 2
        return
    assert "\n" not in refused
    assert len(refused) < 600


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "read", "kept", "dropped", "empty", "form"),
    [
        ("hh-rlhf/pairs", 8523, 8487, {"identical": 36}, 11, "chat, explicit prompt"),
        ("ukp-convarg1/pairs", 12792, 12792, {}, 0, "chat, explicit prompt"),
        ("humanevalpack/pairs", 984, 984, {}, 0, "text, explicit prompt"),
        ("llmbar/pairs", 885, 884, {"identical": 1}, 0, "chat, explicit prompt"),
        ("llama-factory-demo/dpo_en_demo", 300, 300, {}, 0, "chat, explicit prompt"),
        ("xstest/pairs", 486, 486, {}, 0, "chat, explicit prompt"),
    ],
)
def test_real_data_are_read_whole(name, read, kept, dropped, empty, form):
    smollm2 = rm.load_tokenizer(shared("tokenizers/smollm2-135m-instruct"))
    rows = rm.load_comparisons(shared(f"data/{name}.jsonl.gz"))
    config = dataclasses.replace(CONFIG, vocab_size=49152)
    _, table = tokenize_comparisons(rows, smollm2, config, max_length=10**6, cache=False)
    found = [table[key] for key in ("read", "kept", "dropped", "empty_responses", "formats")]
    assert found == [read, kept, dropped, empty, {form: read}]


@pytest.mark.long
@pytest.mark.gate
def test_real_kwise_rows_are_read_whole():
    smollm2 = rm.load_tokenizer(shared("tokenizers/smollm2-135m-instruct"))
    rows = rm.load_comparisons(shared("data/gsm8k-solutions/kwise.jsonl.gz"))
    config = dataclasses.replace(CONFIG, vocab_size=49152)
    scores = np.array(rows["scores"])
    untied = sum(int((scores[:, i] != scores[:, j]).sum()) for i in range(4) for j in range(i))
    _, table = tokenize_comparisons(rows, smollm2, config, max_length=10**6, cache=False)
    assert (table["read"], table["comparisons"]) == (1319, 6 * 1319)
    assert table["dropped"] == {"tied": 6 * 1319 - untied}
    _, table = tokenize_comparisons(rows, smollm2, config, max_length=10**6, cache=False, expand_pairs=False)
    assert (table["kept"], table["dropped"]) == (1319 - 588, {"tied": 588})


def test_a_token_id_of_no_vocabulary_is_refused_by_row(tokenizer):
    """Beyond 32 bits it was an error of NumPy."""
    with pytest.raises(
        rm.DataError, match=r"^data: row 0: field 'rejected_ids': expected a list of at least one token id"
    ):
        encoded([{"chosen_ids": [1], "rejected_ids": [2**31]}], tokenizer)
