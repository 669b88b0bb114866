"""The data path from the command line: what `data` shows is what `train` reads."""

import json
from pathlib import Path

import pytest

import rm
from rm.__main__ import main

from .test_commands import lines, run  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.optax, pytest.mark.long]

DATED = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(letter: str, count: int) -> list[dict]:
    return [{"prompt": f"{letter}{i}? ", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def table_of(output: Path, name: str = "train") -> dict:
    return json.loads((output / "run.json").read_text())["data"][name]


def test_data_prints_the_table_and_the_packing_that_train_prints(run, pairs_file, llama_directory, capsys):  # noqa: F811
    run("run", "--max-steps", "1")
    trained = capsys.readouterr().out
    files = ["--model", str(llama_directory), "--dataset", str(pairs_file)]
    assert main(["data", *files, "--batch-size", "4"]) == 0
    shown = capsys.readouterr().out
    described = [line for line in shown.split("comparison 0")[0].splitlines() if line.startswith("  ")]
    assert len(described) >= 8
    assert [line for line in described if line not in trained.splitlines()] == []
    assert f"{table_of(pairs_file.parent / 'run')['kept']} kept" in shown


def test_data_shows_comparisons_as_the_model_sees_them(tmp_path, llama_directory, capsys):
    """Special tokens in plain sight, the prefix once, the reward after the last token."""
    rows = [{"prompt": "Old ", "chosen": "tree", "rejected": "house", "margin": 0.5}]
    file = write(tmp_path / "pairs.jsonl", rows)
    assert main(["data", "--model", str(llama_directory), "--dataset", str(file), "--show", "5"]) == 0
    shown = capsys.readouterr().out
    tokenizer = rm.load_tokenizer(llama_directory)
    chosen, rejected = (tokenizer.encode(f"Old {word}<|end|>") for word in ("tree", "house"))
    prefix = [a == b for a, b in zip(chosen, rejected, strict=False)].index(False)
    assert shown[shown.index("comparison 0") :].splitlines() == [
        "comparison 0, margin 0.5",
        f"  prefix, {prefix} tokens",
        "    │ Old",
        f"  chosen, {len(chosen) - prefix} tokens of its own",
        "    │  tree<|end|>⟨reward⟩",
        f"  rejected, {len(rejected) - prefix} tokens of its own",
        "    │  house<|end|>⟨reward⟩",
    ]


def test_data_needs_no_weights_and_writes_nothing(tmp_path, llama_directory, pairs_file):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((llama_directory / name).read_bytes())
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "--model", str(model), "--dataset", str(pairs_file)]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_data_sets_are_mixed_in_the_ratio_of_their_weights(tmp_path, run):  # noqa: F811
    one, other = write(tmp_path / "one.jsonl", numbered("a", 30)), write(tmp_path / "other.jsonl", numbered("b", 9))
    output = run("run", "--max-steps", "1", "--dataset", f"{one}=0.75", f"{other}=0.25")
    assert [table_of(output, f"train_{name}")["taken"] for name in ("one", "other")] == [27, 9]
    output = run("all", "--max-steps", "1", "--dataset", str(one), str(other))
    assert [table_of(output, f"train_{name}")["taken"] for name in ("one", "other")] == [30, 9]


@pytest.mark.gate
def test_streaming_reads_what_the_updates_need_and_resumes(tmp_path, run):  # noqa: F811
    file = write(tmp_path / "many.jsonl", numbered("a", 5000))
    flags = ["--streaming", "--max-steps", "4", "--save-every", "2", "--dataset", str(file)]
    output = run("run", *flags)
    table = table_of(output)
    assert table["kept"] == 4 * 4
    assert table["read"] == table["kept"] + table["dropped"]["not_needed"] < 5000
    whole = lines(output / "metrics.jsonl")
    for path in (output / "model").iterdir():
        path.unlink()
    (output / "model").rmdir()
    (output / "checkpoints/4").rename(tmp_path / "4")
    run("run", *flags, "--resume", "auto")
    again = lines(output / "metrics.jsonl")
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in whole]


@pytest.mark.gate
def test_the_template_and_its_date_go_from_training_to_scoring(tmp_path, run, llama_directory):  # noqa: F811
    chats = [{"role": "user", "content": "tree?"}], [{"role": "assistant", "content": "old"}]
    rows = [{"prompt": chats[0], "chosen": chats[1], "rejected": [{"role": "assistant", "content": "red"}]}] * 4
    template = tmp_path / "dated.jinja"
    template.write_text(DATED)
    flags = ["--dataset", str(write(tmp_path / "chats.jsonl", rows)), "--max-steps", "1"]
    output = run("run", *flags, "--chat-template", str(template), "--chat-template-date", "2025-03-04")
    written = DATED.replace("strftime_now('%d %b %Y')", "'04 Mar 2025'")  # the same text everywhere, on any day
    assert (output / "model/chat_template.jinja").read_text() == written
    assert json.loads((output / "model/rm.json").read_text())["chat_template_date"] == "2025-03-04"
    text = "04 Mar 2025<|user|>tree?<|assistant|>old"
    tokenizer = rm.load_tokenizer(output / "model")
    assert tokenizer.apply_chat_template([*chats[0], *chats[1]]) == text
    model = rm.load_reward_model(output / "model")
    one, other = rm.score(model, tokenizer, [text, {"messages": [*chats[0], *chats[1]]}])
    assert one == other
    again = run("again", *flags, "--model", str(output / "model"))
    assert json.loads((again / "model/rm.json").read_text())["chat_template_date"] == "2025-03-04"


def test_the_last_short_update_is_left_out_on_request(run, pairs_file, llama_directory, capsys):  # noqa: F811
    assert len(lines(run("kept", "--batch-size", "5") / "metrics.jsonl")) == 3
    assert len(lines(run("left", "--batch-size", "5", "--drop-last") / "metrics.jsonl")) == 2
    fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--batch-size", "13", "--drop-last"]
    for command in (["data"], ["train", "--output", str(pairs_file.parent / "none")]):
        assert main([*command, *fixed]) == 2
        assert "--drop-last leaves no update: 12 comparisons, --batch-size 13" in capsys.readouterr().err
