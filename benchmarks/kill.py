"""Kills a training run again and again, resumes it each time, and compares it with one that nobody disturbed.

python benchmarks/kill.py --model LLAMA --dataset pairs.jsonl [--kills 100] [--seed 0] [--scratch DIRECTORY]

Half of the kills (SIGKILL) come at a random moment, half of them while a checkpoint is being written. Parameters,
optimizer state and metrics.jsonl, but for its times, must be equal bit for bit, and no checkpoint may have been found
damaged; exits with 1 where that is not so.
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
from pathlib import Path

import numpy as np

TIMES = ("pairs_per_second", "tokens_per_second")


def start(args: argparse.Namespace, output: Path) -> subprocess.Popen:
    """The same command every time."""
    flags = (
        f"--batch-size 4 --max-length 256 --learning-rate 1e-3 --log-every 3 --save-every 2 --max-steps {args.steps}"
    )
    command = [sys.executable, "-m", "rm", "train", "--model", args.model, "--dataset", args.dataset]
    command += ["--output", str(output), "--eval-split", "train[:16]", "--eval-every", "5", *flags.split()]
    return subprocess.Popen(
        [*command, "--resume", "auto"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for a run that must end well."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"a run failed with {process.returncode}: {errors}")


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


def state_of(output: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, read without the library, and of the export."""
    import jax
    import orbax.checkpoint as ocp
    from safetensors.numpy import load_file

    last = max((path for path in (output / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore((last / "state").absolute())
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return arrays | load_file(output / "model/model.safetensors")


def metrics_of(output: Path) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def compare(output: Path, reference: Path) -> list[str]:
    """What differs, and the checkpoints that a run set aside as damaged."""
    found, expected = state_of(output), state_of(reference)
    differing = [name for name in found.keys() | expected.keys() if name not in found or name not in expected]
    differing += [name for name in found.keys() & expected.keys() if found[name].tobytes() != expected[name].tobytes()]
    differing += [path.name for path in (output / "checkpoints").glob("damaged-*")]
    return differing + ["metrics.jsonl"] * (metrics_of(output) != metrics_of(reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=24, help="updates of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="where the runs are written; a temporary folder by default")
    args = parser.parse_args()
    chance, kills, runs, bad = random.Random(args.seed), {"at random": 0, "while saving": 0}, 0, []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"  # so that a run soon trains
        reference = Path(folder) / "reference"
        finish(start(args, reference))
        shutil.rmtree(reference)
        begin = time.monotonic()
        finish(start(args, reference))
        longest = time.monotonic() - begin
        while sum(kills.values()) < args.kills:
            output, runs = Path(folder) / f"run-{runs}", runs + 1
            while not (output / "model").exists():
                process = start(args, output)
                moment = wait_for_moment(process, output, chance, longest)
                if sum(kills.values()) < args.kills and process.poll() is None:
                    process.kill()
                    process.wait()
                    kills[moment] += 1
                else:
                    finish(process)
            differing = compare(output, reference)
            bad += differing
            kept = sorted(int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit())
            print(
                f"run {runs}: {sum(kills.values())} kills, checkpoints {kept}, differing: {differing or 'nothing'}",
                flush=True,
            )
            shutil.rmtree(output)
    print(f"{runs} runs of {args.steps} updates; kills: {kills}")
    print("every run equals the one that nobody disturbed" if not bad else f"DIFFERENT: {sorted(set(bad))}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
