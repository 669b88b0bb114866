"""`python -m rm score`: rows are scored and written part by part, and what is killed goes on where it was."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import rm
from rm.commands.score import ScoreArguments
from rm.data.inputs import encode_inputs
from rm.errors import ConfigError, OutputError
from rm.files.partial import partial_file
from rm.text.tokenizer import Tokenizer

command = importlib.import_module("rm.commands.score")
inputs_module = importlib.import_module("rm.data.inputs")


def write(path, content, *, resume=True, max_length=8):
    with partial_file(path, resume=resume) as file:
        file.agree({"--max-length": max_length})
        for n, text in enumerate(content, 1):
            file.append(text, {"rows": n})


def interrupted(path):
    """What is left of a file that was interrupted after its first part."""

    def parts():
        yield "one\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, parts())
    return path.with_name(f"{path.name}.partial")


def test_a_file_that_was_cut_short_goes_on_after_its_last_whole_part(tmp_path):
    """A half line would stay in the middle of the file, or a part be there twice."""
    path = tmp_path / "scores.jsonl"
    draft = interrupted(path)
    with draft.open("a") as other:
        other.write("tw")  # the process was killed while it wrote
    assert sorted(each.name for each in tmp_path.iterdir()) == ["scores.jsonl.partial", "scores.jsonl.partial.json"]
    with pytest.raises(OutputError, match=r"partial: holds a part of it already; go on with --resume auto"):
        write(path, [], resume=False)
    with pytest.raises(ConfigError, match=r"was begun with --max-length 8, found 9; go on with the same, or remove"):
        write(path, [], max_length=9)
    with partial_file(path, resume=True) as file:
        assert file.notes == {"rows": 1}
        file.append("two\n", {"rows": 2})
    assert path.read_text() == "one\ntwo\n"
    assert [each.name for each in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_part_that_is_gone_is_not_gone_over(tmp_path):
    """The output would have a hole of zeros."""
    path = tmp_path / "scores.jsonl"
    interrupted(path).write_text("o")
    with pytest.raises(OutputError, match=r"partial: expected at least 4 bytes; remove it and .*partial\.json"):
        write(path, [])


def test_two_processes_do_not_write_one_file(tmp_path):
    with partial_file(tmp_path / "scores.jsonl", resume=True) as file:
        with pytest.raises(OutputError, match=r"scores\.jsonl: another process writes it"):
            write(tmp_path / "scores.jsonl", [])
        file.append("one\n", {})


@pytest.fixture
def scored(tmp_path, loaded, monkeypatch):
    """Scores forty rows, about six at a time; gives the function, the rows and how many each part had."""
    model, tokenizer = loaded
    rm.save_reward_model(tmp_path / "model", model, tokenizer)
    rows = [{"text": "The old tree of rome. " * (n % 7 + 1), "é": n} for n in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(command, "_PART", 150)
    parts, stop = [], []
    usual = command.score_sequences

    def score_sequences(model, sequences, **options):
        if len(parts) in stop:
            raise MemoryError
        parts.append(len(sequences))
        return usual(model, sequences, **options)

    monkeypatch.setattr(command, "score_sequences", score_sequences)

    def score(name, *, stop_after=None, **options):
        parts.clear()
        stop[:] = [] if stop_after is None else [stop_after]
        paths = {"model": str(tmp_path / "model"), "input": tmp_path / "in.jsonl", "output": tmp_path / name}
        command.score(ScoreArguments(**paths, **options))
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    return score, rows, parts


@pytest.mark.long
@pytest.mark.gate
def test_a_run_that_is_interrupted_goes_on_and_ends_in_the_same_bytes(scored, tmp_path, loaded, capsys):
    """Hours of scoring would be lost, a row be missing or twice, or a reward depend on the interruption."""
    score, rows, parts = scored
    whole = score("whole.jsonl")
    assert len(parts) > 3
    assert [{**row, "reward": 0} for row in whole] == [{**row, "reward": 0} for row in rows]
    alone = rm.score(*loaded, [row["text"] for row in rows])
    np.testing.assert_allclose([row["reward"] for row in whole], alone, atol=1e-5)
    first = list(parts)

    with pytest.raises(MemoryError):
        score("cut.jsonl", stop_after=2)
    assert not (tmp_path / "cut.jsonl").exists()
    kept = (tmp_path / "cut.jsonl.partial").read_text()
    assert kept.count("\n") == sum(first[:2])
    assert (tmp_path / "whole.jsonl").read_text().startswith(kept)
    with pytest.raises(OutputError, match="go on with --resume auto"):
        score("cut.jsonl")
    with pytest.raises(ConfigError, match="was begun with --max-length None, found 9"):
        score("cut.jsonl", resume="auto", max_length=9)
    capsys.readouterr()
    score("cut.jsonl", resume="auto")
    assert parts == first[2:]
    assert capsys.readouterr().out.splitlines() == [f"goes on after {sum(first[:2])} of 40 rows", "40 rows scored"]
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_input_or_another_model_is_not_gone_on_with(scored, tmp_path, loaded):
    """The file would hold rewards of two models, or of rows that are not there."""
    score, rows, _ = scored
    with pytest.raises(MemoryError):
        score("cut.jsonl", stop_after=1)
    other = rm.init_reward_model(loaded[0].config, key=jax.random.key(7))
    rm.save_reward_model(tmp_path / "other", other, loaded[1])
    (tmp_path / "model").rename(tmp_path / "before")
    (tmp_path / "other").rename(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"was begun with weights \w{16}, found \w{16}; go on with the same"):
        score("cut.jsonl", resume="auto")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(ConfigError, match=r"was begun with an input of hash \w{16}, found \w{16}"):
        score("cut.jsonl", resume="auto")


def test_the_tokenizer_gets_a_slice_at_a_time(loaded, monkeypatch):
    """What it makes of a text takes a hundred times its memory."""
    model, tokenizer = loaded
    taken, usual = [], Tokenizer.encode_batch

    def encode_batch(self, texts, **options):
        taken.append(sum(map(len, texts)))
        return usual(self, texts, **options)

    monkeypatch.setattr(inputs_module, "_SLICE", 1000)
    monkeypatch.setattr(Tokenizer, "encode_batch", encode_batch)
    texts = ["The old tree of rome. " * (n % 9 + 1) for n in range(100)]
    found = list(encode_inputs(texts, tokenizer, model.config, names=texts))
    assert max(taken) <= 1000 + max(map(len, texts))
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
    assert [ids.tolist() for ids in found] == usual(tokenizer, texts)

    taken.clear()
    (ids,) = encode_inputs(["The old tree of rome. " * 10_000], tokenizer, model.config, names="x", max_length=20)
    assert len(ids) > 40
    assert sum(taken) < 10_000


def test_what_is_not_tokenized_changes_nothing(loaded):
    """A text would be cut off elsewhere, or refused that has no more tokens than are allowed."""
    model, tokenizer = loaded
    rng = np.random.default_rng(0)
    words = ["The", " old", " tree", "<|end|>", "<|pad|>", "\n", "  ", "é", "🌳", "0123456789", "a" * 40]
    texts = ["".join(rng.choice(words, rng.integers(1, 300))) for _ in range(200)]
    whole = tokenizer.encode_batch(texts)
    for most in (1, 3, 8, 50):
        found = encode_inputs(texts, tokenizer, model.config, names=texts, max_length=most)
        for ids, expected in zip(found, whole, strict=True):
            assert ids[:most].tolist() == expected[:most]
            assert (len(ids) > most) == (len(expected) > most)


def test_a_row_that_cannot_be_scored_shows_before_the_first_is(scored, tmp_path):
    """It would be found after hours."""
    score, rows, parts = scored
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"txt": "a"}]))
    with pytest.raises(rm.RmError, match=r"in\.jsonl: line 41: expected text, prompt and response"):
        score("out.jsonl")
    assert parts == []
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "model"}


def test_a_pipe_is_refused(tmp_path):
    """It can be read once."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(rm.RmError, match="is a pipe, and rows are read more than once"):
        command.score(ScoreArguments(model="none", input=tmp_path / "pipe", output=tmp_path / "out.jsonl"))


@pytest.mark.long
@pytest.mark.gate
def test_a_run_that_is_killed_goes_on(tmp_path, loaded):
    """The real command, killed when it has written something."""
    rm.save_reward_model(tmp_path / "model", *loaded)
    rows = [{"text": "The old tree of rome. " * (n % 7 + 1)} for n in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = textwrap.dedent("""
        import importlib, sys
        from rm.__main__ import main
        from rm.files.partial import PartialFile
        importlib.import_module("rm.commands.score")._PART = 150
        usual = PartialFile.append
        PartialFile.append = lambda *given: (usual(*given), print("written", flush=True), sys.stdin.readline())
        sys.exit(main(sys.argv[1:]))
    """)
    paths = ["--model", tmp_path / "model", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    argv = [sys.executable, "-c", script, "score", *map(str, paths), "--resume", "auto"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert (process.stdout.readline(), process.stdin.write("\n"), process.stdin.flush()) == ("written\n", 1, None)
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    had = (tmp_path / "out.jsonl.partial").read_text()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"goes on after {had.count(chr(10))} of 60 rows")
    text = (tmp_path / "out.jsonl").read_text()
    assert text.startswith(had)
    scored = [json.loads(line) for line in text.splitlines()]
    assert [row["text"] for row in scored] == [row["text"] for row in rows]
    alone = rm.score(*loaded, [row["text"] for row in rows])
    np.testing.assert_allclose([row["reward"] for row in scored], alone, atol=1e-5)


@pytest.mark.long
def test_the_benchmark_of_what_grows_runs(llama_directory, pairs_file):
    root = Path(rm.__file__).parents[1]
    command = [sys.executable, root / "benchmarks/growth.py", "--before", root, "--model", llama_directory]
    command += ["--pairs", pairs_file, "--texts", "200", "--only", "score"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert re.findall(r"^score (\w+) grown_mb -?\d+\.\d+ bytes_a_token ", done.stdout, re.MULTILINE) == [
        "before",
        "now",
    ]
