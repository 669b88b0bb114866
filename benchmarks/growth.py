"""What grows with a file, with a request and before the first result, in this checkout and in an older one in turn.

python benchmarks/growth.py --before CHECKOUT --model MODEL --pairs PAIRS.jsonl [--texts 100000] [--megabytes 8]

`score`: how much more memory `python -m rm score` takes at its peak for many texts than for a hundredth of them, by a
model of one small layer with MODEL's tokenizer. `serve`: seconds of all cores until `python -m rm serve` is ready, and
its memory before, while and after it refuses large bodies (one text each, alone and several at a time), by MODEL with
a head at random. `train`: seconds of all cores until the first update. Nothing is taken from the cache of compiled
programs.
"""

import argparse
import dataclasses
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import jax

import rm

HERE = Path(__file__).resolve().parents[1]
WORDS = ("the", "a", "red", "old", "tree", "house", "of", "rome", "and", "how", "many", "people", "say", "that", "it")
SHORTEST, LONGEST = 10, 40  # words of a text


def start(checkout: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "rm", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True)


def cpu_seconds(process: subprocess.Popen) -> float:
    """Seconds of all cores so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: subprocess.Popen, name: str) -> float:
    """Megabytes that the process holds (VmRSS) or has held (VmHWM) since `forget_peak`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak(process: subprocess.Popen) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def write_texts(path: Path, count: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(count):
            file.write(json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(SHORTEST, LONGEST)))}) + "\n")


def measure_score(checkout: Path, model: Path, scratch: Path, texts: int, tokens: int) -> dict[str, float]:
    peaks = []
    for count in (texts // 100, texts):
        source, output = scratch / "texts.jsonl", scratch / "scores.jsonl"
        write_texts(source, count)
        output.unlink(missing_ok=True)
        process = start(checkout, "score", "--model", model, "--input", source, "--output", output, "--batch-size", 64)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{checkout}: python -m rm score failed")
        peaks.append(usage.ru_maxrss / 1024)
    grown = peaks[1] - peaks[0]
    return {"grown_mb": grown, "bytes_a_token": grown * 2**20 / tokens, "peak_mb": peaks[1]}


def ask(port: int, body: bytes) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        connection.request("POST", "/score", body)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def measure_serve(checkout: Path, model: Path, megabytes: float) -> dict[str, float]:
    process = start(checkout, "serve", "--model", model, "--port", 0)
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])  # pyright: ignore[reportOptionalMemberAccess]
        found = {"ready_cpu_s": cpu_seconds(process)}
        text = "a tree of rome " * int(megabytes * 2**20 / 15 - 2)
        body = json.dumps({"inputs": [text]}).encode()
        settle(process)
        ask(port, json.dumps({"inputs": ["a"]}).encode())
        for name, clients in (("body", 1), ("bodies", 8)):
            before = memory(process, "VmRSS")
            forget_peak(process)
            threads = [threading.Thread(target=ask, args=(port, body)) for _ in range(clients)]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
            begin = time.perf_counter()
            with suppress(OSError):
                ask(port, json.dumps({"inputs": ["a"]}).encode())
            found[f"{name}_one_word_s"] = time.perf_counter() - begin
            for thread in threads:
                thread.join()
            time.sleep(1)
            found |= {f"{name}_before_mb": before, f"{name}_peak_mb": memory(process, "VmHWM") - before}
            found[f"{name}_left_mb"] = memory(process, "VmRSS") - before
    finally:
        process.terminate()
    if process.wait(120):
        raise SystemExit(f"{checkout}: python -m rm serve failed")
    return found


def settle(process: subprocess.Popen) -> None:
    """Waits until the process computes nothing more."""
    busy = -1.0
    while cpu_seconds(process) - busy > 0.05:
        busy = cpu_seconds(process)
        time.sleep(2)


def measure_train(checkout: Path, model: Path, pairs: Path, scratch: Path) -> dict[str, float]:
    output = scratch / f"run-{time.monotonic_ns()}"
    options = ["--max-steps", 2, "--no-cache", "--log-every", 1]
    process = start(checkout, "train", "--model", model, "--dataset", pairs, "--output", output, *options)
    for line in process.stdout or ():
        if line.startswith("first loss"):
            found = {"first_update_cpu_s": cpu_seconds(process)}
            process.kill()
            process.wait()
            return found
    raise SystemExit(f"{checkout}: python -m rm train failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="the older checkout")
    parser.add_argument("--model", type=Path, required=True, help="a Llama and its tokenizer")
    parser.add_argument("--pairs", type=Path, required=True, help="preferences to train on")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--megabytes", type=float, default=8, help="of a large body; the server's limit is 8")
    parser.add_argument("--only", choices=("score", "serve", "train"), nargs="+", default=("score", "serve", "train"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        model, tokenizer = rm.match_tokenizer(
            rm.load_reward_model(args.model, key=jax.random.key(0)), rm.load_tokenizer(args.model)
        )
        rm.save_reward_model(scratch / "model", model, tokenizer)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
        small = dataclasses.replace(model.config, num_hidden_layers=1, head_dim=8, **sizes)
        rm.save_reward_model(scratch / "small", rm.init_reward_model(small, key=jax.random.key(0)), tokenizer)
        write_texts(scratch / "counted.jsonl", args.texts)
        with (scratch / "counted.jsonl").open() as lines:
            tokens = sum(len(tokenizer.encode(json.loads(line)["text"])) for line in lines)
        measures = {
            "score": lambda checkout: measure_score(checkout, scratch / "small", scratch, args.texts, tokens),
            "serve": lambda checkout: measure_serve(checkout, scratch / "model", args.megabytes),
            "train": lambda checkout: measure_train(checkout, args.model.resolve(), args.pairs.resolve(), scratch),
        }
        for name in args.only:
            for when, checkout in (("before", args.before.resolve()), ("now", HERE)):
                figures = measures[name](checkout)
                print(name, when, *(f"{figure} {value:.2f}" for figure, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
