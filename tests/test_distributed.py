"""Real processes over loopback: one trajectory, one voice, and an end that says whose it was."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rm.commands.train import TrainArguments
from rm.devices import processes
from rm.errors import ConfigError

from .conftest import SHARED

STEPS = 9
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="module")
def arguments(llama_directory, tmp_path_factory) -> list[str]:
    """Of a run: a real model on real preferences where they are at hand, else the small ones."""
    options = "--max-length 512 --batch-size 8 --log-every 1 --learning-rate 1e-3 --save-every 3"
    if SHARED.is_dir():
        sources = [
            "--model",
            str(SHARED / "models/stories260K"),
            "--dataset",
            str(SHARED / "data/hh-rlhf/pairs.jsonl.gz"),
        ]
    else:
        path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
        rows = [{"chosen": f"Q: what is {i}? A: {i}", "rejected": f"Q: what is {i}? A: {i + 1}"} for i in range(80)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sources = ["--model", str(llama_directory), "--dataset", str(path)]
    return ["train", *sources, *options.split(), "--max-steps", str(STEPS), "--eval-split", "train[:24]"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(arguments: list[str], *, processes: int = 1, own: dict[int, list[str]] | None = None):
    """Starts as many processes, each with a device of its own."""
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    address, running = f"127.0.0.1:{free_port()}", []
    for number in range(processes):
        joined = [
            "--distributed",
            "--coordinator",
            address,
            "--num-processes",
            str(processes),
            "--process-id",
            str(number),
        ]
        command = [
            sys.executable,
            "-m",
            "rm",
            *arguments,
            *(joined if processes > 1 else []),
            *(own or {}).get(number, []),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, env=environment, **pipes))
    return running


def end(running) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]


def losses(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (evaluation,) = [value for line in lines for name, value in line.items() if re.fullmatch("eval_.*_loss", name)]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [*(line["loss"] for line in lines), evaluation]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory) -> list[float]:
    """The losses of a run in one process on one device, the last on held-out pairs."""
    output = tmp_path_factory.mktemp("alone") / "run"
    ((code, _, errors),) = end(start([*arguments, "--output", str(output)]))
    assert code == 0, errors
    return losses(output)


@pytest.mark.long
def test_two_processes_follow_the_trajectory_of_one(arguments, alone, tmp_path):
    ended = end(start([*arguments, "--output", str(tmp_path / "run")], processes=2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-4)
    assert "loss" in ended[0][1]
    assert "loss" not in ended[1][1], "only one process speaks"
    assert (tmp_path / "run/model/model.safetensors").is_file()


@pytest.mark.long
def test_a_process_that_is_killed_is_named_and_the_run_goes_on_with_fewer(arguments, alone, tmp_path):
    """Four processes, one of which is killed after a checkpoint; then two."""
    output = tmp_path / "run"
    running = start([*arguments, "--output", str(output)], processes=4)
    deadline = time.monotonic() + 480
    while not (output / "checkpoints/3").is_dir():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    running[2].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    ended = end(running)
    assert time.monotonic() - killed < 60
    assert not (output / "model").exists(), "the run was over before it was interrupted"
    for number in (0, 1, 3):
        code, _, errors = ended[number]
        assert code == 1, errors
        assert "rm: process 2 of 4 ended; see its log, and go on with --resume auto" in errors, errors
    ended = end(start([*arguments, "--output", str(output), "--resume", "auto"], processes=2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    np.testing.assert_allclose(losses(output), alone, rtol=1e-4)


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_after_the_same_update(arguments, tmp_path):
    """A machine that is taken away would leave the others waiting, or two states in one checkpoint."""
    output = tmp_path / "run"
    running = start([*arguments, "--max-steps", "500", "--output", str(output)], processes=2)
    deadline = time.monotonic() + 480
    while not (output / "checkpoints/3").is_dir():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    running[1].terminate()
    ended = end(running)
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert "SIGTERM: saving a checkpoint" in ended[1][2]
    (stopped,) = re.findall(r"stopped after update (\d+), which is saved", ended[0][1])
    assert (output / "checkpoints" / stopped).is_dir()
    assert not (output / "model").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--learning-rate", "2e-3"], "rm: process 1 has --learning-rate 0.002, process 0 has 0.001; start all"),
        (["--dataset", "nowhere.jsonl"], "rm: process 1: nowhere.jsonl: no such file"),
    ],
)
def test_processes_that_disagree_all_say_so(arguments, tmp_path, own, message):
    """Before anything is written; a process must not wait for one that has given up."""
    ended = end(start([*arguments, "--output", str(tmp_path / "run")], processes=2, own={1: own}))
    for code, _, errors in ended:
        assert code == 2
        assert message in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError, ConnectionError])
def test_what_another_process_may_have_caused_waits_until_it_is_named(kind, monkeypatch, capsys):
    """JAX raises any of these where a process is gone; a traceback would not say which."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    waited = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    with pytest.raises(kind), processes.ending_together():
        raise kind("UNKNOWN: Gloo all-reduce failed")
    assert sum(waited) >= 40, "in which the watch ends this process, with one line"
    said = capsys.readouterr().err
    assert said == "rm: UNKNOWN: Gloo all-reduce failed; looking whether another process has ended\n"


def test_an_address_needs_all_its_parts(tmp_path):
    with pytest.raises(ConfigError, match="--coordinator, --num-processes and --process-id go together"):
        TrainArguments(model="m", dataset=("d",), output=tmp_path, distributed=True, coordinator="localhost:1")
