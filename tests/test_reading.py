"""JSON, CSV and Parquet files: what is read is what stands in the file, whatever the other rows hold."""

import csv
import decimal
import gzip
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

import rm
from rm.data.formats import parse_row
from rm.data.tokenize import tokenize_comparisons
from rm.files.columns import without_nulls
from rm.files.row_files import read_lines, write_lines

from .test_tokenize import chat
from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer

CHAT = {"chosen": chat("a", "b"), "rejected": chat("a", "c")}
TEXT = {"chosen": "a b", "rejected": "a c"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in, or read from, the cache of the person who runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), {**NAMED, "chat_template": TEMPLATE})


def write(path, rows) -> str:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def tokens(rows, tokenizer, **options) -> list[list[int]]:
    comparisons, _ = tokenize_comparisons(rows, tokenizer, CONFIG, cache=False, **options)
    return [comparisons.tokens[start:stop].tolist() for start, stop in comparisons.offsets[:, [0, -1]]]


# Values that are lost or changed where types are inferred from the rows before.
LATE = {
    "a chat after texts": ("chosen", "a b", chat("a", "b")),
    "dates": ("chosen", "a", "2024-01-02"),
    "a number after whole numbers": ("margin", 1, 0.5),
    "texts after numbers, not read": ("note", 1, "one"),
    "another key": ("extra", {"a": 1}, {"b": [1, None]}),
    "null after lists": ("extra", [1], None),
    "a large number": ("extra", 1, 10**30),
    "half a character": ("note", "a", "b \ud800"),
    "not a number": ("extra", 1.0, math.inf),
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
@pytest.mark.parametrize("case", LATE)
def test_no_row_changes_how_another_is_read(tmp_path, name, case):
    """Arrow's own reader infers types from blocks of 10 MB: later rows became texts, dates or errors."""
    column, early, late = LATE[case]
    rows = [TEXT | {column: early}] * 3000 + [TEXT | {column: late}]
    path = tmp_path / name
    path.write_text(json.dumps(rows)) if name.endswith(".json") else write(path, rows)
    assert list(rm.load_comparisons(path, streaming=True)) == rows
    seen = []
    read = rm.load_comparisons(path)
    tokenize_rows(read, seen)
    assert seen == rows


def tokenize_rows(rows, seen: list) -> None:
    """The rows as `parse_row` gets them."""
    from rm.data import tokenize

    for chunk in tokenize._read(rows, getattr(rows, "column_names", []), "data"):
        seen += [
            {name: value for name, value in row.items() if value is not None or name == "extra"}
            for row in tokenize._as_rows(chunk)
        ]


@pytest.mark.long
@pytest.mark.gate
def test_more_than_a_block_of_texts_before_a_chat_is_trained_on_as_a_chat(tmp_path, tokenizer):
    long = {"chosen": "a " * 20_000, "rejected": "a b"}
    path = write(tmp_path / "rows.jsonl", [long] * 300 + [CHAT])  # 12 MB, then the chat
    alone = tokens([CHAT], tokenizer)
    for streaming in (False, True):
        rows = rm.load_comparisons(path, streaming=streaming)
        assert tokens(rows, tokenizer, max_length=10**6)[-1] == alone[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_directory_do_not_share_their_types(tmp_path, streaming):
    directory = tmp_path / "data"
    directory.mkdir()
    rows = [TEXT | {"margin": "high"}, TEXT | {"margin": 2}, CHAT | {"margin": 0.5}]
    for number, row in enumerate(rows):
        write(directory / f"train-{number}.jsonl", [row])
    for path in (directory, directory / "*.jsonl"):
        assert list(rm.load_comparisons(str(path), streaming=streaming)) == rows


def test_slices_of_the_splits_of_a_directory(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    train, test = [TEXT | {"id": i} for i in range(4)], [CHAT | {"id": i} for i in range(2)]
    write(directory / "train.jsonl", train)
    write(directory / "test.jsonl.gz", test)
    assert rm.load_comparisons(directory, split="train[1:3]+test[:1]").to_list() == [*train[1:3], test[0]]
    with pytest.raises(rm.DataError, match=r"no split 'dev'; found train, test"):
        rm.load_comparisons(directory, split="dev")


def test_texts_numbers_and_truth_values_are_columns_of_their_types(tmp_path):
    """So that users sort and filter by them, and `map` sees what the file holds."""
    rows = [{**TEXT, "margin": 0.5, "votes": 3, "checked": True, "tags": ["x"], "empty": None}, {**TEXT, "margin": 1}]
    rows[0]["scores"], rows[1]["scores"] = [1, 2], [0.12345678901234, 7.8e-12]  # JSON columns lose digits in `map`
    read = rm.load_comparisons(write(tmp_path / "rows.jsonl", rows))
    kinds = {name: str(feature) for name, feature in read.features.items()}
    assert kinds == {
        "tags": "Json(decode=True)",
        "scores": "List(Value('float64'))",
        "chosen": "Value('string')",
        "rejected": "Value('string')",
        "margin": "Value('float64')",
        "votes": "Value('int64')",
        "checked": "Value('bool')",
    }
    assert read.map(lambda row: {"prompt": row["chosen"] + "!"})["prompt"] == ["a b!", "a b!"]
    assert read.map(lambda row: {"prompt": "a"})["scores"][1] == rows[1]["scores"]
    assert read.filter(lambda row: row["margin"] < 1)["votes"] == [3]


def test_a_file_is_converted_once_and_anew_where_it_has_changed(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", [TEXT])
    rm.load_comparisons(path)
    (first,) = (tmp_path / "cache/rm-rows").iterdir()
    rm.load_comparisons(path)
    assert [*(tmp_path / "cache/rm-rows").iterdir()] == [first]
    write(tmp_path / "rows.jsonl", [TEXT, CHAT])
    assert len(rm.load_comparisons(path)) == 2


def test_of_lines_that_a_run_writes_only_the_last_may_be_cut_short(tmp_path):
    """A run that was killed while it wrote could not be resumed, or damage would go unseen."""
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    write_lines(path, [{"step": 1, "loss": 0.1}, {"step": 2, "text": "é\u2028"}])
    whole = path.read_text(encoding="utf-8")
    assert [json.loads(line) for line in whole.split("\n")[:-1]] == read_lines(path)
    for end in range(len(whole.split("\n")[0]) + 1, len(whole) - 1):
        path.write_text(whole[:end], encoding="utf-8")
        assert read_lines(path) == [{"step": 1, "loss": 0.1}]
    path.write_text(whole[1:], encoding="utf-8")
    with pytest.raises(rm.DataError, match=r"metrics\.jsonl: line 1: not valid JSON"):
        read_lines(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_line_that_is_no_json_is_one_bad_row(tmp_path, tokenizer, streaming):
    path = write(tmp_path / "rows.jsonl", [TEXT, "", '{"chosen": "a"', "[1]", CHAT])
    with pytest.raises(rm.DataError, match=r"rows\.jsonl: line 3: not valid JSON"):
        list(rm.load_comparisons(path, streaming=streaming))
    rows = rm.load_comparisons(path, streaming=streaming, invalid="drop")
    _, table = tokenize_comparisons(rows, tokenizer, CONFIG, invalid="drop")
    assert (table["read"], table["kept"], table["dropped"]) == (4, 2, {"malformed": 2})


@pytest.mark.parametrize("streaming", [False, True])
def test_errors_name_the_line_in_the_file_in_whatever_order_rows_come(tmp_path, tokenizer, streaming):
    """A shuffled stream called line 151 `row 24`."""
    rows = [TEXT] * 150 + [TEXT | {"rejected": 5}] + [TEXT] * 49
    path = write(tmp_path / "rows.jsonl", rows)
    read = rm.load_comparisons(path, streaming=streaming, lines=True)
    shuffled = read.shuffle(seed=1, buffer_size=100) if streaming else read.shuffle(seed=1)
    with pytest.raises(rm.DataError, match=r"rows\.jsonl: line 151: field 'rejected': expected text"):
        tokenize_comparisons(shuffled, tokenizer, CONFIG)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_stream_fetches_a_file_when_its_turn_comes(tmp_path, monkeypatch, name):
    """Else the first update would wait for all files of a repository."""
    files = [tmp_path / f"{number}-{name}" for number in range(3)]
    for number, file in enumerate(files):
        rows = [TEXT | {"id": number}] * 2
        datasets.Dataset.from_list(rows).to_parquet(file) if name.endswith("parquet") else write(file, rows)
    fetched = []
    monkeypatch.setattr("rm.files.arrow_files.fetch", lambda file: fetched.append(Path(file).name) or Path(file))
    stream = rm.load_comparisons(str(tmp_path / f"*-{name}"), streaming=True)
    assert [row["id"] for row in stream.take(3)] == [0, 0, 1]
    assert list(dict.fromkeys(fetched)) == [file.name for file in files[:2]]  # the first row is looked at before


def test_csv_files_hold_texts_but_for_margins_and_scores(tmp_path):
    rows = [
        {"prompt": "007", "chosen": "true\nline", "rejected": "NA", "margin": 0.5, "id": "1"},
        {"prompt": None, "chosen": "x" * 200_000, "rejected": "2024-01-02", "margin": 1.0, "id": "a"},
    ]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert rm.load_comparisons(tmp_path / "rows.csv").to_list() == rows
    assert list(rm.load_comparisons(tmp_path / "rows.csv", streaming=True)) == rows
    (tmp_path / "rows.csv").write_text("chosen,rejected\na,b\nc\n")
    with pytest.raises(rm.DataError, match=r"rows\.csv: line 3: expected 2 values as in the first line, found 1"):
        rm.load_comparisons(tmp_path / "rows.csv")


def test_chats_in_cells_are_chats(tmp_path, tokenizer):
    """A list in a cell trained as the text that JSON writes for it."""
    cells = {side: json.dumps(messages) for side, messages in CHAT.items()} | {"prompt": "", "id": "[1]"}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.DictWriter(file, cells).writeheader()
        csv.DictWriter(file, cells).writerow(cells)
    rows = rm.load_comparisons(tmp_path / "rows.csv")
    assert rows[0] == {**CHAT, "id": "[1]"}
    assert tokens(rows, tokenizer) == tokens([CHAT], tokenizer)


def test_the_first_row_of_a_table_has_its_line(tmp_path):
    (tmp_path / "rows.csv").write_text("chosen,rejected\na\n")
    with pytest.raises(rm.DataError, match=r"rows\.csv: line 2: expected 2 values as in the first line, found 1"):
        rm.load_comparisons(tmp_path / "rows.csv")


# Parquet.


def parquet_rows(tmp_path, **columns) -> list[dict]:
    texts = {"chosen": pa.array(["a b", "b"]), "rejected": pa.array(["a c", "c"])}
    parquet.write_table(pa.table(texts | columns), tmp_path / "rows.parquet")
    return rm.load_comparisons(tmp_path / "rows.parquet").to_list()


def test_columns_that_are_not_read_may_have_any_type(tmp_path, tokenizer):
    kinds = {
        "votes": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "length": pa.array([1, 2], pa.duration("s")),
    }
    assert parquet_rows(tmp_path, **kinds)[0].keys() >= {"chosen", "rejected"}
    rows = rm.load_comparisons(tmp_path / "rows.parquet")
    assert tokens(rows, tokenizer) == tokens([TEXT, {"chosen": "b", "rejected": "c"}], tokenizer)


MESSAGES = [chat("a", "b"), chat("a", "c")]
STRUCT = pa.struct([("role", pa.string()), ("content", pa.large_string())])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(MESSAGES, pa.large_list(STRUCT)), MESSAGES),
        (pa.array(MESSAGES, pa.list_(STRUCT, 2)), MESSAGES),
    ],
    ids=["dictionary", "large text", "large list", "list of a fixed size"],
)
def test_stored_types_are_read_as_their_values(tmp_path, column, values):
    assert [row["prompt"] for row in parquet_rows(tmp_path, prompt=column)] == values


def test_decimals_are_numbers(tmp_path, tokenizer):
    parquet_rows(tmp_path, margin=pa.array([decimal.Decimal("0.50"), decimal.Decimal("1.25")]))
    comparisons, _ = tokenize_comparisons(rm.load_comparisons(tmp_path / "rows.parquet"), tokenizer, CONFIG)
    assert comparisons.margin.tolist() == [0.5, 1.25]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_key_of_messages_that_is_null_everywhere_is_absent(tmp_path, streaming):
    """The type of nulls cannot be cast within lists: the whole file was refused."""
    parts = [{"type": "text", "text": "a", "image": None}, {"type": "text", "text": "b", "image": None}]
    parquet_rows(tmp_path, prompt=pa.array([[{"role": "user", "content": parts}]] * 2))
    row = next(iter(rm.load_comparisons(tmp_path / "rows.parquet", streaming=streaming)))
    assert without_nulls(row["prompt"]) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [pa.float64(), pa.null()])
def test_a_margin_that_is_null_everywhere_is_absent(tmp_path, tokenizer, streaming, kind):
    parquet_rows(tmp_path, margin=pa.nulls(2, kind))
    rows = rm.load_comparisons(tmp_path / "rows.parquet", streaming=streaming)
    comparisons, _ = tokenize_comparisons(rows, tokenizer, CONFIG)
    assert comparisons.margin.tolist() == [0, 0]


def test_conversations_that_older_versions_of_datasets_saved_are_read_as_such(tokenizer):
    """Their `Sequence` of a struct comes back as an object of lists, which was refused."""
    turned = {side: {key: [m[key] for m in CHAT[side]] for key in ("role", "content")} for side in CHAT}
    assert parse_row(turned, tokenizer).sequences == parse_row(CHAT, tokenizer).sequences
    assert tokens([turned], tokenizer) == tokens([CHAT], tokenizer)


def test_files_of_a_pattern_may_store_the_same_columns_in_two_types(tmp_path):
    both = [(pa.string(), pa.int64(), 1), (pa.large_string(), pa.float64(), 0.5)]
    for number, (text, margin, value) in enumerate(both):
        table = pa.table({"chosen": ["a"], "rejected": ["b"], "margin": [value]})
        schema = pa.schema([("chosen", text), ("rejected", text), ("margin", margin)])
        parquet.write_table(table.cast(schema), tmp_path / f"{number}.parquet")
    expected = [{"chosen": "a", "rejected": "b", "margin": value} for value in (1.0, 0.5)]
    assert rm.load_comparisons(str(tmp_path / "*.parquet")).to_list() == expected


# Questions in columns of their own, and columns that nothing is read from.

ANSWERS = {"chosen": "b", "rejected": "c"}
SYSTEM = {"role": "system", "content": "d"}


@pytest.mark.parametrize(
    ("columns", "prompt", "form"),
    [
        ({"instruction": "a", "input": ""}, chat("a"), "instruction (LLaMA-Factory)"),
        ({"instruction": "a", "input": "c"}, chat("a\nc"), "instruction (LLaMA-Factory)"),
        (
            {"system": "d", "instruction": "a", "history": [["c", "d"]]},
            [SYSTEM, *chat("c", "d", "a")],
            "instruction (LLaMA-Factory)",
        ),
        ({"system": "d", "question": "a"}, [SYSTEM, *chat("a")], "question (orca pairs)"),
        ({"system": "", "question": "a"}, chat("a"), "question (orca pairs)"),
        ({"system": "d", "input": "a"}, [SYSTEM, *chat("a")], "input (Axolotl)"),
        ({"question": "a", "": "0"}, chat("a"), "question (orca pairs)"),  # the index that pandas writes
        ({"messages": chat("a", "c", "d")}, chat("a", "c", "d"), "messages (Axolotl)"),
        ({"trajectory": [{"from": "user", "value": "a"}]}, chat("a"), "trajectory (UltraInteract)"),
    ],
)
def test_a_question_in_a_column_of_its_own_is_the_prompt(tokenizer, columns, prompt, form):
    """These trained on the responses alone, in silence."""
    parsed = parse_row(columns | ANSWERS, tokenizer)
    assert parsed.sequences == parse_row({"prompt": prompt, **ANSWERS}, tokenizer).sequences
    assert parsed.format == form


@pytest.mark.parametrize("column", ["question", "instruction", "messages"])
def test_a_whole_conversation_holds_its_prompt_whatever_other_columns_say(tokenizer, column):
    """The question would stand in it twice."""
    row = {column: "a", **CHAT}
    assert parse_row(row, tokenizer).sequences == parse_row(CHAT, tokenizer).sequences
    _, table = tokenize_comparisons([row], tokenizer, CONFIG)
    assert table["columns_not_read"] == [column]


def test_a_column_that_looks_like_a_prompt_and_is_none_is_refused(tokenizer):
    found = "found query, chosen, rejected; --rename prompt=query, or remove it"
    expected = rf"^data: row 0: column 'query' looks like a prompt, but belongs to no known format; {found}$"
    with pytest.raises(rm.DataError, match=expected):
        tokenize_comparisons([{"query": "a", **ANSWERS}], tokenizer, CONFIG)


@pytest.mark.parametrize("in_memory", [True, False])
def test_columns_that_are_not_read_are_listed_and_rows_that_may_lack_their_prompt_counted(tokenizer, in_memory):
    rows = [{"topic": "a", "id": 1, **ANSWERS}, {"topic": "a", "id": 2, **TEXT}]
    _, table = tokenize_comparisons(datasets.Dataset.from_list(rows) if in_memory else rows, tokenizer, CONFIG)
    assert table["columns_not_read"] == ["id", "topic"]
    assert table["without_prompt"] == 1  # the second one's sides share a beginning
    _, table = tokenize_comparisons([{"prompt": "a", "topic": "d", "id": 1, **ANSWERS}], tokenizer, CONFIG)
    assert (table["columns_not_read"], table["without_prompt"]) == (["id", "topic"], 0)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "a", **ANSWERS}, [SYSTEM, *chat("a", "b")]),  # Axolotl's prompt_pairs, orca's many children
        ({"prompt": chat("a"), **ANSWERS}, [SYSTEM, *chat("a", "b")]),
        ({"prompt": [SYSTEM, *chat("a")], **ANSWERS}, [SYSTEM, *chat("a", "b")]),
        ({"prompt": "a", **CHAT}, [SYSTEM, *CHAT["chosen"]]),
        (CHAT, [SYSTEM, *CHAT["chosen"]]),
        ({"conversations": [{"from": "human", "value": "a"}], **ANSWERS}, [SYSTEM, *chat("a", "b")]),  # LLaMA-Factory
        ({"messages": chat("a"), **ANSWERS}, [SYSTEM, *chat("a", "b")]),
    ],
)
def test_a_column_of_system_messages_comes_first(tokenizer, row, messages):
    """It was listed as not read, and the model trained without it."""
    expected = parse_row({"chosen": messages, "rejected": CHAT["rejected"]}, tokenizer).sequences[0]
    parsed = parse_row({"system": "d", **row}, tokenizer)
    assert parsed.sequences[0] == expected
    _, table = tokenize_comparisons([{"system": "d", **row}], tokenizer, CONFIG)
    assert table["columns_not_read"] == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_without_a_system_message_are_chats_where_others_have_one(tokenizer, in_memory):
    """Half of the data would be texts, and the other half chats."""
    rows = [{"system": system, "prompt": "a", **ANSWERS} for system in ("d", "", None)]
    assert parse_row(rows[1], tokenizer).sequences == parse_row({"prompt": chat("a"), **ANSWERS}, tokenizer).sequences
    _, table = tokenize_comparisons(datasets.Dataset.from_list(rows) if in_memory else rows, tokenizer, CONFIG)
    assert table["formats"] == {"chat, explicit prompt, system apart": 3}
    rows = rows[2:] * 2
    _, table = tokenize_comparisons(datasets.Dataset.from_list(rows) if in_memory else rows, tokenizer, CONFIG)
    assert table["formats"] == {"chat, explicit prompt, system apart": 2}


def test_two_system_messages_are_refused(tokenizer):
    row = {"system": "c", "prompt": [SYSTEM, *chat("a")], **ANSWERS}
    with pytest.raises(rm.DataError, match=r"field 'system': the conversation begins with another system message"):
        parse_row(row, tokenizer)
    with pytest.raises(rm.DataError, match=r"field 'system': expected text, found int 1"):
        parse_row(row | {"system": 1}, tokenizer)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_error_of_unknown_columns_lists_all_and_how_to_rename_them(tokenizer, in_memory):
    rows = [{"prompt": "a", "winner": "b", "loser": "c"}]
    expected = "no column 'chosen' or 'rejected'; found prompt, winner, loser; expected chosen and rejected .*; "
    with pytest.raises(rm.DataError, match=expected + "other names: --rename chosen=COLUMN rejected=COLUMN$"):
        tokenize_comparisons(datasets.Dataset.from_list(rows) if in_memory else rows, tokenizer, CONFIG)


def test_fields_of_messages_that_the_template_leaves_out_are_counted(tokenizer):
    """A template that drops `reasoning_content` or `name` makes responses equal, and nobody would know."""

    def answer(**fields) -> list[dict]:
        return [{"role": "assistant", "content": "b", **fields}]

    rows = [
        {"prompt": chat("a"), "chosen": answer(reasoning_content="c"), "rejected": answer(reasoning_content="d")},
        {"prompt": chat("a"), "chosen": answer(name="c"), "rejected": [{"role": "assistant", "content": "c"}]},
        {"prompt": chat("a"), "chosen": "b", "rejected": "b"},
    ]
    _, table = tokenize_comparisons(rows, tokenizer, CONFIG)
    assert table["fields_not_rendered"] == {"name": 1, "reasoning_content": 1}
    assert table["dropped"] == {"identical": 1, "identical_as_rendered": 1}


@pytest.mark.long
def test_the_benchmark_of_reading_runs(llama_directory, pairs_file):
    root = Path(rm.__file__).parents[1]
    command = [sys.executable, root / "benchmarks/read.py", "--before", root, "--model", llama_directory]
    done = subprocess.run([*command, "--data", pairs_file, "--rows", "30"], capture_output=True, text=True, check=True)
    assert re.search(r"round 0: \d+\.\d+ times the rows per second, \d+\.\d+ times the peak memory", done.stdout)
