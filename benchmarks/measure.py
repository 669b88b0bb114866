"""What a system's run of the reference workload takes as arguments and prints, the same for every system."""

import argparse
import json
import resource
import time
from pathlib import Path

MARK = "result "


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--variant", default="default")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, default=time.time())
    return parser.parse_args()


class Steps:
    """Times updates from the end of the first one; counts what they computed."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.first, self.done = args, None, 0
        self.total = {"pairs": 0, "computed": 0, "logical": 0}

    def add(self, **counts: int) -> None:
        """Counts the work of the update under way; `logical` tokens are those of both sides without padding."""
        for name, count in counts.items():
            self.total[name] += count

    def end(self, *, timed: bool = True) -> None:
        """Ends an update. The first one, and those with `timed=False`, do not count."""
        now = time.perf_counter()
        if self.first is None:
            self.first = time.time() - self.args.started
        if self.done == 0 or not timed:
            self.total, self.begin = dict.fromkeys(self.total, 0), now
        self.done, self.seconds = self.done + 1, now - self.begin

    def report(self, versions: dict[str, str]) -> None:
        """Prints the line that peers.py reads."""
        rates = {f"{name}_per_second": count / self.seconds for name, count in self.total.items()}
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {"seconds": self.seconds, **self.total, **rates, "peak_gib": memory, "first_step_seconds": self.first}
        print(MARK + json.dumps(figures | {"versions": versions}), flush=True)
