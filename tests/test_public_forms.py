"""The forms of public data sets, from files; docs/data.md has a row of each, which test_data_page.py reads."""

import csv
import dataclasses
import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rm
from rm.__main__ import main
from rm.data.formats import parse_row
from rm.data.public_forms import FORMS

from .test_data_page import ROWS
from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer

PAGE = {kind: (json.loads(row), text) for kind, row, text in ROWS}
TIES = {
    "Chatbot Arena, votes": {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    "Chatbot Arena, conversations": {"winner": "tie"},
    "HelpSteer3": {"overall_preference": 0},
    "WebGPT comparisons": {"score_0": 0.0, "score_1": 0.0},
    "HelpSteer2, preferences": {"preference_strength": 0},
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
    rows = [part | {"annotator": 7} for part in (row if isinstance(row, list) else [row])] * 2
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    comparisons, table = read(path, tokenizer)
    ids = tokenizer.encode(text.replace("⏎", "\n"))[1:]  # without the second BOS
    assert best(comparisons, tokenizer) == tokenizer.decode(ids)
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


def test_a_tool_of_a_public_form_reaches_the_template(tokenizer):
    """OpenAI's preferences have theirs beside the messages, where they were lost."""
    row, _ = PAGE["OpenAI preferences"]
    tools = [{"type": "function", "function": {"name": "ab"}}]
    told = dataclasses.replace(tokenizer, chat_template=TEMPLATE + "{{ tools[0].function.name if tools else '' }}")
    parsed = [parse_row({**row, "input": row["input"] | more}, told) for more in ({}, {"tools": tools})]
    assert parsed[1].sequences == [text + "ab" for text in parsed[0].sequences]


def test_numbers_of_a_table_are_numbers(tokenizer, tmp_path):
    """Chatbot Arena's votes are a CSV file: the first row was refused."""
    row, text = PAGE["Chatbot Arena, votes"]
    with (tmp_path / "votes.csv").open("w", newline="") as file:
        csv.DictWriter(file, row).writeheader()
        csv.DictWriter(file, row).writerows([row, row | TIES["Chatbot Arena, votes"]])
    comparisons, table = read(tmp_path / "votes.csv", tokenizer)
    assert best(comparisons, tokenizer).replace(" ", "") == text.replace(" ", "")
    assert table["dropped"] == {"tied": 1}


# HelpSteer's rows have one response each.


def rated(*rows: tuple[str, str, int]) -> list[dict]:
    return [dict(zip(("prompt", "response", "helpfulness"), row, strict=True)) | {"verbosity": 1} for row in rows]


RATINGS = rated(("a", "b", 1), ("a", "c", 3), ("b", "c", 2), ("b", "d", 2), ("c", "a", 4), ("d", "a", 0), ("d", "b", 4))


@pytest.mark.parametrize("name", ["list", "dataset", "rows.jsonl", "rows.csv", "rows.parquet", "stream", "saved"])
def test_ratings_of_one_prompt_are_a_comparison(name, tokenizer, tmp_path):
    """The first two rows are a pair, the next two a tie, the fifth has nothing to be compared with, the last a pair."""
    data = datasets.Dataset.from_list(RATINGS)
    data.to_json(tmp_path / "rows.jsonl")
    data.to_csv(tmp_path / "rows.csv", index=False)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    rows = {"list": RATINGS, "dataset": data}.get(name)
    if rows is None:
        path = tmp_path / ("rows.jsonl" if name == "stream" else name)
        rows = rm.load_comparisons(path, streaming=name == "stream", lines=True)
    options = {"cache": False, "margin_from_scores": True}
    comparisons, table = rm.tokenize_comparisons(rows, tokenizer, CONFIG, **options)
    texts = [best(comparisons, tokenizer, k).split() for k in range(len(comparisons))]
    assert texts == [
        ["<s>", "user", "a", "</s>", "assistant", "c", "</s>"],
        ["<s>", "user", "d", "</s>", "assistant", "b", "</s>"],
    ]
    assert comparisons.margin.tolist() == [2, 4]
    assert table["dropped"] == {"single_response": 1, "tied": 1}
    assert table["columns_not_read"] == ["verbosity"]
    assert table["formats"] == {"HelpSteer, ratings": 3}


def test_ratings_are_joined_before_a_stream_is_shuffled(llama_directory, tmp_path, capsys):
    """Rows that no longer follow each other would all be left out."""
    rows = rated(*((f"{k}", text, score) for k in range(40) for text, score in (("a", 0), ("b", 1))))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["data", "--model", str(llama_directory), "--dataset", str(tmp_path / "rows.jsonl")]
    assert main([*command, "--streaming", "--max-steps", "5", "--batch-size", "8"]) == 0
    assert "40, of which 40 kept" in capsys.readouterr().out


def test_ratings_that_are_no_numbers_and_rows_in_disorder_are_said(tokenizer):
    with pytest.raises(rm.DataError, match=r"data: row 0: field 'helpfulness': expected a number, found str '3'"):
        rm.tokenize_comparisons(rated(("a", "b", "3"), ("a", "c", "1")), tokenizer, CONFIG)
    with pytest.raises(rm.DataError, match=r"no comparison is left of 2 rows \(single response: 2\)"):
        rm.tokenize_comparisons(rated(("a", "b", 3), ("b", "c", 1)), tokenizer, CONFIG)


def test_a_public_row_of_one_response_is_counted(tokenizer):
    """UltraFeedback has rows without completions, which ended the run."""
    row, _ = PAGE["UltraFeedback"]
    rows = [row, row | {"completions": []}, row | {"completions": row["completions"][:1]}]
    _, table = rm.tokenize_comparisons(rows, tokenizer, CONFIG)
    assert (table["read"], table["kept"], table["dropped"]) == (3, 1, {"single_response": 2})


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


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "saved"])
def test_a_stream_is_read_under_other_names(name, tokenizer, tmp_path):
    """A name that another column gives up was refused, and a missing column said without the file."""
    data = datasets.Dataset.from_list([{"query": "a ", "better": "b", "worse": "c", "rejected": "d"}] * 2)
    data.to_json(tmp_path / "rows.jsonl")
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    names = {"prompt": "query", "chosen": "better", "rejected": "worse", "old": "rejected"}
    rows = rm.load_comparisons(tmp_path / name, streaming=True, rename=names, lines=True)
    comparisons, table = rm.tokenize_comparisons(rows, tokenizer, CONFIG)
    assert best(comparisons, tokenizer) == "<s> a b </s>"
    assert table["columns_not_read"] == ["old"]
    expected = rf"{name}: rename chosen=best: no column 'best'; found query, better, worse, rejected$"
    with pytest.raises(rm.DataError, match=expected):
        rm.load_comparisons(tmp_path / name, streaming=True, rename={"chosen": "best"}, lines=True)


@pytest.mark.optax
def test_every_command_reads_columns_under_other_names(loaded, tmp_path, capsys):
    rows = [{"query": f"{word} ", "better": "b", "worse": "c"} for word in "abcd"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rm.save_reward_model(tmp_path / "model", *loaded)
    given = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl")]
    given += ["--rename", "prompt=query", "chosen=better", "rejected=worse"]
    held_out = ["--eval-dataset", str(tmp_path / "rows.jsonl"), "--max-steps", "1", "--batch-size", "4"]
    assert main(["data", *given]) == 0
    assert main(["evaluate", *given, "--output", str(tmp_path / "evaluation")]) == 0
    assert main(["train", *given, *held_out, "--output", str(tmp_path / "run")]) == 0
    assert "4 in training" in capsys.readouterr().out


def test_an_evaluation_leaves_out_malformed_public_rows(loaded, tmp_path):
    """Their prompts are texts, and those of the others messages: the evaluation ended with a traceback."""
    path, (row, _) = tmp_path / "rows.jsonl", PAGE["PKU-SafeRLHF"]
    rm.save_reward_model(tmp_path / "model", *loaded)
    path.write_text("\n".join(map(json.dumps, [row, row | {"better_response_id": 7}])), encoding="utf-8")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--dataset", str(path), "--invalid", "drop"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    (table,) = json.loads((tmp_path / "out/evaluation.json").read_text())["data"].values()
    assert (table["kept"], table["dropped"]) == (1, {"malformed": 1})


@pytest.mark.parametrize("name", ["UltraFeedback", "HelpSteer3", "Nectar", "HelpSteer, ratings"])
def test_an_evaluation_reads_public_forms(name, loaded, tmp_path):
    """Best of n and the scores of people would be missing, or every row be refused."""
    path, (row, _) = tmp_path / "rows.jsonl", PAGE[name]
    rm.save_reward_model(tmp_path / "model", *loaded)
    rows = row if isinstance(row, list) else [row]
    lines = [json.dumps(row | {"domain": d} | ({"prompt": d} if "prompt" in row else {})) for d in "xy" for row in rows]
    if len(rows) > 1:
        lines.append(json.dumps({**rows[0], "domain": "y", "prompt": "z"}))  # nothing to be compared with
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
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
    expected = {"UltraFeedback": [7.5, 8], "HelpSteer3": [2, 0], "Nectar": [-2, -1], "HelpSteer, ratings": [1, 4]}[name]
    assert all(line["scores"] == expected and len(line["rewards"]) == 2 for line in lines)
