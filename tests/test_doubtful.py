"""Pairs that occur twice, that contradict each other, or that an evaluation has too: counted, and left out if asked."""

import json
import random

import pytest

import rm
from rm.__main__ import main
from rm.data.doubtful import contradicting, repeated, shared

from .tiny import CONFIG, make_tokenizer


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
    assert "among the kept    3 in training" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["data"]["eval_held_out"]["in_training"] == 3
