"""Time to the end of the first update, with an empty compilation cache and with the one that the run before filled.

python benchmarks/compile.py [--rounds 3] [--shared ../shared] [--output FILE.json]

Every run is a process of its own that imports rm, reads the reference workload of peers.py and does one update. JAX
keeps every program in the cache, however small it is and however soon it was compiled.
"""

import argparse
import collections
import itertools
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
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
PHASES = ("import", "model and data", "update")


def first_update(args: argparse.Namespace) -> None:
    """What a run does; prints the seconds of its phases and the programs that it asked for and that were compiled."""
    import jax

    import rm

    counts = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
    times = [args.started, time.time()]

    model = rm.load_reward_model(args.workload / "llama")
    tokenizer = rm.load_tokenizer(args.workload / "llama")
    rows = rm.load_comparisons(args.workload / "pairs.jsonl")
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config, cache=False)
    plan = rm.plan_batches(comparisons, args.batch_size, shuffle=False)
    times.append(time.time())

    def objective(model, batch):
        r = rm.rewards(model, batch, rm.Compute(dtype=args.dtype, remat=args.remat))
        return rm.pairwise_loss(r[..., 0], r[..., 1]), r

    optimizer = rm.adamw(1e-5)
    state, advance = rm.init_state(model, optimizer), rm.jit_update(objective, optimizer)
    batches = plan.batch_at(0)
    state, _ = jax.block_until_ready(advance(state, batches))
    times.append(time.time())
    jax.block_until_ready(advance(state, batches))
    again = time.time() - times[-1]

    seconds = dict(zip(PHASES, (b - a for a, b in itertools.pairwise(times)), strict=True))
    programs = counts["/jax/compilation_cache/compile_requests_use_cache"]
    compiled = programs - counts["/jax/compilation_cache/cache_hits"]
    total = {"seconds": times[-1] - times[0], "again": again, "programs": programs, "compiled": compiled}
    print(MARK + json.dumps(total | {"phases": seconds, "jax": jax.__version__}))


def start(args: argparse.Namespace, workload: Path, dtype: str, remat: str, cache: Path) -> dict:
    """What one run reports; `datasets` finds nothing that another run has read."""
    with tempfile.TemporaryDirectory() as home:
        folders = {"JAX_COMPILATION_CACHE_DIR": str(cache), "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        options = {"workload": workload, "dtype": dtype, "remat": remat, "batch-size": args.batch_size}
        options["started"] = time.time()
        command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
        env = os.environ | CACHE | folders
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK))


def run_round(args: argparse.Namespace, workload: Path, dtype: str, remat: str) -> dict:
    """A run with an empty cache, and one with the cache that it leaves."""
    with tempfile.TemporaryDirectory() as cache:
        empty, filled = (start(args, workload, dtype, remat, Path(cache)) for _ in range(2))
        size = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    return {"dtype": dtype, "remat": remat, "empty": empty, "filled": filled, "cache_bytes": size}


def table_rows(rounds: list[dict]) -> list[str]:
    """Medians over the rounds of a case, and the ratio within each round."""
    ratios = [figures["empty"]["seconds"] / figures["filled"]["seconds"] for figures in rounds]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
    rows = []
    for cache in ("empty", "filled"):
        runs = [figures[cache] for figures in rounds]
        seconds = [statistics.median(run["seconds"] for run in runs)]
        seconds += [statistics.median(run["phases"][phase] for run in runs) for phase in PHASES]
        seconds.append(statistics.median(run["again"] for run in runs))
        columns = [rounds[0]["dtype"], rounds[0]["remat"], cache, *(f"{value:.1f}" for value in seconds)]
        size = f"{rounds[-1]['cache_bytes'] / 1e6:.1f}"
        columns += [str(runs[-1]["programs"]), str(runs[-1]["compiled"]), size, spread if cache == "filled" else ""]
        rows.append("| " + " | ".join(columns) + " |")
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that has data/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, help="a JSON file for every round's figures")
    parser.add_argument("--workload", type=Path, help=argparse.SUPPRESS)  # a run, as the next three
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--remat", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.workload:
        return first_update(args)
    columns = ["dtype", "remat", "cache", "s", *(f"{phase} s" for phase in (*PHASES, "the same again"))]
    columns += ["programs", "compiled", "cache MB", "empty/filled (min–max)"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    everything = []
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload"
        command = [sys.executable, HERE / "workload.py", args.shared.absolute(), "hh-rlhf", workload]
        subprocess.run(command, check=True)
        for dtype, remat in itertools.product(("float32", "bfloat16"), ("none", "full")):
            rounds = [run_round(args, workload, dtype, remat) for _ in range(args.rounds)]
            print("\n".join(table_rows(rounds)), flush=True)
            everything += rounds
    if args.output:
        args.output.write_text(json.dumps(everything, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
