"""Where the time of an update goes on a CPU: one row of the reference workload of peers.py.

python benchmarks/breakdown.py [--tokens 1280] [--rounds 15] [--shared ../shared] [--output FILE.json]

Seconds of the cores come from the operating system: in code (user) and in the kernel, which is there for new pages of
memory. What the code does comes from JAX's profiler, which sees operations on the threads that start them. The floor
is the operations of the products with weights at the rate of a plain product of the same type in the same run.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from workload import SHARED

import rm
from rm.planning.flops import count_work, update_flops

HERE = Path(__file__).parent
PRODUCT = (2048, 512, 1376)
KINDS: tuple[str, ...] = ("products with weights", "attention", "passes over activations and weights")


def load(workload: Path, tokens: int):
    """The model, the first row of so many tokens, and the operations of its products with weights."""
    model, tokenizer = rm.load_reward_model(workload / "llama"), rm.load_tokenizer(workload / "llama")
    rows = rm.load_comparisons(workload / "pairs.jsonl")
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config, cache=False)
    plan = rm.plan_batches(comparisons, 8, shuffle=False)
    for step in range(plan.steps_per_epoch):
        for batch in plan.batch_at(step):
            if batch.tokens.shape == (1, tokens):
                index = batch.index[batch.mask]
                return model, batch, update_flops(model.config, count_work(comparisons.lengths[index])).products
    sys.exit(f"no row of {tokens} tokens in this workload")


def product_rate(dtype: str, rounds: int) -> float:
    """Operations per second of a plain product, float32 results."""
    rows, inner, columns = PRODUCT
    a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    return 2 * rows * inner * columns / measure(lambda: product(a, b), 10 * rounds)["best"]


def measure(function: Callable, rounds: int) -> dict[str, float]:
    """Median and smallest seconds of a call, and what the cores did for one on average."""
    jax.block_until_ready(function())
    before, each = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function())
        each.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    names = {"user": "ru_utime", "kernel": "ru_stime", "new pages": "ru_minflt"}
    spent = {name: (getattr(after, field) - getattr(before, field)) / rounds for name, field in names.items()}
    return {"wall": statistics.median(each), "best": min(each), **spent}


def kinds_of(program: str) -> dict[str, str]:
    """Of every operation of a compiled program what it is for; loops are attention's, but for a table of rotations."""
    kinds, entry = {}, False
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY")):
            entry = line.startswith("ENTRY")
        elif found := re.match(r"\s+(?:ROOT )?%([\w.-]+) = ", line):
            product = "/dot_general" in line and ("ynn" in line or " dot(" in line)
            loop = not entry or " while(" in line
            kinds.setdefault(found[1], KINDS[1] if loop else KINDS[0] if product else KINDS[2])
    return kinds


def profile(function: Callable, program: str, rounds: int) -> dict[str, float]:
    """Seconds that a call spends on each kind of operation, those within another one not counted twice."""
    kinds, options = kinds_of(program), jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(rounds):
                jax.block_until_ready(function())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        total = dict.fromkeys(KINDS, 0.0)
        for line in (line for plane in data.planes for line in plane.lines if "XLA" in line.name):
            for name, seconds in own_seconds(line.events):
                if name in kinds:
                    total[kinds[name]] += seconds / rounds
    return total


def own_seconds(events: Iterable) -> Iterable[tuple[str, float]]:
    """Of every event of a thread the seconds that no event within it takes, as terms of a sum."""
    within: list[tuple[float, str]] = []
    for start, negative, name in sorted((event.start_ns, -event.duration_ns, event.name) for event in events):
        while within and within[-1][0] <= start:
            within.pop()
        if within:
            yield within[-1][1], negative / 1e9
        yield name, -negative / 1e9
        within.append((start - negative, name))


def break_down(workload: Path, tokens: int, dtype: str, rounds: int) -> dict[str, float]:
    """The gradient of one row and the optimizer's step."""
    model, batch, products = load(workload, tokens)

    def objective(model, batch):
        r = rm.rewards(model, batch, rm.Compute(dtype=dtype, remat="none"))
        return rm.pairwise_loss(r[..., 0], r[..., 1]), r

    optimizer = rm.adamw(1e-5)
    state = rm.init_state(model, optimizer)
    gradient = jax.jit(partial(rm.accumulate, None, objective=objective)).lower(state.model, batch).compile()
    sums = gradient(state.model, batch)
    finish = jax.jit(partial(rm.apply_gradients, optimizer=optimizer), donate_argnums=0)
    rate = product_rate(dtype, rounds)

    def step():
        nonlocal state
        state, metrics = finish(state, sums, skip_above=np.float32(np.inf))
        return state, metrics

    def calculate():
        return gradient(state.model, batch)

    parts = {"gradient": measure(calculate, rounds), "optimizer": measure(step, rounds)}
    figures = {f"{part}, {name}": value for part, spent in parts.items() for name, value in spent.items()}
    figures |= profile(calculate, gradient.as_text() or "", 5)
    return figures | {"floor of the products": products / rate, "a plain product, GFLOP/s": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1280, help="length of the row")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "hh"
        subprocess.run([sys.executable, HERE / "workload.py", args.shared.absolute(), "hh-rlhf", workload], check=True)
        found = {d: break_down(workload, args.tokens, d, args.rounds) for d in ("float32", "bfloat16")}
    print(f"| a row of {args.tokens} tokens: ms | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
    for name in found["float32"]:
        factor = 1 if name.endswith("new pages") else 1e-9 if name.endswith("/s") else 1e3
        print(f"| {name} | {' | '.join(f'{each[name] * factor:,.0f}' for each in found.values())} |")
    if args.output:
        args.output.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
