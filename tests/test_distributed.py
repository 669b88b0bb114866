"""Real processes over loopback: one trajectory, one voice, and an end that says whose it was."""

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
import numpy as np
import pytest
from safetensors.numpy import load_file

from rm.commands.train import TrainArguments
from rm.devices import processes
from rm.errors import ConfigError

from .test_agreement import free_port
from .xla import FEW_OPTIMIZATIONS

STEPS = 30
OPTIONS = f"--max-length 64 --batch-size 8 --log-every 1 --learning-rate 1e-4 --save-every 3 --max-steps {STEPS}"


@pytest.fixture(scope="module")
def home(llama_directory, tmp_path_factory) -> Path:
    """A directory with a small model and a few preferences."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(llama_directory, home / "model")
    rows = [{"chosen": f"Q: what is {i}? A: {i}", "rejected": f"Q: what is {i}? A: {i + 1}"} for i in range(80)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def arguments(home) -> list[str]:
    """Of a run."""
    sources = ["--model", str(home / "model"), "--dataset", str(home / "pairs.jsonl"), "--eval-split", "train[:24]"]
    return ["train", *sources, *OPTIONS.split()]


def start(
    arguments: list[str],
    *,
    processes: int = 1,
    devices: tuple[int, ...] = (1,),
    own: dict[int, list[str]] | None = None,
    directories: tuple[Path, ...] = (),
):
    """Starts as many processes, each with its number of devices and in its directory."""
    address, running = f"127.0.0.1:{free_port()}", []
    for number in range(processes):
        joined = f"--distributed --coordinator {address} --num-processes {processes} --process-id {number}".split()
        command = [sys.executable, "-m", "rm", *arguments, *(joined if processes > 1 else [])]
        flags = f"{FEW_OPTIMIZATIONS} --xla_force_host_platform_device_count={devices[number % len(devices)]}"
        paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        running.append(
            subprocess.Popen(
                [*command, *(own or {}).get(number, [])],
                env={**os.environ, **paths},
                cwd=directories[number] if directories else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def end(running) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]


def wait_for(checkpoint: Path, running) -> None:
    """Returns when there is a checkpoint and all processes still run."""
    deadline = time.monotonic() + 240
    while not checkpoint.is_dir():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)


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
@pytest.mark.gate
def test_two_processes_of_two_devices_follow_the_trajectory_of_one(arguments, alone, tmp_path):
    """Groups of devices of the update cross the processes; nothing else may run on these devices meanwhile."""
    mesh = ["--mesh", "tensor=2,fsdp=2"]
    ended = end(start([*arguments, *mesh, "--output", str(tmp_path / "run")], processes=2, devices=(2,)))
    assert [code for code, _, _ in ended] == [0, 0], ended
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-4)
    assert "loss" in ended[0][1]
    assert "loss" not in ended[1][1], "only one process speaks"
    assert (tmp_path / "run/model/model.safetensors").is_file()

    again = [*arguments, *mesh, "--output", str(tmp_path / "run"), "--resume", "auto"]
    ended = end(start(again, processes=2, devices=(2,)))
    assert [(code, "the run is over" in said) for code, said, _ in ended] == [(0, True), (0, False)], ended


@pytest.mark.long
def test_adapters_over_two_processes_follow_the_trajectory_of_one(arguments, tmp_path):
    """The frozen base, which no state holds, would be another one in each process, or the adapters not add up."""
    lora = [*arguments, "--lora-rank", "4"]
    ((code, _, errors),) = end(start([*lora, "--output", str(tmp_path / "alone")]))
    assert code == 0, errors
    mesh = ["--mesh", "tensor=2,fsdp=2", "--output", str(tmp_path / "run")]
    ended = end(start([*lora, *mesh], processes=2, devices=(2,)))
    assert [code for code, _, _ in ended] == [0, 0], ended
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "alone"), rtol=1e-4)
    for part in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        found, expected = (load_file(tmp_path / run / part) for run in ("run", "alone"))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


@pytest.mark.long
def test_a_process_that_is_killed_is_named_and_the_run_goes_on_with_fewer(arguments, alone, tmp_path):
    """Four processes, one of which is killed after a checkpoint; then two of two devices."""
    output = tmp_path / "run"
    running = start([*arguments, "--output", str(output)], processes=4)
    wait_for(output / "checkpoints/3", running)
    running[2].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    ended = end(running)
    assert time.monotonic() - killed < 60
    assert not (output / "model").exists(), "the run was over before it was interrupted"
    for number in (0, 1, 3):
        code, _, errors = ended[number]
        assert code == 1, errors
        assert "rm: process 2 of 4 ended; see its log, and go on with --resume auto" in errors, errors
    again = [*arguments, "--output", str(output), "--resume", "auto"]
    ended = end(start(again, processes=2, devices=(2,)))
    assert [code for code, _, _ in ended] == [0, 0], ended
    np.testing.assert_allclose(losses(output), alone, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGSTOP])
def test_a_signal_to_one_process_ends_all(arguments, tmp_path, what):
    """A machine that is taken away would leave the others waiting, or two states in one checkpoint."""
    output = tmp_path / "run"
    long_run = [*arguments, "--max-steps", "5000", "--keep", "2", "--mesh", "tensor=2,fsdp=2"]
    running = start([*long_run, "--output", str(output)], processes=2, devices=(2,))
    wait_for(output / "checkpoints/3", running)
    running[1].send_signal(what)
    sent = time.monotonic()
    if what == signal.SIGSTOP:  # it cannot answer, and says nothing
        assert running[0].wait(timeout=90) == 1
        running[1].kill()
        assert "rm: process 1 of 2 ended; see its log" in end(running)[0][2]
        return
    ended = end(running)
    assert time.monotonic() - sent < 60
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert "SIGTERM: saving a checkpoint" in ended[1][2]
    (stopped,) = re.findall(r"stopped after update (\d+), which is saved", ended[0][1])
    assert (output / "checkpoints" / stopped).is_dir()
    assert not (output / "model").exists()


def damage_weights(home: Path) -> None:
    """Changes one weight by less than a thousandth."""
    path = home / "model/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def change_data(home: Path) -> None:
    path = home / "pairs.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("what is 7", "what is 8"), encoding="utf-8")


def add_checkpoint(home: Path) -> None:
    (home / "run/checkpoints/3").mkdir(parents=True)
    (home / "run/run.json").write_text("{}", encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "own", "message"),
    [
        (None, ["--learning-rate", "2e-3"], r"process 1 has --learning-rate 0.002, process 0 has 5e-06; start all of"),
        (lambda home: (home / "pairs.jsonl").unlink(), [], r"process 1: pairs.jsonl: no such file"),
        (None, [], r"process 1: /.*/two/run: expected the .owner.json that process 0 wrote on .*, found no such file"),
        (None, 1, r"process 1 has local devices 1, process 0 has 2; start all of them with the same"),
        (lambda home: shutil.rmtree(home / "model"), [], r"process 1: ./model: expected a model directory or a hub id"),
        (damage_weights, [], r"process 1 has model weights \(a hash\) \w{16}, process 0 has \w{16}; start all of"),
        pytest.param(
            change_data,
            [],
            r"process 1 has data \(a hash\) .*, process 0 has .*; start all of",
            marks=pytest.mark.gate,
        ),
        (add_checkpoint, ["--resume", "auto"], r"process 1 has checkpoints in --output \[3\], process 0 has \[\]"),
    ],
)
def test_processes_that_disagree_all_say_so(home, tmp_path, change, own, message):
    """Before the first update; a process must not wait for one that has given up."""
    homes = [Path(shutil.copytree(home, tmp_path / name)) for name in ("one", "two")]  # as on two machines
    if change is not None:
        change(homes[1])
    devices = (2, 2) if isinstance(own, list) else (2, own)
    own = own if isinstance(own, list) else []
    sources = "train --model ./model --dataset pairs.jsonl --max-length 64 --max-steps 3 --save-every 1 --output run"
    both = [*sources.split(), *(own if "--resume" in own else [])]
    ended = end(start(both, processes=2, devices=devices, own={1: own}, directories=tuple(homes)))
    for code, _, errors in ended:
        assert code == 2, errors
        assert re.search(f"^rm: {message}", errors, re.MULTILINE), errors
        assert "Traceback" not in errors
    assert not list(tmp_path.glob("*/run/metrics.jsonl"))


@pytest.mark.long
@pytest.mark.gate
def test_a_process_that_never_comes_ends_the_run_in_one_line(arguments, tmp_path):
    limits = ["--join-timeout", "2s", "--output", str(tmp_path / "run")]
    running = start([*arguments, *limits], processes=3)
    running[1].kill()
    for number, (code, _, errors) in enumerate(end(running)):
        if number != 1:
            assert code == 2
            assert re.fullmatch(r"rm: no word from process 1 of 3 at 127.* within 2 s; start it, or give .*\n", errors)
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


@pytest.mark.parametrize("text", ["", "10", "1.5h", "0", "2m30", "-3", "10 m"])
def test_a_join_timeout_is_a_length_of_time(tmp_path, text):
    given = {"model": "m", "dataset": ("d",), "output": tmp_path, "join_timeout": text}
    if text in ("10", "2m30"):
        TrainArguments(**given)
        return
    with pytest.raises(ConfigError, match=r"--join-timeout: expected a duration such as 90s, 10m or 3h50m, found"):
        TrainArguments(**given)
