"""Trackers and progress: they get every line once, a resumed run goes on in them, and nothing in them ends a run."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import rm
from rm.__main__ import main
from rm.commands import trackers
from rm.commands.progress import Reporter
from rm.commands.trackers import guarded
from rm.commands.train import TrainArguments, train

pytestmark = [pytest.mark.optax, pytest.mark.long]
OPTIONS = {"batch_size": 4, "learning_rate": 1e-3, "max_steps": 8, "save_every": 2, "log_every": 1}
SECRET = "hf_abcdefgh12345678"

# Cuts a run off before update 6, once: from a second start on, everything is as it was.
CUT = """
import rm
batch_at = rm.BatchPlan.batch_at
def cut(plan, step, rows=slice(None)):
    if step == 5:
        raise RuntimeError("cut off")
    return batch_at(plan, step, rows)
"""


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs the package {package}")


@pytest.fixture(scope="module")
def arguments(llama_directory, pairs, tmp_path_factory) -> dict:
    """A run of eight updates, without its output."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return {"model": str(llama_directory), "dataset": (str(path),), **OPTIONS}


@pytest.fixture(scope="module")
def command(arguments) -> list[str]:
    """The same as a command."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in arguments.items()} | {
        "--dataset": arguments["dataset"][0]
    }
    return ["train", *(str(word) for pair in flags.items() for word in pair)]


@pytest.fixture(scope="module")
def untracked(command, tmp_path_factory) -> Path:
    """The run that nobody tracks."""
    output = tmp_path_factory.mktemp("runs") / "untracked"
    with jax.numpy_dtype_promotion("standard"):
        assert main([*command, "--output", str(output)]) == 0
    return output


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_weights(output: Path, other: Path) -> None:
    found, expected = (load_file(run / "model/model.safetensors") for run in (output, other))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def in_a_process(command: list[str], before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it, after some lines of Python; the environment has no login of anybody."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO", "HF_TOKEN"))}
    script = f"import sys\nfrom rm.__main__ import main\n{before}\nsys.exit(main({command!r}))"
    return subprocess.run(
        [sys.executable, "-c", script], env=kept | environment, capture_output=True, text=True, timeout=300
    )


def cut_and_resumed(command: list[str], output: Path, *flags: str, **environment: str) -> Path:
    """The run after it was cut off at update 6, and gone on with from the checkpoint of update 4."""
    command = [*command, "--output", str(output), "--resume", "auto", *flags]
    first = in_a_process(command, f"{CUT}\nrm.BatchPlan.batch_at = cut", **environment)
    assert "cut off" in first.stderr
    second = in_a_process(command, **environment)
    assert second.returncode == 0, second.stderr
    assert "training goes on without it" not in first.stderr + second.stderr
    return output


@pytest.mark.parametrize(("name", "shown"), [(None, "run"), ("first try", "first try")])
def test_a_run_is_named_after_its_output_or_by_a_flag(arguments, tmp_path, monkeypatch, name, shown):
    """Every run would be called `run` where each has a directory of its own above that."""
    named = {}

    def tracker(kind):
        @contextmanager
        def opened(project, about, **options):
            named[kind] = options["name"]
            yield lambda step, values: None

        return opened

    for kind in ("wandb", "trackio"):
        monkeypatch.setattr(trackers, f"{kind}_tracker", tracker(kind))
    opened = trackers.open_trackers(tmp_path / "run", {}, step=0, run_id="1a", name=name, wandb="p", trackio="p")
    for each in opened.values():
        with each:
            pass
    assert named == {"wandb": shown, "trackio": f"{shown}-1a"}
    args = TrainArguments(output=tmp_path / "run", run_name=name, **arguments)
    assert (args.run_name, "run_name" in args.decisive()) == (name, False)


def test_event_files_equal_the_metrics_also_of_a_resumed_run(command, tmp_path, untracked):
    """TensorBoard would show the steps between checkpoint and end twice, or others than metrics.jsonl."""
    needs("tensorboardX")
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard, of the extra `dev`"
    )
    evaluate = ["--eval-split", "train", "--eval-every", "4"]
    output = cut_and_resumed(command, tmp_path / "run", "--tensorboard", *evaluate)
    assert_same_weights(output, untracked)
    files = list((output / "tensorboard").iterdir())
    assert len(files) == 2
    events = reader.EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    expected: dict[str, dict[int, float]] = {}
    for line in metrics(output):
        for name in line.keys() - {"step"}:
            expected.setdefault(name, {})[line["step"]] = line[name]
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, values in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert dict(found) == pytest.approx(values, rel=1e-6), name
        assert len(found) == len(values) + (2 if name == "epoch" else 0), "an evaluation says the epoch, too"
    (shown, *_) = events.Tensors("arguments/text_summary")
    assert '"learning_rate": 0.001' in shown.tensor_proto.string_val[0].decode()


def test_wandb_offline_goes_on_in_the_same_run(command, tmp_path, untracked):
    """Every interruption would leave another run in the project."""
    needs("wandb")
    output = cut_and_resumed(command, tmp_path / "run", "--wandb", "project", WANDB_MODE="offline")
    assert_same_weights(output, untracked)
    run_id = json.loads((output / "run.json").read_text())["run_id"]
    runs = [path for path in (output / "wandb").iterdir() if path.name.startswith("offline-run-")]
    assert len(runs) == 2
    assert all((path / f"run-{run_id}.wandb").is_file() for path in runs)


# Logs three lines, waits for as long as an update of a small run takes, and is killed with all that it started.
KILLED = """
import os, signal, time
from pathlib import Path
from rm.commands.trackers import open_trackers
flags = {flags}
(tracker,) = open_trackers(Path({output!r}), {{}}, step=0, run_id="abc", quiet=True, **flags).values()
with tracker as track:
    for step in (1, 2, 3):
        track(step, {{"loss": step + 0.0625}})
    time.sleep(3)
    os.killpg(0, signal.SIGKILL)
"""


def killed(output: Path, flags: dict, **environment: str) -> None:
    """A process that logged three lines three seconds before it was killed."""
    output.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO", "HF_TOKEN"))}
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(flags=flags, output=str(output))],
        env=kept | environment,
        start_new_session=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_what_wandb_got_offline_survives_a_kill(tmp_path):
    """Of a run that the scheduler kills nothing could be synced: wandb 0.31 writes every 15 seconds by itself.

    It holds the last step back, because more may be logged of it.
    """
    wandb = pytest.importorskip("wandb", reason="needs the package wandb")
    if "x_transaction_log_flush_interval" not in wandb.Settings.model_fields:
        pytest.skip("this version of wandb cannot be told how often to write")
    killed(tmp_path / "run", {"wandb": "project"}, WANDB_MODE="offline")
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/run-abc.wandb")
    assert [text in file.read_bytes() for text in (b"1.0625", b"2.0625", b"3.0625")] == [True, True, False]


def test_what_tensorboard_got_survives_a_kill(tmp_path):
    """The curve of a run that the scheduler kills would end early."""
    needs("tensorboardX")
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard, of the extra `dev`"
    )
    killed(tmp_path / "run", {"tensorboard": True})
    events = reader.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0625), (2, 2.0625), (3, 3.0625)]


# Tracks a run whose event file may not grow: what a full disk does.
FULL = """
import resource
from pathlib import Path
from rm.commands.trackers import guarded, tensorboard_tracker
with guarded("tensorboard", tensorboard_tracker(Path({output!r}), {{}}), print) as track:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    for step in range(1000):
        track(step, {{"loss": 0.5}})
"""


def test_a_full_disk_costs_a_line(tmp_path):
    """The run would end, or wait for ever, because of a curve."""
    needs("tensorboardX")
    script = FULL.format(output=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"tensorboard failed \(OSError: .+\); training goes on without it\n", done.stdout)


def test_what_trackio_got_survives_a_kill(tmp_path):
    """The curve of a run that the scheduler kills would end early."""
    needs("trackio")
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    killed(tmp_path / "run", {"trackio": "project"}, **environment)
    with sqlite3.connect(tmp_path / "trackio/project.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(text)["loss"]) for step, text in rows] == [(1, 1.0625), (2, 2.0625), (3, 3.0625)]


def test_wandb_without_a_login_costs_a_line(command, tmp_path, untracked):
    """Days of training would wait for a password, or end for want of one."""
    needs("wandb")
    done = in_a_process([*command, "--output", str(tmp_path / "run"), "--wandb", "project"], HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rm: ")]
    assert len(said) == 1
    assert said[0].startswith("rm: wandb failed (UsageError: No API key configured")
    assert said[0].endswith("; training goes on without it")
    assert_same_weights(tmp_path / "run", untracked)


def test_trackio_goes_on_in_the_same_run_and_has_no_step_twice(command, tmp_path, untracked):
    needs("trackio")
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    output = cut_and_resumed(command, tmp_path / "run", "--trackio", "project", **environment)
    assert_same_weights(output, untracked)
    with sqlite3.connect(tmp_path / "trackio/project.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    run_id = json.loads((output / "run.json").read_text())["run_id"]
    assert [row[:2] for row in rows] == [(f"run-{run_id}", step) for step in range(1, 9)]
    losses = [json.loads(row[2])["loss"] for row in rows]
    assert losses == pytest.approx([line["loss"] for line in metrics(output)])


@pytest.mark.parametrize("where", ["beginning", "step", "end"])
def test_a_tracker_that_fails_anywhere_costs_a_line_and_no_bit(
    command, tmp_path, untracked, monkeypatch, capsys, where
):
    """A service that is down would end a run, or change it."""
    needs("tensorboardX")
    calls = []

    @contextmanager
    def broken(*_, **__):
        def track(step, values):
            calls.append(step)
            if where == "step" and step == 3:
                raise OSError(f"step 3 with {SECRET}\nand more")

        if where == "beginning":
            raise ValueError("no network")
        yield track
        if where == "end":
            raise SystemError

    monkeypatch.setattr("rm.commands.trackers.tensorboard_tracker", broken)
    assert main([*command, "--output", str(tmp_path / "run"), "--tensorboard"]) == 0
    reason = {"beginning": "ValueError: no network", "step": "OSError: step 3 with …", "end": "SystemError"}[where]
    assert capsys.readouterr().err == f"rm: tensorboard failed ({reason}); training goes on without it\n"
    assert calls == {"beginning": [], "step": [1, 2, 3], "end": list(range(1, 9))}[where]
    assert_same_weights(tmp_path / "run", untracked)


def test_a_failing_run_fails_with_its_own_error_and_ends_its_tracker():
    """What went wrong would be hidden behind what the tracker says of it, or the service would show it as running."""
    seen, said = [], []

    @contextmanager
    def tracker():
        try:
            yield lambda step, values: seen.append(step)
        except ZeroDivisionError:
            seen.append("failed")
            raise OSError("also this") from None

    def run():
        with guarded("mine", tracker(), said.append) as track:
            track(1, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert seen == [1, "failed"]
    assert said == ["mine failed (OSError: also this); training goes on without it"]


def test_a_reason_has_no_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    said = []

    def track(step, values):
        raise ConnectionError("refused: key 0123456789abcdef of https://me:password@host/")

    @contextmanager
    def tracker():
        yield track

    with guarded("wandb", tracker(), said.append) as track_safely:
        track_safely(1, {})
    assert len(said) == 1
    assert said[0].startswith("wandb failed (ConnectionError: refused: key … of https:/")
    assert "password" not in said[0]


def test_a_function_of_ones_own_gets_every_line_once(arguments, tmp_path, monkeypatch):
    """Lines of updates, evaluations and skipped updates, with what of them is a finite number."""
    batch_at, calls = rm.BatchPlan.batch_at, []

    def poisoned(plan, step, rows=slice(None)):
        batches = batch_at(plan, step, rows)
        for batch in batches if step + 1 == 3 else ():
            batch.margin[:] = np.nan
        return batches

    monkeypatch.setattr(rm.BatchPlan, "batch_at", poisoned)
    args = TrainArguments(**arguments, output=tmp_path / "run", eval_split="train", eval_every=4, quiet=True)
    assert train(args, track=lambda step, values: calls.append((step, dict(values)))) == 0
    expected = []
    for line in metrics(tmp_path / "run"):
        names = ["epoch", "skipped"] if "rows" in line else [name for name in line if name != "step"]
        expected.append((line["step"], {name: line[name] for name in names if line[name] is not None}))
    assert calls == expected
    assert [step for step, _ in calls] == [1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 8]


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_missing_package_is_said_before_anything_is_read(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("rm.commands.trackers.importlib.util.find_spec", lambda _: None)
    flag = [f"--{name}"] if name == "tensorboard" else [f"--{name}", "project"]
    assert (
        main(["train", "--model", "./none", "--dataset", "none.jsonl", "--output", str(tmp_path / "run"), *flag]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(f"rm: --{name} needs the package ")
    assert error.endswith(f"python -m pip install 'rm-jax[{name}]'\n")
    assert not (tmp_path / "run").exists()


def test_quiet_says_nothing_and_warns_on_stderr(command, tmp_path, monkeypatch, capsys):
    flags = [
        "--quiet",
        "--eval-split",
        "train",
        "--save-every",
        "4",
        *(["--tensorboard"] * bool(find_spec("tensorboardX"))),
    ]
    assert main([*command, "--output", str(tmp_path / "run"), *flags]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*command, "--output", str(tmp_path / "run"), *flags, "--resume", "auto"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("rm.commands.log._FEWEST_NORMS", 2)
    flags += ["--skip-spikes", "1e-3", "--max-skipped", "2"]
    assert main([*command, "--output", str(tmp_path / "spikes"), *flags]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in error.splitlines()] == ["rm"] * 3
    assert "step 4/8  skipped: loss" in error


def report(steps: int) -> None:
    """What a run reports of two updates."""
    with Reporter(steps) as reporter:
        for step in (1, 2):
            reporter.step(step, {"loss": 0.5, "accuracy": 0.75})
            entry = {"loss": 0.5, "accuracy": 0.75, "margin": 1.0, "pairs_per_second": 12.34}
            reporter.line({"step": step, **entry})
        reporter.step(2, {"loss": 0.5, "accuracy": 0.75})


def test_elsewhere_progress_is_plain_lines(capsys):
    report(2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("first loss 0.5000")
    assert lines[2].startswith("step 2/2  loss 0.5000  accuracy 0.750  margin 1.000  12.3 pairs/s  ")
    assert len(lines) == 3


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    report(2)
    *_, last = capsys.readouterr().out.split("\r")
    assert re.fullmatch(
        r"training: 100%\|█+\| 2/2 \[00:0\d<00:00, loss 0.5000, accuracy 0.750, 12.3 pairs/s, .*\n", last
    )
    assert "step 2/2" not in last


def test_a_notebook_shows_a_bar_without_widgets(tmp_path):
    """Progress would be a warning that ipywidgets are missing."""
    why = "needs the extra `notebooks`"
    nbformat, nbclient = (pytest.importorskip(name, reason=why) for name in ("nbformat", "nbclient"))
    code = "from tests.test_trackers import report\nreport(2)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(Path(__file__).parents[1])}}).execute()
    shown = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert "2/2" in shown.split("\r")[-1]
    assert "12.3 pairs/s" in shown.split("\r")[-1]
    assert "ipywidgets" not in json.dumps(notebook.cells[0].outputs)
