"""Runs that are stopped, killed, crowded out or fed rubbish: nothing is lost, and they end as if nothing had been."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rm
from rm.__main__ import main
from rm.commands.log import Reporter, TrainingLog
from rm.files.output import locked
from rm.training.step import Sums

OPTIONS = ["--batch-size", "4", "--learning-rate", "1e-3", "--max-steps", "8", "--save-every", "2", "--log-every", "3"]
pytestmark = [pytest.mark.optax, pytest.mark.long]
TIMES = ("pairs_per_second", "tokens_per_second")


@pytest.fixture(scope="module")
def pairs_file(pairs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def command(llama_directory, pairs_file) -> list[str]:
    """A run of eight updates, without its --output."""
    return ["train", "--model", str(llama_directory), "--dataset", str(pairs_file), *OPTIONS]


def start(command: list[str], output: Path, before: str = "", **options) -> subprocess.Popen:
    """The command in a process of its own, after some lines of Python."""
    arguments = [*command, "--output", str(output), "--resume", "auto"]
    begin = "import sys, rm\nfrom rm.__main__ import main, quiet_libraries\nquiet_libraries()"
    script = f"{begin}\n{before}\nsys.exit(main({arguments!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code, and what was said on stderr."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def metrics(output: Path) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def weights(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "model/model.safetensors")


def checkpoints(output: Path) -> list[int]:
    return sorted(int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit())


def assert_same(output: Path, other: Path) -> None:
    assert metrics(output) == metrics(other)
    found, expected = weights(output), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_dtype_promotion("standard"):
        assert main([*command, "--output", str(output)]) == 0
    return output


# Slows updates down and says on stdout which one begins, so that signals can be timed.
SLOW = """
import time
batch_at = rm.BatchPlan.batch_at
def slow(plan, step, rows=slice(None)):
    time.sleep(0.3)
    print("batch", step, flush=True)
    return batch_at(plan, step, rows)
rm.BatchPlan.batch_at = slow
"""


def wait_for(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:  # pyright: ignore[reportOptionalIterable]
        if text in line:
            return
    pytest.fail(f"{text!r} never came: {process.communicate()}")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.gate), signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(command, tmp_path, whole, number):
    """A machine that is taken away would cost the updates since the last checkpoint."""
    output = tmp_path / "stopped"
    process = start(command, output, SLOW)
    wait_for(process, "batch 4")
    process.send_signal(number)
    code, errors = end(process)
    assert code == 128 + number
    assert errors == f"rm: {number.name}: saving a checkpoint after this update; once more ends at once\n"
    assert not (output / "model").exists()
    assert checkpoints(output)[-1] in range(2, 8)
    assert main([*command, "--output", str(output), "--resume", "auto"]) == 0
    assert_same(output, whole)


def test_a_second_signal_ends_at_once_and_loses_no_checkpoint(command, tmp_path, whole):
    """Also in the middle of a save, which here takes a minute."""
    output = tmp_path / "stopped"
    never = "rm.Checkpoints.wait = rm.Checkpoints.close = "
    process = start(command, output, f"{SLOW}{never}lambda self: time.sleep(60)")
    wait_for(process, "batch 5")
    process.terminate()
    time.sleep(2)
    began = time.monotonic()
    process.terminate()
    assert end(process)[0] == 143
    assert time.monotonic() - began < 30
    assert main([*command, "--output", str(output), "--resume", "auto"]) == 0
    assert_same(output, whole)


@pytest.mark.parametrize("options", [[], ["--matrix", "--steps", "4", "--kills", "2"]], ids=["alone", "matrix"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path, llama_directory, pairs_file, options
):
    """The short form of benchmarks/kill.py, whose hundred kills are in the log; also on another mesh at every start."""
    script = Path(__file__).parents[1] / "benchmarks/kill.py"
    flags = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--kills", "4", "--scratch", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *flags, *options], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run equals the one that nobody disturbed" in done.stdout


def test_the_same_command_on_a_finished_run_says_so(command, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert main([*command, "--output", str(whole), "--resume", "auto"]) == 0
    assert capsys.readouterr().out.startswith("the run is over: the reward model is in ")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--model", "./none"], "the run has --model .*, found ./none; resume with the same"),
        (["--learning-rate", "1e-2"], "the run has --learning-rate 0.001, found 0.01; resume with the same"),
        (["--dataset", "{own}"], "the run has --dataset .*; resume with the same"),
    ],
)
def test_a_finished_run_is_resumed_with_what_made_it_or_not_at_all(command, whole, tmp_path, capsys, flags, error):
    """Another model or other data would be said to be trained already, with exit code 0."""
    flags = [flag.format(own=tmp_path / "own.jsonl") for flag in flags]
    assert main([*command, *flags, "--output", str(whole), "--resume", "auto"]) == 2
    assert re.fullmatch(f"rm: {whole}: {error}\n", capsys.readouterr().err)


def test_a_finished_run_whose_data_or_model_have_changed_since_is_not_over(command, tmp_path, pairs_file, capsys):
    """The same names with something else behind them would be said to be trained already."""
    own, llama = tmp_path / "own.jsonl", tmp_path / "llama"
    shutil.copyfile(pairs_file, own)
    shutil.copytree(command[command.index("--model") + 1], llama)
    place = {str(pairs_file): str(own), command[command.index("--model") + 1]: str(llama)}
    command = [place.get(argument, argument) for argument in [*command, "--output", str(tmp_path / "run")]]
    assert main(command) == 0
    own.write_text("".join(own.read_text().splitlines(keepends=True)[:6]))
    capsys.readouterr()
    assert main([*command, "--resume", "auto"]) == 2
    assert re.fullmatch(
        r"rm: .*/run: the run began with data of hash [0-9a-f]+, found [0-9a-f]+; .*\n", capsys.readouterr().err
    )
    shutil.copyfile(pairs_file, own)
    assert main([*command, "--resume", "auto"]) == 0
    assert capsys.readouterr().out.startswith("the run is over: ")
    shutil.rmtree(llama)
    assert main([*command, "--resume", "auto"]) == 2
    assert f"{llama}" in capsys.readouterr().err


def go_on(command: list[str], output: Path, *flags: str) -> int:
    return main([*command, "--output", str(output), "--resume", "auto", *flags])


@pytest.mark.gate
def test_a_finished_run_goes_on_longer(command, tmp_path, capsys):
    """In the bits of a run that was as long from the start, where the learning rate is constant."""
    constant = [*command, "--schedule", "constant"]
    assert main([*constant, "--output", str(tmp_path / "whole")]) == 0
    assert main([*constant, "--output", str(tmp_path / "run"), "--max-steps", "4"]) == 0
    short = weights(tmp_path / "run")
    capsys.readouterr()
    assert go_on(constant, tmp_path / "run", "--eval-split", "train", "--keep", "1") == 0
    said = capsys.readouterr().out
    assert f"the model so far is now {tmp_path / 'run/model-4'}\n8 updates in place of 4\n" in said
    assert "goes on after update 4" in said
    for name, value in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(weights(tmp_path / "run")[name], value, err_msg=name)
        np.testing.assert_array_equal(load_file(tmp_path / "run/model-4/model.safetensors")[name], short[name])
    record = json.loads((tmp_path / "run/model/rm.json").read_text())
    assert (record["steps"], record["lengthened"]) == (8, [{"after": 4, "from": 4, "to": 8}])
    assert go_on(constant, tmp_path / "run", "--eval-every", "1") == 0
    assert capsys.readouterr().out.startswith("the run is over: ")
    assert go_on(constant, tmp_path / "run", "--max-steps", "6") == 2
    assert "make 6 updates, and the run has 8; resume with as many or more" in capsys.readouterr().err


def test_a_schedule_is_stretched_over_a_longer_run(command, whole, tmp_path, capsys):
    output = shutil.copytree(whole, tmp_path / "run")
    capsys.readouterr()
    assert go_on(command, output, "--max-steps", "10", "--log-every", "1") == 0
    stretched = "the linear schedule is stretched over all of them: the rate goes from 0 to 0.0002"
    assert f"10 updates in place of 8; {stretched}\n" in capsys.readouterr().out
    rates = {line["step"]: line["learning_rate"] for line in metrics(output) if "loss" in line}
    assert rates[9] == pytest.approx(1e-3 * (1 - 8 / 10))
    assert rates[10] == pytest.approx(1e-3 * (1 - 9 / 10))


@pytest.mark.gate
def test_moments_may_move_to_the_host_when_a_run_goes_on(command, whole, tmp_path, monkeypatch, capsys):
    """Its whole checkpoints were set aside as damaged, and the run began again over its own metrics."""
    with monkeypatch.context() as patch:
        poison(patch, {5, 6})
        assert main([*command, "--output", str(tmp_path / "run"), "--max-skipped", "2"]) == 2
    capsys.readouterr()
    assert go_on(command, tmp_path / "run", "--offload") == 0
    assert "goes on after update 4" in capsys.readouterr().out
    for one, other in zip(metrics(tmp_path / "run"), metrics(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for name, value in weights(whole).items():
        np.testing.assert_allclose(weights(tmp_path / "run")[name], value, atol=1e-5, err_msg=name)


@pytest.mark.gate
def test_a_run_whose_checkpoints_are_set_aside_does_not_begin_again(command, whole, tmp_path, capsys):
    """Its metrics would be overwritten, with exit code 0."""
    output = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    for step in checkpoints(output):
        (output / f"checkpoints/{step}").rename(output / f"checkpoints/damaged-{step}")
    before = (output / "metrics.jsonl").read_bytes(), (output / "run.json").read_bytes()
    assert go_on(command, output) == 2
    assert re.fullmatch(r"rm: .*: no checkpoint that can .* set aside as damaged-4, .*\n", capsys.readouterr().err)
    assert ((output / "metrics.jsonl").read_bytes(), (output / "run.json").read_bytes()) == before
    shutil.rmtree(output / "checkpoints")
    assert go_on(command, output) == 0
    assert (
        f"{output}: no checkpoint there; begins again with update 1 and a new metrics.jsonl" in capsys.readouterr().out
    )
    assert_same(output, whole)


@pytest.mark.gate
def test_a_run_ends_at_its_time_limit_and_goes_on(command, whole, tmp_path, capsys):
    assert main([*command, "--output", str(tmp_path / "run"), "--time-limit", "1s", "--save-every", "5"]) == 143
    said = capsys.readouterr().out.splitlines()[-1]
    line = r"stopped by --time-limit 1s after update ([1-7]), which is saved; go on with --resume auto"
    stopped = re.fullmatch(line, said)
    assert stopped, said
    assert checkpoints(tmp_path / "run")[-1] == int(stopped[1])
    assert not (tmp_path / "run/model").exists()
    assert go_on(command, tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.gate
def test_the_model_of_the_best_evaluation_is_exported(command, llama_directory, pairs_file, tmp_path, capsys):
    flags = ["--eval-split", "train", "--eval-every", "1", "--keep-best", "eval_pairs_margin", "--keep", "1"]
    flags += ["--learning-rate", "2e-2", "--load-best", "--eval-on-start", "--save-every", "9"]
    assert main([*command, "--output", str(tmp_path / "run"), *flags]) == 0
    margins = {
        line["step"]: line["eval_pairs_margin"] for line in metrics(tmp_path / "run") if "eval_pairs_margin" in line
    }
    assert list(margins) == list(range(9))
    best = max(range(1, 9), key=lambda step: margins[step])
    assert best < 8, "the last is the best, which shows nothing"
    assert f"the best eval_pairs_margin is that of update {best}, whose model is exported" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["best_step"] == json.loads((tmp_path / "run/model/rm.json").read_text())["steps"] == best
    assert record["evaluation"]["eval_pairs_margin"] == margins[best]
    assert checkpoints(tmp_path / "run") == [best, 8]
    exported = rm.load_reward_model(tmp_path / "run/model")
    comparisons, _ = rm.tokenize_comparisons(
        rm.load_comparisons(pairs_file), rm.load_tokenizer(llama_directory), exported.config
    )
    found = rm.evaluate(exported, comparisons, batch_size=4, center_rewards_coefficient=0.1)
    assert found["margin"] == pytest.approx(margins[best], rel=1e-5)


def test_a_run_may_keep_nothing_but_its_model(command, tmp_path, capsys):
    """What is saved is the export; so there is nothing to go on from, and that is said."""
    flags = ["--save-final-only", "--max-steps", "2"]
    command = [word for word in command if word not in ("--save-every", "2")]
    assert main([*command, "--output", str(tmp_path / "run"), *flags]) == 0
    assert checkpoints(tmp_path / "run") == []
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert go_on(command, tmp_path / "run", "--max-steps", "4") == 2
    error = capsys.readouterr().err
    assert "the run is finished and kept no checkpoint to go on from; train on with --model" in error
    assert go_on(command, tmp_path / "run", *flags) == 0


@pytest.mark.parametrize("architecture", ["RewardModel", "LlamaForCausalLM", "LlamaForSequenceClassification", None])
def test_a_checkpoint_and_the_export_of_a_run_score_alike(
    command, llama_directory, pairs_file, tmp_path, capsys, architecture
):
    """OpenRLHF's directories have a head and pad with the token that texts end in: is that where rewards are read?"""
    base, rows, found = tmp_path / "base", tmp_path / "rows.jsonl", {}
    shutil.copytree(llama_directory, base)
    stored, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    head = np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)
    save_file(stored | {"score.weight": head}, base / "model.safetensors", metadata={"format": "pt"})
    config |= {"architectures": [architecture] if architecture else None, "pad_token_id": config["eos_token_id"]}
    (base / "config.json").write_text(json.dumps(config | {"value_head_prefix": "score"}))
    pairs = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    rows.write_text("".join(json.dumps({"prompt": "", "response": pair["chosen"]}) + "\n" for pair in pairs))
    flags = ["--model", str(base), "--max-steps", "2", "--output", str(tmp_path / "run")]
    assert main([*command, *flags]) == 0
    for name in ("checkpoints/2", "model"):
        out = tmp_path / f"{Path(name).name}.jsonl"
        assert main(["score", "--model", str(tmp_path / "run" / name), "--input", str(rows), "--output", str(out)]) == 0
        found[name] = [json.loads(line)["reward"] for line in out.read_text().splitlines()]
    np.testing.assert_allclose(found["checkpoints/2"], found["model"], atol=1e-5)
    pad = json.loads((tmp_path / "run/model/config.json").read_text())["pad_token_id"]
    assert (pad == config["eos_token_id"]) == (architecture == "LlamaForSequenceClassification")


def test_the_newest_checkpoints_stay(command, tmp_path):
    output = tmp_path / "kept"
    flags = ["--keep", "1", "--eval-split", "train", "--eval-every", "2", "--keep-best", "eval_pairs_loss"]
    assert main([*command, "--output", str(output), *flags, "--learning-rate", "1e-2"]) == 0
    losses = {line["step"]: line["eval_pairs_loss"] for line in metrics(output) if "eval_pairs_loss" in line}
    assert checkpoints(output) == sorted({8, min(losses, key=lambda step: losses[step])})


def poison(monkeypatch, steps: set[int]) -> None:
    """Margins that make the loss of some updates, counted from 1, NaN."""
    batch_at = rm.BatchPlan.batch_at

    def poisoned(plan, step, rows=slice(None)):
        batches = batch_at(plan, step, rows)
        for batch in batches if step + 1 in steps else ():
            batch.margin[:] = np.nan
        return batches

    monkeypatch.setattr(rm.BatchPlan, "batch_at", poisoned)


def test_an_update_that_is_not_finite_is_skipped_and_its_rows_named(command, tmp_path, monkeypatch):
    """One bad row would turn every parameter into NaN, days before anybody looks."""
    poison(monkeypatch, {3, 6})
    assert main([*command, "--output", str(tmp_path / "run")]) == 0
    named = [line for line in metrics(tmp_path / "run") if "rows" in line]
    assert [(line["step"], line["skipped"], line["loss"]) for line in named] == [(3, 1, None), (6, 2, None)]
    known = {f"{command[command.index('--dataset') + 1]}: row {number}" for number in range(12)}
    assert all(len(set(line["rows"])) == 4 and set(line["rows"]) <= known for line in named)
    averages = [line for line in metrics(tmp_path / "run") if "accuracy" in line]
    assert [line["skipped"] for line in averages] == [1, 2, 2]
    assert all(np.isfinite(line["loss"]) for line in averages)
    assert all(np.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_too_many_skipped_updates_stop_the_run_with_its_checkpoints(command, tmp_path, monkeypatch, capsys, whole):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, {5, 6, 7})
        assert main([*command, "--output", str(output), "--max-skipped", "3", "--save-every", "4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rm: the last 3 updates were skipped (loss nan, norm of the gradient nan at step 7); ")
    assert error.count("\n") == 1
    assert checkpoints(output) == [4]
    assert main([*command, "--output", str(output), "--max-skipped", "30", "--resume", "auto"]) == 0
    assert_same(output, whole)


def test_a_gradient_is_measured_by_the_median_of_those_before(tmp_path):
    """By hand: ten norms of 1 to 10, the last of which is not known yet when the next update begins."""
    log = TrainingLog(tmp_path / "m.jsonl", 99, 99, 99, float, Reporter(99), str, max_skipped=3, spike=4.0)  # pyright: ignore
    log.norms = [(step, float(step)) for step in range(1, 11)]
    assert log.limit(11) == np.inf, "nine are too few"
    assert log.limit(12) == 4 * 5.5
    log.spike = None
    assert log.limit(12) == np.inf


def test_a_run_may_skip_spikes(command, tmp_path, monkeypatch):
    monkeypatch.setattr("rm.commands.log._FEWEST_NORMS", 2)
    assert main([*command, "--output", str(tmp_path / "run"), "--skip-spikes", "1e-3", "--max-skipped", "9"]) == 2
    named = [line["step"] for line in metrics(tmp_path / "run") if "rows" in line]
    assert named == [4, 5, 6, 7, 8], "the first two norms are known in time for the fourth update"


@pytest.mark.gate
def test_two_runs_on_one_directory(command, tmp_path, capsys):
    """They would write over each other."""
    output = tmp_path / "run"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import pathlib, sys\nfrom rm.files.output import locked\n"
            f"with locked(pathlib.Path({str(output)!r})):\n print('held', flush=True)\n sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(holder, "held")
    assert main([*command, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        rf"rm: {output}: in use by process {holder.pid} on .+, since .+; wait for it, or .+\n", error
    ), error
    holder.kill()
    holder.communicate()
    assert main([*command, "--output", str(output)]) == 0  # the lock died with its process
    assert f"process {holder.pid} on " in capsys.readouterr().out
    with locked(output) as before:
        assert before is None, "the run did not let go"


@pytest.mark.gate
def test_a_disk_that_fills_up_costs_no_checkpoint(command, tmp_path, whole):
    """A small tmpfs: the run ends in one line, and goes on where there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (whole / "checkpoints/8").rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs the rights to")
    try:
        code, errors = end(start(command, disk / "run"))
        assert code == 2
        assert re.search(
            r"^rm: .*: (a checkpoint )?cannot be written \(No space left on device\)", errors.splitlines()[-1]
        ), errors
        assert "Traceback" not in errors
        kept = checkpoints(disk / "run")
        assert kept, "the first one was whole"
        subprocess.run(["mount", "-o", f"remount,size={40 * size}", str(disk)], check=True)
        code, errors = end(start(command, disk / "run"))
        assert code == 0, errors
        assert_same(disk / "run", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_data_that_changed_since_the_run_began_are_noticed(command, tmp_path, pairs_file, monkeypatch, capsys):
    """The rest of the epoch would be other comparisons than the first half left."""
    output, own = tmp_path / "run", tmp_path / "own.jsonl"
    rows = pairs_file.read_text().splitlines(keepends=True)
    own.write_text("".join(rows))
    command = [str(own) if argument == str(pairs_file) else argument for argument in command]
    with monkeypatch.context() as patch:
        poison(patch, {3, 4})
        assert main([*command, "--output", str(output), "--max-skipped", "2"]) == 2
    own.write_text("".join(rows[::-1]))
    capsys.readouterr()
    assert main([*command, "--output", str(output), "--max-skipped", "2", "--resume", "auto"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"rm: .*: the run began with data of hash [0-9a-f]+, found [0-9a-f]+; put the data .*\n", error)


def test_a_clock_that_jumps_changes_nothing_but_times(command, tmp_path, whole, monkeypatch):
    """A checkpoint would seem older than the one before it, or to take too long."""
    clock = time.time

    def jumping() -> float:
        return clock() + (36000 if int(clock() * 10) % 2 else -36000)  # ten hours

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        poison(patch, {5, 6})
        assert main([*command, "--output", str(tmp_path / "run"), "--max-skipped", "2"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        assert main([*command, "--output", str(tmp_path / "run"), "--max-skipped", "2", "--resume", "auto"]) == 0
    assert_same(tmp_path / "run", whole)


def test_the_same_command_gives_the_same_bits(command, tmp_path, whole):
    assert main([*command, "--output", str(tmp_path / "again")]) == 0
    assert_same(tmp_path / "again", whole)


@pytest.mark.gate
def test_another_packing_gives_the_same_trajectory(command, tmp_path, whole):
    """What a run learns would depend on how much fits a device."""
    assert main([*command, "--output", str(tmp_path / "small"), "--micro-batch-tokens", "64"]) == 0
    for one, other in zip(metrics(tmp_path / "small"), metrics(whole), strict=True):
        assert one.pop("grad_norm") == pytest.approx(other.pop("grad_norm"), rel=1e-4)  # a sum of thousands of squares
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    for name, value in weights(whole).items():
        np.testing.assert_allclose(weights(tmp_path / "small")[name], value, atol=1e-4, err_msg=name)
    shapes = [json.loads((run / "run.json").read_text())["row_shapes"] for run in (tmp_path / "small", whole)]
    assert shapes[0] != shapes[1], "the packing is the same"


def test_running_out_of_memory_says_what_to_lower(command, tmp_path, monkeypatch, capsys):
    def run_out(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore")

    monkeypatch.setattr("rm.commands.train.jit_update", lambda *_: run_out)
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "rm: out of memory on cpu (RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.); lower "
    )
    assert "python -m rm plan --model" in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback_of_a_mistake(command, tmp_path):
    """A line is too little to report a bug with."""
    with pytest.raises(rm.RmError, match="nothing to resume"):
        main([*command, "--output", str(tmp_path / "none"), "--resume", "required", "--debug"])


def test_a_device_that_kept_the_state_on_the_host_skips_as_well(loaded):
    """What the host keeps is chosen leaf by leaf, apart from the rest."""
    model, _ = loaded
    optimizer = rm.make_optimizer("adamw", 1e-2, offload=True)
    state = rm.init_state(jax.tree.map(jnp.copy, model), optimizer)
    sums = Sums(jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.inf), model), {"loss": jnp.array(0.5)}, jnp.array(2))
    with jax.numpy_dtype_promotion("standard"):
        new, found = jax.jit(lambda state, sums: rm.apply_gradients(state, sums, optimizer))(state, sums)
    assert float(found["skipped"]) == 1
    assert int(new.step) == 1
    for one, other in zip(
        *map(jax.tree.leaves, ((new.model, new.opt_state), (state.model, state.opt_state))), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("unraised")
def test_a_damaged_newest_checkpoint_costs_its_updates_only(command, tmp_path, whole, monkeypatch, capsys):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, {5, 6})
        assert main([*command, "--output", str(output), "--max-skipped", "2"]) == 2
    for path in (output / "checkpoints/4").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    capsys.readouterr()
    assert main([*command, "--output", str(output), "--max-skipped", "2", "--resume", "auto"]) == 0
    said = capsys.readouterr().out
    assert "it is now damaged-4" in said
    assert "goes on after update 2" in said
    assert_same(output, whole)
    shutil.rmtree(output / "checkpoints/damaged-4")
