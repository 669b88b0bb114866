"""How fast rm scores texts against `transformers`, and whether the rewards are the same.

python benchmarks/forward.py --trl-python PYTHON [--rounds 3] [--shared ../shared] [--output FILE.json]

Both sides score both sides of pairs of the reference workload of peers.py, 64 at a time, tokenization included. They
run in turn, each in a process of its own, in which the texts have been scored once before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import MARK
from workload import SHARED

HERE = Path(__file__).parent
BATCH_SIZE = 64
MAX_DIFFERENCE = 1e-3  # between the rewards in float32

Scorer = Callable[[list[str]], list[float]]


def rm_scorer(directory: Path, dtype: str) -> Scorer:

    import rm

    model, tokenizer = rm.load_reward_model(directory), rm.load_tokenizer(directory)
    return lambda texts: rm.score(
        model, tokenizer, texts, batch_size=BATCH_SIZE, compute=rm.Compute(dtype=dtype)
    ).tolist()


def transformers_scorer(directory: Path, dtype: str) -> Scorer:
    """Batches in the order of the texts, each padded to its longest."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    model = transformers.LlamaForSequenceClassification.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()

    def score(texts: list[str]) -> list[float]:
        rewards = []
        for start in range(0, len(texts), BATCH_SIZE):
            inputs = tokenizer(texts[start : start + BATCH_SIZE], padding=True, return_tensors="pt")
            rewards += model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].tolist()
        return rewards

    return torch.no_grad()(score)


SCORERS = {"rm": rm_scorer, "transformers": transformers_scorer}


def read_texts(workload: Path, count: int) -> list[str]:
    pairs = (json.loads(line) for line in (workload / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    return [pair[side] for pair in pairs for side in ("chosen", "rejected")][:count]


def run(args: argparse.Namespace) -> None:
    """One side's run: prints the seconds of the second pass over the texts, and the rewards."""
    texts = read_texts(args.workload, args.texts)
    score = SCORERS[args.side](args.workload / "llama", args.dtype)
    score(texts)
    start = time.perf_counter()
    rewards = score(texts)
    print(MARK + json.dumps({"seconds": time.perf_counter() - start, "rewards": rewards}))


def start(args: argparse.Namespace, side: str, workload: Path, dtype: str) -> dict:
    """What one side's run reports."""
    # absolute, not resolved: the link tells Python which environment it is in
    python = sys.executable if side == "rm" else args.trl_python.absolute()
    options = {"workload": workload, "side": side, "dtype": dtype, "texts": args.texts}
    command = [python, __file__, *(f"--{name}={value}" for name, value in options.items())]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK))


def run_round(args: argparse.Namespace, workload: Path, dtype: str) -> dict:
    figures = {side: start(args, side, workload, dtype) for side in SCORERS}
    ours, theirs = (figures[side].pop("rewards") for side in SCORERS)
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    ratio = figures["transformers"]["seconds"] / figures["rm"]["seconds"]
    return {"dtype": dtype, "texts": len(ours), **figures, "ratio": ratio, "max_difference": difference}


def table_row(rounds: list[dict]) -> str:
    speeds = [statistics.median(one["texts"] / one[side]["seconds"] for one in rounds) for side in SCORERS]
    ratios = [one["ratio"] for one in rounds]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
    difference = max(one["max_difference"] for one in rounds)
    return f"| {rounds[0]['dtype']} | {speeds[0]:.1f} | {speeds[1]:.1f} | {spread} | {difference:.1e} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment that has transformers and torch")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that has data/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--output", type=Path, help="a JSON file for every round's figures")
    parser.add_argument("--workload", type=Path, help=argparse.SUPPRESS)  # one side's run, as the next two
    parser.add_argument("--side", choices=SCORERS, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.side or args.trl_python):
        parser.error("--trl-python is needed")
    return args


def main() -> None:
    args = parse_arguments()
    if args.side:
        return run(args)
    print("| dtype | rm texts/s | transformers texts/s | ratio (min–max) | largest difference |\n" + "|---" * 5 + "|")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload"
        command = [sys.executable, HERE / "workload.py", args.shared.absolute(), "hh-rlhf", workload]
        subprocess.run(command, check=True)
        for dtype in ("float32", "bfloat16"):
            cases.append([run_round(args, workload, dtype) for _ in range(args.rounds)])
            print(table_row(cases[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps([one for case in cases for one in case], indent=2) + "\n")
    difference = max(one["max_difference"] for one in cases[0])
    if difference > MAX_DIFFERENCE:
        sys.exit(f"float32: the rewards differ by {difference:.1e}, more than {MAX_DIFFERENCE}")
    return None


if __name__ == "__main__":
    main()
