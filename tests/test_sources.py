"""Where rows come from: files, saved directories and their splits."""

import gzip
import json

import datasets
import pyarrow as pa
import pytest

import rm
from rm.data.sources import Source, expand, parse_source

ROWS = [{"prompt": f"{i}?", "chosen": "NA" if i == 3 else f"{i}", "rejected": "None"} for i in range(10)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in, or read from, the cache of the person who runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _gzipped(name: str, text: bytes) -> bytes:
    return gzip.compress(text) if name.endswith(".gz") else text


def write(path, name: str):
    """The rows in the format that the name asks for."""
    dataset, file = datasets.Dataset.from_list(ROWS), path / name
    texts = {
        "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "document.json": json.dumps(ROWS),
        "wrapped.json": json.dumps({"data": ROWS}),
        "wrapped_lines.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    }
    text = texts.get(name.removesuffix(".gz").removesuffix(".zst"), "").encode()
    if text:
        file.write_bytes(pa.compress(text, "zstd", asbytes=True) if name.endswith(".zst") else _gzipped(name, text))
    elif name == "pairs.arrow":
        dataset.save_to_disk(str(path / "as_arrow"))
        (path / "as_arrow/data-00000-of-00001.arrow").rename(file)
    elif name == "pairs.parquet":
        dataset.to_parquet(file)
    elif name in ("pairs.csv", "pairs.tsv"):
        dataset.to_csv(file, index=False, sep="," if name.endswith("csv") else "\t")
    elif name == "saved":
        dataset.save_to_disk(str(file))
    else:
        datasets.DatasetDict({"train": dataset, "test": dataset.select([7, 8])}).save_to_disk(str(file))
    return file


FORMATS = ["pairs.jsonl", "pairs.jsonl.gz", "document.json", "document.json.gz", "pairs.parquet", "pairs.arrow"]
FORMATS += ["pairs.jsonl.zst", "wrapped.json", "wrapped_lines.json", "wrapped_lines.json.zst"]
FORMATS += ["pairs.csv", "pairs.tsv", "saved", "saved_dict"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts(tmp_path, name):
    """No number, date or missing value may be guessed from a text such as 4, NA or None."""
    assert rm.load_comparisons(write(tmp_path, name)).to_list() == ROWS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("split", "kept"),
    [
        ("train[:20%]", ROWS[:2]),
        ("train[8:]", ROWS[8:]),
        ("train[-1:]", ROWS[9:]),
        ("train[:1]+train[4:6]", [ROWS[0], *ROWS[4:6]]),
    ],
)
def test_slices_of_a_split(tmp_path, name, split, kept):
    """A split that was ignored would evaluate on the training data."""
    assert rm.load_comparisons(write(tmp_path, name), split=split).to_list() == kept


@pytest.mark.parametrize("name", FORMATS)
def test_streaming_gives_the_same_rows(tmp_path, name):
    streamed = rm.load_comparisons(write(tmp_path, name), streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert list(streamed) == ROWS


def test_what_a_document_has_beside_its_rows_is_said(tmp_path, caplog):
    """The rows of another list would be lost in silence."""
    file = write(tmp_path, "wrapped_lines.json")
    rm.load_comparisons(file)
    assert caplog.messages == [f"{file}: the rows are those of 'data'; not read: version"]
    file.write_text(json.dumps({"data": ROWS, "test": ROWS}))
    with pytest.raises(rm.DataError, match=r"with one list of rows, 'data'; found an object of data, test$"):
        rm.load_comparisons(file)
    file.write_text(json.dumps({"data": [*ROWS, {"chosen": "a"}]}))
    assert rm.load_comparisons(file, lines=True)[10]["__line__"] == f"{file}: row 10 of 'data'"


@pytest.mark.parametrize("text", [json.dumps(ROWS), json.dumps({"data": ROWS}), json.dumps({"data": ROWS}, indent=1)])
def test_a_document_may_begin_with_the_mark_of_its_encoding(tmp_path, text):
    (tmp_path / "rows.json").write_text(text, encoding="utf-8-sig")
    assert rm.load_comparisons(tmp_path / "rows.json").to_list() == ROWS


def test_lines_of_json_whose_first_is_cut_short_are_lines(tmp_path):
    (tmp_path / "rows.json").write_text('{"chosen": "a",\n' + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(rm.DataError, match=r"rows\.json: line 1: not valid JSON"):
        rm.load_comparisons(tmp_path / "rows.json")
    assert len(rm.load_comparisons(tmp_path / "rows.json", invalid="drop")) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_directory_are_read_by_their_endings(tmp_path, streaming):
    """Those of the hub are found in the same way."""
    for name in ("pairs.jsonl.zst", "pairs.tsv"):
        (tmp_path / name.replace(".", "_")).mkdir()
        write(tmp_path / name.replace(".", "_"), name)
        assert list(rm.load_comparisons(tmp_path / name.replace(".", "_"), streaming=streaming)) == ROWS


def test_a_pattern_reads_its_files_in_the_order_of_their_names(tmp_path):
    for name, rows in (("b.jsonl", ROWS[4:]), ("a.jsonl", ROWS[:4])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pattern = str(tmp_path / "[ab].jsonl")
    assert rm.load_comparisons(pattern).to_list() == ROWS
    assert rm.load_comparisons(pattern, split="train[:50%]").to_list() == ROWS[:2] + ROWS[4:7]  # of each file
    assert expand(pattern) == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_columns_of_several_files_may_differ_in_name_and_in_type(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0] | {"source": "a"}))
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[1] | {"votes": 3}))
    loaded = rm.load_comparisons(str(tmp_path / "*.jsonl")).select_columns(["prompt", "chosen", "rejected"])
    assert loaded.to_list() == ROWS[:2]
    other = ROWS[1] | {"chosen": [{"role": "user", "content": "a"}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(other))
    loaded = rm.load_comparisons(str(tmp_path / "*.jsonl")).select_columns(["prompt", "chosen", "rejected"])
    assert loaded.to_list() == [ROWS[0], other]


@pytest.mark.parametrize("name", ["dates.jsonl", "dates.json"])
def test_texts_that_look_like_dates_stay_texts(tmp_path, name):
    rows = [{"chosen": f"2024-01-0{i}", "rejected": [{"role": "user", "content": "2024-02-01"}]} for i in range(1, 4)]
    text = json.dumps(rows) if name.endswith("json") else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    assert rm.load_comparisons(tmp_path / name).to_list() == rows
    assert rm.load_comparisons(tmp_path / name, split="train[1:2]").to_list() == rows[1:2]


def test_a_map_of_the_user_comes_between_reading_and_tokenizing(tmp_path, loaded):
    model, tokenizer = loaded
    rows = rm.load_comparisons(write(tmp_path, "pairs.jsonl"))
    renamed = rows.rename_columns({"chosen": "better", "rejected": "worse"})
    mapped = renamed.map(lambda row: {"chosen": row["better"], "rejected": row["worse"]})
    one, other = (rm.tokenize_comparisons(data, tokenizer, model.config)[0] for data in (rows, mapped))
    assert one.tokens.tolist() == other.tokens.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Source(path="org/name")),
        ("org/name:english", Source(path="org/name", config_name="english")),
        ("org/name@v1.0", Source(path="org/name", revision="v1.0")),
        ("org/name:en@refs/pr/3=2", Source(path="org/name", config_name="en", revision="refs/pr/3", weight=2.0)),
        ("name=0.5", Source(path="name", weight=0.5)),
        ("./data/a=b.jsonl=1", Source(path="./data/a=b.jsonl", weight=1.0)),
        ("/data/*.jsonl", Source(path="/data/*.jsonl")),
        ("pairs@home.jsonl", Source(path="pairs@home.jsonl")),
    ],
)
def test_what_the_command_line_says_of_a_data_set(text, expected):
    assert parse_source(text) == expected


def test_a_name_with_an_equals_sign_that_exists_is_no_weight(tmp_path):
    path = write(tmp_path, "pairs.jsonl").rename(tmp_path / "lr=0.1")
    assert parse_source(str(path)) == Source(path=str(path))


def test_splits_of_a_saved_directory(tmp_path):
    assert rm.load_comparisons(write(tmp_path, "saved_dict"), split="test").to_list() == ROWS[7:9]
    for name in ("saved", "pairs.jsonl"):
        with pytest.raises(rm.DataError, match="eval"):
            rm.load_comparisons(write(tmp_path, name), split="eval")


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_directory_is_named(tmp_path, damage):
    saved = write(tmp_path, "saved")
    (saved / damage).write_bytes(b"{")
    with pytest.raises(rm.DataError, match="saved"):
        rm.load_comparisons(saved).to_list()


@pytest.mark.parametrize("name", ["nowhere.jsonl.gz", "data/nowhere.txt", "./nowhere", "nowhere.csv"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(rm.DataError, match="no such file"):
        rm.load_comparisons(name)


def test_null_keys_of_messages_are_not_rendered(loaded):
    """Columnar files give every message the keys that any has; a template would print them as None."""
    model, tokenizer = loaded
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    filled = [message | {"name": None, "tool_calls": None} for message in plain]
    rewards = rm.score(model, tokenizer, [{"messages": plain}, {"messages": filled}])
    assert rewards[0] == rewards[1]
    for message in ({"role": "assistant", "content": None}, {"role": "assistant"}, {"role": None, "content": "b"}):
        with pytest.raises(rm.DataError, match="input 0"):
            rm.score(model, tokenizer, [{"messages": [plain[0], message]}])


def test_half_characters_are_refused_by_row(loaded):
    model, tokenizer = loaded
    with pytest.raises(rm.DataError, match="input 1"):
        rm.score(model, tokenizer, ["a", "b \ud83d"])
