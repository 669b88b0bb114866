"""How much of the speed of `rm.score` a server gives to many clients, and whether the rewards are the same.

python benchmarks/serve.py [--model {tiny,29M}] [--clients 32] [--texts 2000] [--words N] [--most 4]
                           [--before OLDER_CHECKOUT [--rounds 3]] [--shared ../shared] [--output FILE.json]

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
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle, islice
from pathlib import Path

from clients import ask_all
from forward import read_texts
from measure import MARK
from workload import SHARED

HERE, ROOT = Path(__file__).parent, Path(__file__).absolute().parents[1]
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


def make_requests(texts: list[str], most: int) -> list[list[str]]:
    """The texts in order, one to `most` in each request."""
    rng, rest = random.Random(0), deque(texts)
    return [[rest.popleft() for _ in range(min(rng.randint(1, most), len(rest)))] for _ in iter(lambda: len(rest), 0)]


def run_clients(port: int, texts: list[str], args: argparse.Namespace) -> dict:
    """All texts through the clients."""
    figures = ask_all(port, make_requests(texts, args.most), args.clients)
    rewards = [reward for answer in figures.pop("rewards") if answer for reward in answer]
    return figures | {"requests": len(figures.pop("latencies")), "rewards": rewards}


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


@contextmanager
def server(directory: Path, checkout: Path, timeout: float) -> Iterator[tuple[subprocess.Popen, int]]:
    """The process of a checkout's server, once it answers, and its port."""
    command = [sys.executable, "-m", "rm", "serve", "--model", directory, "--port", "0"]
    command += ["--max-length", f"{MAX_LENGTH}", "--max-batch-size", f"{BATCH_SIZE}", "--request-timeout", f"{timeout}"]
    env = os.environ | {"PYTHONPATH": str(checkout.absolute())}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env, cwd=checkout
    )  # `-m` looks there first
    try:
        greeting = process.stdout.readline() if process.stdout else ""
        yield process, int(greeting.rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(60)


def run_server(directory: Path, texts: list[str], args: argparse.Namespace) -> dict:
    timeout = 5
    with server(directory, ROOT, timeout) as (process, port):
        refused: dict[str, str] = {}
        hostile = threading.Thread(target=lambda: refused.update(misbehave(port, timeout)))
        hostile.start()
        figures = run_clients(port, texts, args)
        hostile.join()
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            figures["afterwards"] = ask(connection, json.dumps({"inputs": texts[:1]}).encode())[0]
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        batches = dict(re.findall(r"^rm_batch_sequences_(count|sum) (\S+)$", text, re.MULTILINE))
        figures["mean_batch"] = float(batches["sum"]) / float(batches["count"])
    return figures | {"refused": refused, "exit": process.returncode}


def wait_until_idle(pid: int) -> None:
    """Returns when a process has taken no time of a core for a second, and has nothing to compile any more."""
    before, now = -1.0, 0.0
    while now > before + 0.1:
        time.sleep(1)
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        before, now = now, sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def compare(directory: Path, texts: list[str], args: argparse.Namespace) -> None:
    """The load alone, on the server of an older checkout and on this one, in turn."""
    found: dict[str, list[dict]] = {"before": [], "now": []}
    print("| round | server | texts/s | p50 ms | p99 ms |\n|---|---|---:|---:|---:|", flush=True)
    for turn in range(args.rounds):
        for name, checkout in (("before", args.before), ("now", ROOT)):
            with server(directory, checkout, 30) as (process, port):
                run_clients(port, texts, args)
                wait_until_idle(process.pid)
                figures = run_clients(port, texts, args)
            figures["speed"] = len(texts) / figures["seconds"]
            found[name].append(figures)
            quantiles = " | ".join(f"{1000 * figures[each]:.0f}" for each in ("p50", "p99"))
            print(f"| {turn + 1} | {name} | {figures['speed']:.0f} | {quantiles} |", flush=True)
    speed, p99 = (
        [statistics.median(each[figure] for each in found[name]) for name in found] for figure in ("speed", "p99")
    )
    rewards = [each[0]["rewards"] for each in found.values()]
    difference = max(abs(a - b) for a, b in zip(*rewards, strict=True))
    print(
        f"texts/s {speed[1] / speed[0]:.2f} times, p99 {p99[1] / p99[0]:.2f} times; rewards differ by {difference:.1e}"
    )
    if difference > MAX_DIFFERENCE or any(each["errors"] for runs in found.values() for each in runs):
        sys.exit("failed: errors, or other rewards")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("tiny", "29M"), default="tiny")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--most", type=int, default=4, help="texts of a request")
    parser.add_argument("--words", type=int, help="of the end of a text, which alone is sent")
    parser.add_argument(
        "--before", type=Path, help="an older checkout, whose server bears the load in turn with this one's"
    )
    parser.add_argument("--rounds", type=int, default=3, help="with --before")
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
        if args.words:
            texts = [" ".join(text.split(" ")[-args.words :]) for text in texts]
        if args.before:
            return compare(directory, [*islice(cycle(texts), args.texts)], args)
        texts_file.write_text(json.dumps(texts))
        before = run_offline(directory, texts_file)
        served = run_server(directory, [*islice(cycle(texts), args.texts)], args)
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
