"""Rows per second and peak memory of `python -m rm data` on one file, by this checkout and by an older one in turn."""

import argparse
import gzip
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def write_rows(source: Path, target: Path, rows: int, *, distinct: bool) -> None:
    """As many rows as asked for, those of the source again and again, or each message with the number of its row."""
    content = source.read_bytes()
    lines = (gzip.decompress(content) if source.suffix == ".gz" else content).splitlines(keepends=True)
    with target.open("wb") as file:
        for number, line in enumerate(itertools.islice(itertools.cycle(lines), rows)):
            file.write(line.replace(b'"content": "', b'"content": "%d ' % number) if distinct else line)


def measure(checkout: Path, model: Path, data: Path) -> tuple[float, float, float]:
    """Seconds, seconds of both cores, and peak memory in MB of a process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "rm", "data", "--model", model, "--dataset", data, "--show", "0"]
        environment = os.environ | {"HF_HOME": cache, "PYTHONPATH": str(checkout)}
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{checkout}: python -m rm data failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="the older checkout")
    parser.add_argument("--model", type=Path, required=True, help="a directory with config.json and a tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="preferences, .jsonl or .jsonl.gz")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--distinct", action="store_true", help="no message occurs in two rows")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "rows.jsonl"
        write_rows(args.data.resolve(), data, args.rows, distinct=args.distinct)
        for number in range(args.rounds):
            found = {}
            for name, checkout in (("before", args.before.resolve()), ("now", HERE)):
                found[name] = seconds, busy, memory = measure(checkout, args.model.resolve(), data)
                figures = f"{args.rows / seconds:.0f} rows/s, {busy:.0f} s of the cores, {memory:.0f} MB"
                print(f"round {number}, {name}: {figures}", flush=True)
            rate, memory = found["before"][0] / found["now"][0], found["now"][2] / found["before"][2]
            print(
                f"round {number}: {rate:.2f} times the rows per second, {memory:.2f} times the peak memory", flush=True
            )


if __name__ == "__main__":
    main()
