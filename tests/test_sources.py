"""Where rows come from: files, saved directories and their splits."""

import gzip
import json

import datasets
import pytest

import rm

ROWS = [{"prompt": f"{i}?", "chosen": "NA" if i == 3 else f"{i}", "rejected": "None"} for i in range(10)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in, or read from, the cache of the person who runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, name: str):
    """The rows in the format that the name asks for."""
    dataset, file = datasets.Dataset.from_list(ROWS), path / name
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if name.endswith((".jsonl", ".gz")):
        file.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    elif name == "document.json":
        file.write_text(json.dumps(ROWS))
    elif name == "pairs.parquet":
        dataset.to_parquet(file)
    elif name == "pairs.csv":
        dataset.to_csv(file, index=False)
    elif name == "saved":
        dataset.save_to_disk(str(file))
    else:
        datasets.DatasetDict({"train": dataset, "test": dataset.select([7, 8])}).save_to_disk(str(file))
    return file


FORMATS = ["pairs.jsonl", "pairs.jsonl.gz", "document.json", "pairs.parquet", "pairs.csv", "saved", "saved_dict"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts(tmp_path, name):
    """No number, date or missing value may be guessed from a text such as 4, NA or None."""
    assert rm.load_comparisons(write(tmp_path, name)).to_list() == ROWS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("split", "kept"), [("train[:20%]", ROWS[:2]), ("train[8:]", ROWS[8:]), ("train[-1:]", ROWS[9:])]
)
def test_slices_of_a_split(tmp_path, name, split, kept):
    """A split that was ignored would evaluate on the training data."""
    assert rm.load_comparisons(write(tmp_path, name), split=split).to_list() == kept


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
