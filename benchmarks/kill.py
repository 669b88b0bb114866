"""Kills a training run again and again, resumes it each time, and compares it with one that nobody disturbed.

python benchmarks/kill.py --model LLAMA --dataset pairs.jsonl [--kills 100] [--seed 0] [--scratch DIRECTORY] [--matrix]

Half of the kills (SIGKILL) come at a random moment, half of them while a checkpoint is being written. Parameters,
optimizer state and metrics.jsonl, but for its times, must be equal bit for bit, and no checkpoint may have been found
damaged; exits with 1 where that is not so.

With `--matrix` every run draws an optimizer and types from the table of cells.py, and every start of it a mesh of
virtual CPU devices and `--offload`. No update may be missing from metrics.jsonl, and losses and weights must be within
BOUNDS of those of the run that nobody disturbed, on one device.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from cells import MESHES, OPTIMIZERS, TYPES, set_devices

TIMES = ("pairs_per_second", "tokens_per_second")
FLAGS = "--batch-size 4 --max-length 256 --learning-rate 1e-3 --save-every 2"
ALONE: str = "--log-every 3 --eval-split train[:16] --eval-every 5"
LIMIT = 900  # seconds of a run; none may hang
# Of a loss, and of the weights relative to their norm. Meshes sum in another order, and a last bit that differs can
# round a number of bfloat16 to its other neighbour, 1/128 of it away.
BOUNDS = {"float32": (1e-4, 1e-4), "bfloat16": (5e-2, 1e-2)}


def draw_run(chance: random.Random) -> list[str]:
    """The flags that stay when a run is resumed: of the optimizer and of the types."""
    optimizer = chance.choice([name for name in OPTIMIZERS if name != "MultiSteps"])  # which the command lacks
    types = chance.choice([options for options in TYPES.values() if "offload" not in options])
    return ["--log-every", "1", "--optimizer", optimizer, *(f"--{name}={value}" for name, value in types.items())]


def draw_start(chance: random.Random) -> list[str]:
    """The flags that may change when a run is resumed."""
    return ["--mesh", chance.choice(list(MESHES)), *["--offload"] * chance.randrange(2)]


def start(args: argparse.Namespace, output: Path, flags: list[str]) -> subprocess.Popen:
    """The command, which goes on where the output holds a checkpoint."""
    command = [sys.executable, "-m", "rm", "train", "--model", args.model, "--dataset", args.dataset]
    command += ["--output", str(output), "--max-steps", str(args.steps), "--resume", "auto", *FLAGS.split(), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    """Waits for a run that must end well."""
    try:
        _, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"a run took more than {LIMIT} s: {process.args}")
    if process.returncode:
        sys.exit(f"a run failed with {process.returncode}: {process.args}: {errors}")


def wait_for_moment(process: subprocess.Popen, output: Path, chance: random.Random, longest: float) -> str:
    """Waits for a random moment, or for a checkpoint that is half written."""
    during_save = chance.random() < 0.5
    end = time.monotonic() + chance.uniform(0.2, longest)
    skip = chance.randrange(6)  # so that not always the first save is hit
    seen: set[str] = set()
    while process.poll() is None and time.monotonic() < (end + longest if during_save else end):
        if during_save:
            seen |= {path.name for path in (output / "checkpoints").glob("*tmp*")}
            if len(seen) > skip:
                time.sleep(chance.uniform(0, 0.02))
                return "while saving"
        time.sleep(0.001)
    return "at random"


def saved(output: Path) -> list[int]:
    """The updates of the complete checkpoints."""
    return sorted(int(path.name) for path in output.glob("checkpoints/*") if path.name.isdigit())


def export_of(output: Path) -> dict[str, np.ndarray]:
    """The exported weights, read without the library."""
    from safetensors.flax import load_file

    return {name: np.asarray(leaf) for name, leaf in load_file(output / "model/model.safetensors").items()}


def state_of(output: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, read without the library, and of the export."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore((output / "checkpoints" / str(saved(output)[-1]) / "state").absolute())
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return arrays | export_of(output)


def metrics_of(output: Path) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def compare(output: Path, reference: Path) -> list[str]:
    """What differs in any bit, and the checkpoints that a run set aside as damaged."""
    found, expected = state_of(output), state_of(reference)
    differing = [name for name in found.keys() | expected.keys() if name not in found or name not in expected]
    differing += [name for name in found.keys() & expected.keys() if found[name].tobytes() != expected[name].tobytes()]
    differing += [path.name for path in (output / "checkpoints").glob("damaged-*")]
    return differing + ["metrics.jsonl"] * (metrics_of(output) != metrics_of(reference))


def compare_within_bounds(output: Path, reference: Path) -> list[str]:
    """What is lost, and what differs by more than rounding."""
    found, expected = metrics_of(output), metrics_of(reference)
    if [line["step"] for line in found] != [line["step"] for line in expected]:
        return ["updates"]
    losses = max(abs(one["loss"] - other["loss"]) for one, other in zip(found, expected, strict=True))
    one, other = (
        np.concatenate([leaf.ravel().astype(np.float64) for _, leaf in sorted(export_of(path).items())])
        for path in (output, reference)
    )
    weights = float(np.linalg.norm(one - other) / np.linalg.norm(other))
    arguments = json.loads((output / "run.json").read_text())["arguments"]
    types = "bfloat16" if "bfloat16" in (arguments["moments"], arguments["parameters"]) else "float32"
    print(f"  {arguments['optimizer']}, {types}: losses within {losses:.1e}, weights within {weights:.1e}")
    most = BOUNDS[types]
    bad = ["losses"] * (not losses <= most[0]) + ["weights"] * (not weights <= most[1])  # also where one is not finite
    return bad + [path.name for path in (output / "checkpoints").glob("damaged-*")]


def undisturbed(args: argparse.Namespace, output: Path, flags: list[str]) -> float:
    """Makes the run that nobody disturbs; returns the seconds it takes when its programs are compiled."""
    finish(start(args, output, flags))
    shutil.rmtree(output)
    begin = time.monotonic()
    finish(start(args, output, flags))
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=24, help="updates of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--matrix", action="store_true", help="draw optimizer, types, mesh and --offload")
    parser.add_argument("--scratch", type=Path, help="where the runs are written; a temporary folder by default")
    args = parser.parse_args()
    chance, kills, runs, resumed, bad = random.Random(args.seed), {"at random": 0, "while saving": 0}, 0, 0, []
    times: dict[str, float] = {}  # seconds of the undisturbed runs
    if args.matrix:
        set_devices()
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")  # so that a run soon trains
        while sum(kills.values()) < args.kills:
            output, runs = Path(folder) / f"run-{runs}", runs + 1
            flags = draw_run(chance) if args.matrix else ALONE.split()
            reference = Path(folder) / f"reference-{zlib.crc32(repr(flags).encode())}"
            if not reference.exists():
                times[reference.name] = undisturbed(args, reference, flags)
            longest = patience = times[reference.name]
            while not (output / "model").exists():
                before = saved(output)
                resumed += bool(before)
                process = start(args, output, [*flags, *(draw_start(chance) if args.matrix else [])])
                moment = wait_for_moment(process, output, chance, patience)
                if sum(kills.values()) < args.kills and process.poll() is None:
                    process.kill()
                    process.wait()
                    kills[moment] += 1
                else:
                    finish(process)
                patience = longest if saved(output) != before else 1.5 * patience  # else a run may never get on
            differing = (compare_within_bounds if args.matrix else compare)(output, reference)
            bad += differing
            counts = f"{sum(kills.values())} kills, resumed {resumed} times, checkpoints {saved(output)}"
            print(f"run {runs}: {counts}, differing: {differing or 'nothing'}", flush=True)
            shutil.rmtree(output)
    print(f"{runs} runs of {args.steps} updates, resumed {resumed} times; kills: {kills}")
    print("every run equals the one that nobody disturbed" if not bad else f"DIFFERENT: {sorted(set(bad))}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
