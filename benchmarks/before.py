"""Training and scoring by this checkout beside an older one, in turn: speed and peak memory as ratios.

python benchmarks/before.py OLDER_CHECKOUT [--cases train score] [--rounds 3] [--updates 4] [--texts 256]

Every run is a process of its own, on the reference workload of peers.py, by the scripts of its own checkout
(`train_rm.py`, and `forward.py --side rm`). Both have the packages of this environment.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import MARK
from workload import SHARED

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("older", type=Path)
    parser.add_argument("--cases", nargs="+", choices=("train", "score"), default=["train", "score"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that has data/")
    return parser.parse_args()


def run(checkout: Path, script: str, options: dict[str, object]) -> tuple[dict, float]:
    """The report of a script, and the peak GiB of its process. Compiled programs are kept for the next round."""
    command = [
        sys.executable,
        checkout / "benchmarks" / script,
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    cache = Path(str(options["workload"])).parent / f"compiled {checkout.absolute()}".replace(os.sep, "_")
    env = os.environ | {"PYTHONPATH": str(checkout.absolute()), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{checkout}: {script} ended with status {status}")
    line = next(line for line in output.splitlines() if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK)), usage.ru_maxrss / 2**20


def train(checkout: Path, workload: Path, dtype: str, args: argparse.Namespace) -> tuple[float, float]:
    """Pairs a second, peak GiB."""
    with tempfile.TemporaryDirectory() as scratch:
        options = {"workload": workload, "scratch": scratch, "dtype": dtype, "updates": args.updates}
        report, peak = run(checkout, "train_rm.py", options | {"seed": 1, "started": time.time()})
    return report["pairs_per_second"], peak


def score(checkout: Path, workload: Path, dtype: str, args: argparse.Namespace) -> tuple[float, float]:
    """Texts a second, peak GiB."""
    options = {"workload": workload, "side": "rm", "dtype": dtype, "texts": args.texts}
    report, peak = run(checkout, "forward.py", options)
    return len(report["rewards"]) / report["seconds"], peak


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    args = parse_arguments()
    print("| case | before | now | speed, ratio | peak GiB before | now | memory, ratio |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload"
        command = [sys.executable, HERE / "workload.py", args.shared.absolute(), "hh-rlhf", workload]
        subprocess.run(command, check=True)
        cases = {"train": ("pairs/s trained", train), "score": ("texts/s scored", score)}
        for name, measure in (cases[case] for case in args.cases):
            for dtype in DTYPES:
                rounds = []
                for number in range(args.rounds + 1):  # the first round compiles, and does not count
                    sides = (args.older, HERE.parent) if number % 2 else (HERE.parent, args.older)
                    found = {side: measure(side, workload, dtype, args) for side in sides}
                    rounds.append((found[args.older], found[HERE.parent]))
                del rounds[0]
                medians = [[statistics.median(one[side][i] for one in rounds) for side in (0, 1)] for i in (0, 1)]
                speed, memory = ([now[i] / before[i] for before, now in rounds] for i in (0, 1))
                (before, now), (peak_before, peak_now) = medians
                print(
                    f"| {name}, {dtype} | {before:.1f} | {now:.1f} | {spread(speed)} "
                    f"| {peak_before:.2f} | {peak_now:.2f} | {spread(memory)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
