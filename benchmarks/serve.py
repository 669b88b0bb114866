"""How much of the speed of `rm.score` a server gives to many clients, and whether the rewards are the same.

python benchmarks/serve.py [--model {tiny,29M}] [--clients 32] [--texts 2000] [--shared ../shared] [--output FILE.json]

`tiny` is the real Llama of 260 k parameters in the shared folder with a head drawn at random, `29M` the reference
workload of peers.py. The texts are both sides of pairs of hh-rlhf, over again where more are asked for than there are;
every request takes the next one to four of them. Offline is one call of `rm.score` with each text once, in a process
of its own, before and after the server, the mean of both. While the server is under load, malformed, huge and slow
requests come, too.
"""

import argparse
import http.client
import json
import os
import queue
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path

from forward import read_texts
from measure import MARK
from workload import SHARED

HERE = Path(__file__).parent
MAX_DIFFERENCE = 1e-5
MIN_RATIO = 0.8
BATCH_SIZE, MAX_LENGTH = 64, 4096


def write_tiny(shared: Path, directory: Path) -> None:
    import jax

    import rm

    source = shared / "models" / "stories260K"
    model = rm.load_reward_model(source, key=jax.random.key(0))
    rm.save_reward_model(directory, *rm.match_tokenizer(model, rm.load_tokenizer(source)))


def score_offline(model_directory: Path, texts_file: Path) -> None:
    """The offline side's process: prints seconds and rewards."""

    import rm
    from rm.serving.scorer import Scorer

    rm.keep_compiled()
    model, tokenizer = rm.load_reward_model(model_directory), rm.load_tokenizer(model_directory)
    texts = json.loads(texts_file.read_text())
    for _ in Scorer(model, rm.Compute(), max_batch_size=BATCH_SIZE, max_length=MAX_LENGTH).compile():
        pass  # the server compiles behind the first requests, too
    rm.score(model, tokenizer, texts[:BATCH_SIZE], batch_size=BATCH_SIZE)
    start = time.perf_counter()
    rewards = rm.score(model, tokenizer, texts, batch_size=BATCH_SIZE)
    print(MARK + json.dumps({"seconds": time.perf_counter() - start, "rewards": rewards.tolist()}))


def run_offline(directory: Path, texts_file: Path) -> dict:
    command = [sys.executable, __file__, "--offline", directory, "--texts-file", texts_file]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK))


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, dict]:
    connection.request("POST", "/score", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def run_clients(port: int, texts: list[str], clients: int) -> dict:
    """All texts through so many clients, each with one connection and one request at a time."""
    rng, work = random.Random(0), queue.SimpleQueue()
    start, latencies, errors, rewards = 0, [], [], [float("nan")] * len(texts)
    while start < len(texts):
        stop = min(start + rng.randint(1, 4), len(texts))
        work.put(slice(start, stop))
        start = stop

    def client() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
            while True:
                try:
                    part = work.get_nowait()
                except queue.Empty:
                    return
                begin = time.perf_counter()
                try:
                    status, answer = ask(connection, json.dumps({"inputs": texts[part]}).encode())
                except (OSError, http.client.HTTPException) as problem:
                    errors.append(repr(problem))
                    continue
                latencies.append(time.perf_counter() - begin)
                if status == 200:
                    rewards[part] = answer["rewards"]
                else:
                    errors.append(f"{status} {answer}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "seconds": time.perf_counter() - begin,
        "requests": len(latencies),
        "errors": errors,
        "rewards": rewards,
        "p50": statistics.median(latencies),
        "p99": statistics.quantiles(latencies, n=100)[98],
    }


def misbehave(port: int, timeout: float) -> dict[str, str]:
    """The status lines of what must be refused."""
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    long = b'{"inputs":["' + b"a b c " * 10000 + b'"]}'
    huge = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    cases = {
        "malformed JSON": [head + b"Content-Length: 1\r\n\r\n{"],
        "wrong field": [head + b'Content-Length: 12\r\n\r\n{"inputs":5}'],
        "too many tokens": [head + f"Content-Length: {len(long)}\r\n\r\n".encode() + long],
        "9 MB declared": [head + b"Content-Length: 9437184\r\n\r\n", *[b" " * 0x10000] * 144],
        "12 MB in chunks": [head + b"Transfer-Encoding: chunked\r\n\r\n", *[huge] * 192, b"0\r\n\r\n"],
        "slow body": [head + b"Content-Length: 1000\r\n\r\n{"],
    }
    found = {}
    for name, parts in cases.items():
        begin = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=20 * timeout) as client:
            for part in parts:
                client.sendall(part)
            lines = client.makefile("rb").read().decode().splitlines()
        text = f"{lines[0]} {lines[-1]}" if lines else "closed without an answer"
        found[name] = f"{text} ({time.perf_counter() - begin:.1f} s)"
    return found


def run_server(directory: Path, texts: list[str], clients: int) -> dict:
    timeout = 5
    command = [sys.executable, "-m", "rm", "serve", "--model", directory, "--port", "0"]
    command += ["--max-length", f"{MAX_LENGTH}", "--max-batch-size", f"{BATCH_SIZE}", "--request-timeout", f"{timeout}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        greeting = process.stdout.readline() if process.stdout else ""
        port = int(greeting.rsplit(":", 1)[1])
        refused: dict[str, str] = {}
        hostile = threading.Thread(target=lambda: refused.update(misbehave(port, timeout)))
        hostile.start()
        figures = run_clients(port, texts, clients)
        hostile.join()
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            figures["afterwards"] = ask(connection, json.dumps({"inputs": texts[:1]}).encode())[0]
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        batches = dict(re.findall(r"^rm_batch_sequences_(count|sum) (\S+)$", text, re.MULTILINE))
        figures["mean_batch"] = float(batches["sum"]) / float(batches["count"])
    finally:
        process.terminate()
    return figures | {"refused": refused, "exit": process.wait(60)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("tiny", "29M"), default="tiny")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--least", type=float, default=MIN_RATIO, help="of the offline speed, to count as passed")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that has data/ and models/")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--offline", type=Path, help=argparse.SUPPRESS)  # the offline side's process, as the next one
    parser.add_argument("--texts-file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.offline:
        return score_offline(args.offline, args.texts_file)
    with tempfile.TemporaryDirectory() as folder:
        workload, texts_file = Path(folder) / "workload", Path(folder) / "texts.json"
        subprocess.run([sys.executable, HERE / "workload.py", args.shared.absolute(), "hh-rlhf", workload], check=True)
        directory = workload / "llama"
        if args.model == "tiny":
            directory = Path(folder) / "tiny"
            write_tiny(args.shared, directory)
        texts = read_texts(workload, args.texts)
        texts_file.write_text(json.dumps(texts))
        before = run_offline(directory, texts_file)
        served = run_server(directory, [*islice(cycle(texts), args.texts)], args.clients)
        after = run_offline(directory, texts_file)
    report(args, [before, after], served)
    return None


def report(args: argparse.Namespace, offline: list[dict], served: dict) -> None:
    rewards = served.pop("rewards")
    count, speed = len(rewards), len(rewards) / served["seconds"]
    speeds = [len(one["rewards"]) / one["seconds"] for one in offline]
    ratio = speed / statistics.mean(speeds)
    difference = max(abs(a - b) for a, b in zip(cycle(offline[0]["rewards"]), rewards, strict=False))
    print(f"{args.model}: {count} texts, {served['requests']} requests, {args.clients} clients, {os.cpu_count()} cores")
    print(f"offline {speeds[0]:.1f} and {speeds[1]:.1f} texts/s, served {speed:.1f} texts/s, ratio {ratio:.2f}")
    print(f"largest difference {difference:.1e}, errors {len(served['errors'])}, mean batch {served['mean_batch']:.1f}")
    print(f"latency p50 {served['p50'] * 1000:.0f} ms, p99 {served['p99'] * 1000:.0f} ms")
    for name, status in served["refused"].items():
        print(f"  {name}: {status}")
    print(f"afterwards {served['afterwards']}, exit code at SIGTERM {served['exit']}")
    if args.output:
        figures = {"offline": speeds, "served": speed, "ratio": ratio, "max_difference": difference, **served}
        args.output.write_text(json.dumps(figures, indent=2) + "\n")
    if served["errors"] or difference > MAX_DIFFERENCE or (served["afterwards"], served["exit"]) != (200, 0):
        sys.exit(f"failed: {served['errors'][:3]}, difference {difference:.1e}")
    if ratio < args.least:
        sys.exit(f"failed: {ratio:.2f} of the offline speed, expected {args.least}")


if __name__ == "__main__":
    main()
