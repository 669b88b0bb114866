"""How commands end where nobody reads what they print, and where the disk is full."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rm
from rm.__main__ import main
from rm.commands import pipes
from rm.errors import system_reason

from .conftest import AS_USERS

pytestmark = pytest.mark.optax
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
REASON = "No space left on device"


@pytest.fixture
def exported(tmp_path, loaded) -> Path:
    """A reward model on disk."""
    rm.save_reward_model(tmp_path / "model", *loaded)
    return tmp_path / "model"


# Readers that have gone.


def unread(*argv: str, lines: int = 0) -> tuple[int, str, str]:
    """Runs a command and reads some lines of its output, then none: exit code, what was read, what stands on stderr."""
    command = [sys.executable, "-u", "-m", "rm", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=AS_USERS, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        read = "".join(process.stdout.readline() for _ in range(lines))
        process.stdout.close()
        return process.wait(timeout=300), read, process.stderr.read()


def test_what_only_prints_ends_quietly(llama_directory, pairs_file):
    """`python -m rm data … | head -1`: a traceback would end it, twice."""
    argv = ["data", "--model", str(llama_directory), "--dataset", str(pairs_file), "--show", "12"]
    code, read, errors = unread(*argv, lines=1)
    assert (code, read, errors) == (141, f"{pairs_file}:\n", "")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["train", "--help-all"],
        pytest.param(["plan", "--model", "llama-1b", "--topology", "cpu:1"], marks=pytest.mark.long),
    ],
    ids=lambda argv: argv[0],
)
def test_so_do_help_version_and_plan(argv):
    assert unread(*argv)[::2] == (141, "")


@pytest.mark.long
def test_a_plan_is_written_before_it_is_shown(tmp_path):
    """The file that was asked for would be missing because nobody read the rest."""
    argv = ["--model", "llama-1b", "--topology", "cpu:1", "--batch-size", "1", "--max-length", "128"]
    assert unread("plan", *argv, "--json", str(tmp_path / "plan.json"))[::2] == (141, "")
    assert json.loads((tmp_path / "plan.json").read_text())["topology"] == "cpu:1"


@pytest.mark.long
@pytest.mark.gate
def test_a_run_goes_on_to_its_end(tmp_path, llama_directory, pairs_file):
    """Hours of training would be lost with a pipe."""
    fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--output", str(tmp_path / "run")]
    code, read, errors = unread("train", *fixed, "--max-steps", "3", "--batch-size", "4", "--log-every", "1", lines=1)
    assert (code, read, errors) == (0, f"train ({pairs_file}):\n", "")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    assert rm.load_reward_model(tmp_path / "run/model")


@pytest.mark.long
def test_so_do_score_and_evaluate(tmp_path, exported, pairs_file):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    argv = ["--model", str(exported), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert unread("score", *argv) == (0, "", "")
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["a", "b"]
    argv = ["--model", str(exported), "--dataset", str(pairs_file), "--output", str(tmp_path / "evaluation")]
    assert unread("evaluate", *argv) == (0, "", "")
    assert json.loads((tmp_path / "evaluation/evaluation.json").read_text())["read"] == 12


def test_an_error_is_still_one_where_nobody_reads(tmp_path):
    """`2>&1 | true`: both are gone, and the exit code is all that is left."""
    command = [sys.executable, "-m", "rm", "data", "--model", "nowhere/x/y", "--dataset", "z"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=300) == 2


def test_output_that_was_closed_before_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pipes.outliving_readers(ends=True):
        print("nobody hears this")


# Disks that are full.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Error writing …: Failed to write 7 bytes to file 6: No space … [os_error_code='28']", REASON),  # TensorStore
        ("Error while serializing: I/O error: No space left on device (os error 28)", REASON),  # safetensors
        ("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device", REASON),  # Arrow
        ("something else\nentirely", "something else"),
    ],
)
def test_the_reason_of_the_system_is_found_in_what_libraries_say(text, reason):
    """It stands at the end of lines that are cut off before."""
    assert system_reason(ValueError(text)) == reason
    assert system_reason(FULL) == REASON


class Full:
    """A file that takes nothing; all else is that of the real one."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def write(self, _):
        raise FULL

    def writelines(self, _):
        raise FULL


@pytest.fixture
def full(monkeypatch):
    """Fills the disk for files whose name has some text in it."""

    def fill(name: str) -> None:
        real = Path.open

        def opened(self, mode="r", *args, **options):
            file = real(self, mode, *args, **options)
            return Full(file) if name in self.name and set(mode) & set("wa+") else file

        monkeypatch.setattr(Path, "open", opened)

    return fill


def tree(path: Path) -> dict[str, int]:
    return {str(each.relative_to(path)): each.stat().st_size for each in path.rglob("*") if each.is_file()}


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_the_log_and_the_record_of_a_run(tmp_path, llama_directory, pairs_file, full, capsys, name):
    full(name)
    fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--output", str(tmp_path / "run")]
    assert main(["train", *fixed, "--max-steps", "2", "--batch-size", "4", "--quiet", "--log-every", "1"]) == 2
    assert capsys.readouterr().err == f"rm: {tmp_path}/run/{name}: cannot be written ({REASON})\n"
    assert not (tmp_path / "run/model").exists()
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_the_scores_of_rows(tmp_path, exported, full, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    argv = ["--model", str(exported), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    full("out.jsonl.partial")
    assert main(["score", *argv]) == 2
    assert capsys.readouterr().err == f"rm: {tmp_path}/out.jsonl.partial: cannot be written ({REASON})\n"
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("name", ["scores.jsonl", "report.html", "evaluation.json", "run.json"])
def test_the_files_of_an_evaluation(tmp_path, exported, pairs_file, full, capsys, name):
    """What was scored before stays, and --resume auto goes on there."""
    out = tmp_path / "evaluation"
    argv = ["evaluate", "--model", str(exported), "--dataset", str(pairs_file), "--output", str(out)]
    full(name)
    assert main(argv) == 2
    assert capsys.readouterr().err == f"rm: {out}/{name}: cannot be written ({REASON})\n"
    assert tree(out).get(name, 0) == 0


def test_the_json_of_a_plan(tmp_path, full, capsys):
    full("plan.json")
    argv = ["--model", "llama-1b", "--topology", "cpu:1", "--batch-size", "1", "--max-length", "128"]
    assert main(["plan", *argv, "--json", str(tmp_path / "plan.json")]) == 2
    assert capsys.readouterr().err == f"rm: {tmp_path}/plan.json: cannot be written ({REASON})\n"
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("where", ["weights", "files"])
def test_an_export_leaves_nothing_behind(tmp_path, loaded, monkeypatch, where):
    from safetensors import SafetensorError

    def fail(*_, **__):
        raise (
            SafetensorError(f"Error while serializing: I/O error: {REASON} (os error 28)")
            if where == "weights"
            else FULL
        )

    monkeypatch.setattr(*(("safetensors.numpy.save_file",) if where == "weights" else (Path, "write_bytes")), fail)
    with pytest.raises(rm.OutputError) as error:
        rm.save_reward_model(tmp_path / "model", *loaded)
    assert str(error.value) == f"{tmp_path}/model: cannot be written ({REASON})"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_full_is_said_and_does_not_matter(tmp_path, loaded, pairs_file, monkeypatch, full, caplog):
    """The rows would be tokenized again every time, and nobody would know why."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = rm.load_comparisons(pairs_file)
    full("tokens.bin")
    model, tokenizer = loaded
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config, source="pairs")
    assert len(comparisons) == 12
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}/cache/rm-tokenized/")
    assert line.endswith(f": cannot be written ({REASON}): these rows are tokenized again next time")
    assert not list((tmp_path / "cache/rm-tokenized").iterdir())


def limited(size: int, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command none of whose files may have more bytes: as on a full disk, every write fails, in libraries as well."""
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); from rm import __main__"
    )
    script += "; __main__.quiet_libraries(); sys.exit(__main__.main(sys.argv[1:]))"
    env = AS_USERS | {"JAX_ENABLE_COMPILATION_CACHE": "false"} | environment
    command = [sys.executable, "-c", script, *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.long
@pytest.mark.parametrize("where", [pytest.param("checkpoint", marks=pytest.mark.gate), "export"])
def test_a_run_whose_files_may_not_grow(tmp_path, llama_directory, pairs_file, where):
    """The real writers of arrays: Orbax and safetensors, whose errors have the reason at their end."""
    out = tmp_path / "run"
    fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--output", str(out), "--quiet"]
    done = limited(200_000, "train", *fixed, "--max-steps", "2", *["--save-final-only"] * (where == "export"))
    said = f"{out}/model: " if where == "export" else f"{out}/checkpoints: a checkpoint "
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"rm: {said}cannot be written (File too large)")
    assert done.stderr.count("\n") == 1
    assert not (out / "model").exists()
    assert not list(out.glob(".model*"))


@pytest.mark.parametrize("command", ["data", "score"])
def test_rows_that_find_no_room(tmp_path, exported, pairs_file, command):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 100)
    argv = {
        "data": ["--dataset", str(pairs_file)],
        "score": ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")],
    }[command]
    done = limited(500, command, "--model", str(exported), *argv, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("cannot be written (File too large)\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
