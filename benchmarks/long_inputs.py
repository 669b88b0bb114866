"""Scores one long text on a CPU: seconds and peak memory by its length, beside `transformers`.

python benchmarks/long_inputs.py [--lengths 2048 4096 8192 16384] [--python INTERPRETER_WITH_TRANSFORMERS] [--tiny]

Each measurement is a process of its own, which scores the text twice; the second time counts. Memory is the most that
the process had while it scored, less what it had before (Linux): for rm about 150 MiB of it are the compiler's. Both
have the same random weights, in float32.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MARK = "result "


def tokens_of(length: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocabulary, length).astype(np.int32)


def measure(score: Callable[[], float]) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here, without that of loading
    before = memory_kib("VmRSS")
    reward = score()
    start = time.perf_counter()
    if score() != reward:
        sys.exit("the second reward differs from the first")
    seconds = time.perf_counter() - start
    return {"reward": reward, "seconds": seconds, "mib": (memory_kib("VmHWM") - before) / 2**10}


def memory_kib(field: str) -> int:
    """What this process has (`VmRSS`), or the most that it had (`VmHWM`), in KiB: proc_pid_status(5)."""
    return int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def run_rm(directory: Path, length: int) -> dict[str, float]:
    import rm
    from rm.evaluation.scoring import score_sequences

    model = rm.load_reward_model(directory)
    ids = tokens_of(length, model.config.vocab_size)
    return measure(lambda: float(score_sequences(model, [ids])[0]))


def run_transformers(directory: Path, length: int) -> dict[str, float]:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.from_numpy(tokens_of(length, model.config.vocab_size))[None].long()

    def score() -> float:
        with torch.no_grad():
            return float(model(ids).logits[0, 0])

    return measure(score)


def write_model(directory: Path, tiny: bool) -> None:
    import dataclasses

    import jax
    from workload import reference_config

    import rm
    from rm.saving.examples import write_llama

    directory.with_name("llama").mkdir()
    write_llama(directory.with_name("llama"), ["a text"])
    config = dataclasses.replace(reference_config(), max_position_embeddings=16384)
    if tiny:
        config = dataclasses.replace(config, vocab_size=512, hidden_size=64, intermediate_size=96, head_dim=8)
    model = rm.init_reward_model(config, key=jax.random.key(0))
    rm.save_reward_model(directory, model, rm.load_tokenizer(directory.with_name("llama")))


def child(system: str, python: Path, directory: Path, length: int) -> dict[str, float] | None:
    command = [python, __file__, "--child", system, "--directory", directory, "--lengths", str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    reports = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not reports:
        print(f"{system}, {length}: {(done.stderr.strip().splitlines() or [done.returncode])[-1]}", file=sys.stderr)
        return None
    return json.loads(reports[-1].removeprefix(MARK))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--python", type=Path, help="interpreter of an environment that has transformers")
    parser.add_argument("--tiny", action="store_true", help="a model that takes no time, for the tests")
    parser.add_argument("--child", choices=("rm", "transformers"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run = {"rm": run_rm, "transformers": run_transformers}[args.child]
        print(MARK + json.dumps(run(args.directory, args.lengths[0])))
        return
    systems = {"rm": Path(sys.executable)} | ({"transformers": args.python.absolute()} if args.python else {})
    print("| tokens | system | seconds | MiB | bytes a token | reward |\n|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        write_model(directory, args.tiny)
        for length in args.lengths:
            for system, python in systems.items():
                found = child(system, python, directory, length)
                if found is None:
                    sys.exit(1)
                each = found["mib"] * 2**20 / length
                figures = f"{found['seconds']:.2f} | {found['mib']:,.0f} | {each:,.0f} | {found['reward']:.5f}"
                print(f"| {length} | {system} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
