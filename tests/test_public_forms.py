"""The forms of public data sets, from files; docs/data.md has a row of each, which test_data_page.py reads."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rm
from rm.__main__ import main
from rm.data.public_forms import FORMS

from .test_data_page import ROWS
from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer

PAGE = {kind: (json.loads(row), text) for kind, row, text in ROWS}
TIES = {
    "Chatbot Arena, votes": {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    "Chatbot Arena, conversations": {"winner": "tie"},
    "HelpSteer3": {"overall_preference": 0},
    "WebGPT comparisons": {"score_0": 0.0, "score_1": 0.0},
}
WRONG = {  # what is changed in the page's row, and the line about it
    "Chatbot Arena, votes": (
        {"prompt": "a"},
        "field 'prompt': expected a list of turns, or its JSON text, found str 'a'",
    ),
    "Chatbot Arena, conversations": ({"winner": "b"}, "field 'winner': expected one of 'model_a', 'model_b', 'tie', "),
    "PKU-SafeRLHF": ({"better_response_id": 2}, "field 'better_response_id': expected one of 0, 1, found int 2"),
    "HelpSteer3": ({"overall_preference": "1"}, "field 'overall_preference': expected a number, found str '1'"),
    "Nectar": ({"answers": [{"answer": "b"}]}, "field 'answers': expected objects with answer and rank, found list"),
    "summarize_from_feedback": ({"info": {}}, "field 'info': expected an object with post or article, found dict {}"),
    "ms-swift": (
        {"messages": [{"role": "user", "content": "a"}]},
        "field 'messages': expected a chat that ends in the",
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), {**NAMED, "chat_template": TEMPLATE})


def read(path, tokenizer, **options):
    rows = rm.load_comparisons(path)
    return rm.tokenize_comparisons(rows, tokenizer, CONFIG, cache=False, **options)


def best(comparisons, tokenizer, index=0) -> str:
    prefix, chosen, *_ = (
        comparisons.tokens[a:b] for a, b in zip(*[comparisons.offsets[index][i:] for i in (0, 1)], strict=False)
    )
    return tokenizer.decode([*prefix, *chosen])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_of_a_public_form_is_read_and_named(form, suffix, tokenizer, tmp_path):
    """Every column would be unknown, or the wrong side be the better one."""
    row, text = PAGE[form.name]
    path = tmp_path / f"rows.{suffix}"
    rows = [row | {"annotator": 7}] * 2
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    comparisons, table = read(path, tokenizer)
    assert best(comparisons, tokenizer).replace(" ", "") == text.replace(" ", "")  # decoding adds some
    assert set(table["formats"]) == {form.name}
    assert table["columns_not_read"] == ["annotator"]


@pytest.mark.parametrize("name", TIES)
def test_a_tie_is_dropped_and_counted(name, tokenizer, tmp_path):
    row, _ = PAGE[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, (row, row | TIES[name]))) + "\n", encoding="utf-8")
    comparisons, table = read(path, tokenizer)
    assert len(comparisons) == 1
    assert sum(table["dropped"].values()) == 1


def test_the_strength_of_a_preference_is_a_margin(tokenizer, tmp_path):
    path, (row, _) = tmp_path / "rows.jsonl", PAGE["HelpSteer3"]
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    comparisons, _ = read(path, tokenizer, margin_from_scores=True)
    assert comparisons.margin.tolist() == [2.0]


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_means_nothing_is_one_line(name, tokenizer, tmp_path):
    (row, _), (change, line) = PAGE[name], WRONG[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | change) + "\n", encoding="utf-8")
    with pytest.raises(rm.DataError, match=re.escape(line)):
        read(path, tokenizer)


def test_columns_are_read_under_other_names(llama_directory, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    row = {"query": "a ", "response_j": "b", "response_k": "c", "rejected": "an old name"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    command = ["data", "--model", str(llama_directory), "--dataset", str(path)]
    assert main([*command, "--rename", "chosen=response_j"]) == 2
    assert "--rename prompt=query" in capsys.readouterr().err
    both = ["--rename", "chosen=response_j", "prompt=query", "rejected=response_k"]
    assert main([*command, *both]) == 2
    assert "rename rejected=response_k: there is a column 'rejected' already" in capsys.readouterr().err
    assert main([*command, *both, "old=rejected"]) == 0
    assert "text, explicit prompt" in capsys.readouterr().out
    for wrong, line in {
        "chosen": "--rename: expected NAME=COLUMN, such as chosen=response_j, found 'chosen'",
        "chosen=nothing": "rename chosen=nothing: no column 'nothing'; found query, response_j,",
    }.items():
        assert main([*command, "--rename", wrong]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize("name", ["UltraFeedback", "HelpSteer3", "Nectar"])
def test_an_evaluation_reads_public_forms(name, loaded, tmp_path):
    """Best of n and the scores of people would be missing, or every row be refused."""
    path, (row, _) = tmp_path / "rows.jsonl", PAGE[name]
    rm.save_reward_model(tmp_path / "model", *loaded)
    path.write_text("\n".join(json.dumps(row | {"domain": d}) for d in "xy") + "\n", encoding="utf-8")
    command = [
        "evaluate",
        "--model",
        str(tmp_path / "model"),
        "--dataset",
        str(path),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--by", "domain"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    assert [line["subset"] for line in lines] == ["x", "y"]
    expected = {"UltraFeedback": [7.5, 8], "HelpSteer3": [2, 0], "Nectar": [-2, -1]}[name]
    assert all(line["scores"] == expected and len(line["rewards"]) == 2 for line in lines)
