"""Files from strangers, changed at random, for as long as it is given: what the readers make of them, case by case.

The changes are those of tests/test_fuzz.py. Every target runs in a process of its own, so that a hang, a crash or a
process that takes too much memory is counted and the next one goes on.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}

SLOWEST = 5.0  # seconds of a processor for a case, so that what else runs here does not count
KILLED_AFTER = 20.0
MEMORY = 10**9  # bytes beyond what the process has when it begins
ADDRESSES = 16 * 2**30  # bytes that a process may ask for at most, so that the machine outlives it
CASES = 200  # of a process, between two of another target
COLUMNS = ("cases", "accepted", "RmError", "other exceptions", "slow", "hangs", "crashes", "over 1 GB")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(target: str, seed: int, pipe: Connection) -> None:
    """Cases one after the other; the parent hears of each before it begins and after it has ended."""
    import rm
    from tests.mutations import TARGETS, write_base

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)  # where Rust reports its panics
    with tempfile.TemporaryDirectory() as directory:
        write_base(Path(directory))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        begin = peak()
        pipe.send("ready")
        for number in range(seed, seed + CASES):
            start, outcome, found = time.process_time(), "accepted", ""
            try:
                TARGETS[target](Path(directory), random.Random(f"{target} {number}"))
            except rm.RmError:
                outcome = "RmError"
            except BaseException as error:
                outcome, found = "other exceptions", f"{type(error).__name__}: {error}"[:300]
            pipe.send((outcome, found, time.process_time() - start, peak() - begin))


def round_of(target: str, seed: int, counts: Counter[str], notes: list[str]) -> int:
    """Runs a process; returns how many cases it got through."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(target, seed, there), daemon=True)
    process.start()
    there.close()
    done, heavy = 0, False
    try:
        if not here.poll(120) or here.recv() != "ready":
            raise EOFError
        while done < CASES:
            if not here.poll(KILLED_AFTER):
                counts.update(("cases", "hangs"))
                notes.append(f"{target} {seed + done}: hangs")
                return done + 1
            outcome, found, seconds, memory = here.recv()
            counts.update(("cases", outcome))
            if found:
                notes.append(f"{target} {seed + done}: {found}")
            if seconds > SLOWEST + 1:
                counts["slow"] += 1
                notes.append(f"{target} {seed + done}: {seconds:.1f} s")
            if memory > MEMORY and not heavy:
                counts["over 1 GB"] += 1
                notes.append(f"{target} {seed + done}: {memory / 1e9:.1f} GB")
            heavy, done = memory > MEMORY, done + 1
    except EOFError:
        counts.update(("cases", "crashes"))
        process.join(5)
        notes.append(f"{target} {seed + done}: crashed with exit code {process.exitcode}")
        return done + 1
    finally:
        process.kill()
        process.join()
        here.close()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    from tests.mutations import TARGETS

    counts: dict[str, Counter[str]] = {target: Counter() for target in TARGETS}
    first: int = args.seed * 10**9
    seeds = dict.fromkeys(TARGETS, first)
    notes: list[str] = []
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        for target in TARGETS:
            if time.monotonic() < end:
                seeds[target] += round_of(target, seeds[target], counts[target], notes)
        if args.output:
            args.output.write_text(json.dumps({"seed": args.seed, "counts": counts, "notes": notes}, indent=2) + "\n")
    print(f"{'target':<17}" + "".join(f"{column:>18}" for column in COLUMNS))
    for target, count in (counts | {"all": sum(counts.values(), Counter())}).items():
        print(f"{target:<17}" + "".join(f"{count[column]:>18}" for column in COLUMNS))
    print("\n".join(notes[:200]))


if __name__ == "__main__":
    main()
