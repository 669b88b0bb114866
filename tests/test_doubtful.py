"""Doubtful pairs: counted, and some left out if asked."""

import json
import random
import re

import pytest

import rm
from rm.__main__ import main
from rm.data.doubtful import contradicting, repeated, shared
from rm.data.table import describe_table

from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def drawn(count: int, seed: int) -> list[dict[str, str]]:
    """Pairs of few responses, of which many occur twice or the other way round."""
    rng = random.Random(seed)
    pairs = [rng.sample(["a", "b", "c", "d", "ab"], 2) for _ in range(count)]
    return [{"prompt": rng.choice(["a ", "b "]), "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]


def tokenized(rows, tokenizer, **options):
    return rm.tokenize_comparisons(rows, tokenizer, CONFIG, **options)


def pair(row: dict[str, str]) -> tuple[str, str]:
    return row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_of_plain_loops(seed, tokenizer):
    rows, others = drawn(60, seed), drawn(15, seed + 100)
    (comparisons, _), (more, _) = tokenized(rows, tokenizer), tokenized(others, tokenizer)
    pairs, there = [pair(row) for row in rows], {frozenset(pair(row)) for row in others}
    assert repeated(comparisons).tolist() == [each in pairs[:i] for i, each in enumerate(pairs)]
    assert contradicting(comparisons).tolist() == [each[::-1] in pairs for each in pairs]
    assert shared(comparisons, more).tolist() == [frozenset(each) in there for each in pairs]


def test_what_is_asked_for_is_left_out_and_counted(tokenizer):
    rows = [{"prompt": "a ", "chosen": c, "rejected": r} for c, r in (("b", "c"), ("b", "c"), ("c", "d"), ("d", "c"))]
    comparisons, table = tokenized(rows, tokenizer)
    assert (len(comparisons), table["repeated"], table["contradicting"], table["dropped"]) == (4, 1, 2, {})
    comparisons, table = tokenized(rows, tokenizer, drop_duplicates=True)
    assert comparisons.row.tolist() == [0, 2, 3]
    assert table["dropped"] == {"duplicates": 1}
    comparisons, table = tokenized(rows, tokenizer, drop_contradictions=True)
    assert comparisons.row.tolist() == [0, 1]
    assert (table["dropped"], table["contradicting"], table["comparisons"]) == ({"contradictions": 2}, 0, 4)
    with pytest.raises(rm.DataError, match=r"^data: all comparisons contradict others; nothing is left$"):
        tokenized(rows[2:], tokenizer, drop_contradictions=True)


# What the sides of a pair say.


def talk(*said: str) -> list[dict[str, str]]:
    """A user and an assistant in turns."""
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said)]


def marked(*said: str) -> str:
    """The same as a transcript of hh-rlhf."""
    return "".join(f"\n\n{('Human', 'Assistant')[k % 2]}: {text}" for k, text in enumerate(said))


SIDES = {  # chosen, rejected, and what is doubtful about them
    "nothing": (["a b", "c"], ["a b", "d"], []),
    "another first question": (["a b", "c"], ["a c", "c"], ["without_prompt"]),
    "another second question": (["a", "b", "a c", "c"], ["a", "b", "a d", "d"], []),
    "answers of other lengths": (["a", "b"], ["a", "c", "d", "b"], []),
    "an answer cut short": (["a", "b c"], ["a", "b c d"], ["begins_the_other"]),
    "the same, the other way round": (["a", "b c d"], ["a", "b c"], ["begins_the_other"]),
    "a conversation cut short": (["a", "b"], ["a", "b", "c", "d"], ["begins_the_other"]),
    "and within its last answer": (["a", "b", "c", "d"], ["a", "b c"], []),
    "an empty answer": (["a", ""], ["a", "b"], []),
    "the user has the last word": (["a", "b", "c"], ["a", "c"], ["ends_with_user"]),
    "all of it": (["a"], ["b"], ["without_prompt", "ends_with_user"]),
}


@pytest.mark.parametrize("write", [talk, marked])
@pytest.mark.parametrize("name", SIDES)
def test_what_the_sides_of_a_pair_say_is_counted(name, write, tmp_path):
    """A model would learn to tell prompts apart, or that what ends early is worse, and nobody would know."""
    chosen, rejected, expected = SIDES[name]
    tokenizer = make_tokenizer(tmp_path, {**NAMED, "chat_template": TEMPLATE})
    _, table = tokenized([{"chosen": write(*chosen), "rejected": write(*rejected)}], tokenizer)
    counts = {key: table[key] for key in ("without_prompt", "begins_the_other", "ends_with_user")}
    assert counts == {key: int(key in expected) for key in counts}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a ", "chosen": "b", "rejected": "b c"}, ["begins_the_other"]),
        ({"prompt": "a ", "chosen": "", "rejected": "b"}, []),  # an empty response, which is counted as such
        ({"prompt": "a ", "chosen": "b", "rejected": "c"}, []),
        ({"chosen": "b", "rejected": "c"}, ["without_prompt"]),
        ({"chosen": "a b", "rejected": "a c"}, []),
        ({"chosen": "a b", "rejected": "a b c"}, ["begins_the_other"]),
        ({"prompt": "a ", "responses": ["b", "c", "b c"], "scores": [1, 2, 3]}, ["begins_the_other"]),
        ({"chosen_ids": [3, 4], "rejected_ids": [4, 5]}, []),
        ({"chosen": json.dumps(talk("a")) + " b", "rejected": "[1] c"}, ["messages_as_text"]),
        ({"chosen": "[1] c", "rejected": str(talk("a")) + " b"}, ["messages_as_text"]),  # of pandas
    ],
)
def test_texts_have_no_turns_and_are_compared_as_they_are(row, expected, tokenizer):
    _, table = tokenized([row], tokenizer)
    counts = {key: table[key] for key in ("without_prompt", "begins_the_other", "ends_with_user", "messages_as_text")}
    assert counts == {key: int(key in expected) for key in counts}


def test_the_table_says_what_is_doubtful(tokenizer):
    rows = [{"chosen": "a b", "rejected": "a b c"}, {"chosen": marked("a"), "rejected": marked("b", "c")}]
    text = describe_table("data", tokenized(rows, tokenizer)[1])
    assert "  among the kept    1 where one side begins the other, 1 where a side ends with the user\n" in text
    assert "  no prompt         pairs whose sides share no prompt: 1\n" in text
    text = describe_table("data", tokenized([row | {"topic": "d"} for row in rows], tokenizer)[1])
    advice = "if a column that is not read holds the prompt, rename it to 'prompt'"
    assert f"  no prompt         pairs whose sides share no prompt: 1; {advice}\n" in text


@pytest.mark.optax
def test_a_run_says_which_of_its_evaluation_it_trains_on(llama_directory, tmp_path, capsys):
    """An accuracy would be that of pairs learned by heart."""
    rows = drawn(12, 7)
    for name, part in {
        "train": rows,
        "held_out": [*rows[:3], {"prompt": "c ", "chosen": "a", "rejected": "b"}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)) + "\n", encoding="utf-8")
    command = ["train", "--model", str(llama_directory), "--dataset", str(tmp_path / "train.jsonl"), "--max-steps", "1"]
    command += ["--eval-dataset", str(tmp_path / "held_out.jsonl"), "--output", str(tmp_path / "run")]
    assert main([*command, "--batch-size", "4"]) == 0
    assert re.search(r"among the kept .*\b3 in training\n", capsys.readouterr().out)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["data"]["eval_held_out"]["in_training"] == 3
