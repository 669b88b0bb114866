"""One update of Llama-1B and 8B shapes on one GPU: MFU, tokens per second, memory.

python benchmarks/gpu.py [--output build/gpu] [--minutes 8]

A full fine-tune of random weights on random pairs, 512 tokens of prompt and 768 of each response: rows of 2048,
bfloat16 compute. Each case (shape, attention, remat, types of weights and moments) runs in a process of its own, so
that one that runs out of memory or crashes costs a row of the table, and so that peaks of memory are its own. It needs
jax with CUDA, equinox, optax, jaxtyping, beartype and numpy, nothing else. `--tiny` checks the script itself on any
machine.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

from random_comparisons import random_comparisons

ROOT = Path(__file__).parents[1]
MARK = "result "
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "jaxtyping", "beartype", "numpy")
WARM_UP, TIMED = 3, 8
LEAST_SECONDS = 30  # a case is not begun with less time than this
ATTENTION = ("cudnn", "xla")
AIMS = {"1B": 0.45, "8B": 0.50}  # MFU on an H100 or H200

# Dense bfloat16 products, operations per second, by the name that the driver gives: NVIDIA's data sheets "H100 Tensor
# Core GPU" (SXM: 1,979 TFLOPS with sparsity, which doubles it), "H200 Tensor Core GPU", "A100 Tensor Core GPU".
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


class Shape(NamedTuple):
    """An architecture and the comparisons of its updates."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    pairs: int = 8
    lengths: tuple[int, int, int] = (512, 768, 768)  # prompt and two responses, in tokens


SHAPES = {
    "1B": Shape(128256, 2048, 8192, 16, 32, 8),
    "8B": Shape(128256, 4096, 14336, 32, 32, 8),
    "tiny": Shape(128, 64, 128, 3, 4, 2, pairs=2, lengths=(32, 64, 64)),
}


class Types(NamedTuple):
    """What weights and moments are kept in; gradients have the type of the weights."""

    weights: str
    moments: str

    @property
    def bytes(self) -> int:
        """Of a parameter: weight, two moments, gradient."""
        size = {"float32": 4, "bfloat16": 2}
        return 2 * size[self.weights] + 2 * size[self.moments]


# The update is one jit over one micro-batch, so the only gradients are those of the backward pass: XLA folds their
# conversion to float32 into the optimizer. (`jit_update` keeps float32 sums between its parts: up to 4 bytes more.)
#
# | weights, moments   | bytes a parameter | 1B, 1.24e9 | 8B, 7.50e9 |
# |--------------------|-------------------|------------|------------|
# | float32, float32   | 4 + 8 + 4 = 16    |  20 GB     | 120 GB     |
# | float32, bfloat16  | 4 + 4 + 4 = 12    |  15 GB     |  90 GB     |
# | bfloat16, bfloat16 | 2 + 4 + 2 =  8    |  10 GB     |  60 GB     |
#
# Under full remat the inputs of the layers come on top, 16 · 16384 · 2048 · 2 bytes = 1.1 GB (1B) or 4.3 GB (8B), and
# 6 to 8 GB for what one layer computes, a region's float32 scores among it (8 rows · 32 heads · 768 · 1280, 1 GB each).
# Compiled ahead of time for an H100 (jax 0.10.2, `xla` attention, full remat) the plan is 27 GB for 1B in float32, and
# for 8B 131, 101 and 72 GB in the order of the table. So 8B fits 80 GB in bfloat16 alone and 141 GB in any form. The
# plan for 1B without remat is 123 GB.
#
# Weights and moments of bfloat16 that are rounded to the nearest value hardly move at a small learning rate and at
# β₂ = 0.999: to train in them takes stochastic rounding. Time and memory, which are measured here, do not depend on it.
TYPES = {
    "f32, f32": Types("float32", "float32"),
    "f32, bf16": Types("float32", "bfloat16"),
    "bf16, bf16": Types("bfloat16", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures."""

    shape: str
    attention: Any  # one of rm.model.attention_choice.Attention
    remat: Any  # one of rm.model.llama.Remat
    types: str  # one of TYPES


def list_cases(shapes: list[str], attention: list[str]) -> list[Case]:
    """The cases, what matters most first, for the time may run out."""
    order = [
        ("1B", "full", "f32, f32"),
        ("8B", "full", "bf16, bf16"),
        ("1B", "dots", "f32, f32"),
        ("8B", "dots", "bf16, bf16"),
        ("1B", "none", "f32, f32"),
        ("8B", "full", "f32, bf16"),
        ("8B", "full", "f32, f32"),
        *(("tiny", remat, "f32, f32") for remat in ("full", "dots", "none")),
        ("tiny", "full", "f32, bf16"),
        ("tiny", "full", "bf16, bf16"),
    ]
    return [Case(shape, form, remat, kept) for shape, remat, kept in order if shape in shapes for form in attention]


# What runs in a process of its own


def find_rm() -> None:
    """Makes `rm` of this checkout importable, without its `__init__` where a package that one imports is missing."""
    sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("tokenizers") is None:  # no update needs it, but rm/__init__.py brings it in
        package = types.ModuleType("rm")
        package.__path__ = [str(ROOT / "rm")]
        sys.modules["rm"] = package


def llama(shape: str):
    """The configuration of a shape."""
    from rm.model.config import LlamaConfig, Rope

    architecture = SHAPES[shape]._asdict()
    del architecture["pairs"], architecture["lengths"]
    return LlamaConfig(**architecture, rope=Rope(theta=500000.0))


def probe() -> dict[str, Any]:
    """What the machine and `rm` have."""
    import jax

    from rm.model.attention_choice import Attention
    from rm.planning.flops import count_parameters

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "attention": get_args(Attention),
        "parameters": {name: count_parameters(llama(name)) for name in SHAPES},
        "versions": {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "runtime": " ".join(device.client.platform_version.split()),
    }


def measure(case: Case) -> dict[str, Any]:
    """Compiles the update of a case and times it."""
    import jax

    from rm.packing.batches import plan_batches
    from rm.planning.flops import count_work, update_flops

    config, shape = llama(case.shape), SHAPES[case.shape]
    comparisons = random_comparisons(config, shape.pairs, *shape.lengths)
    # as many processes as pairs make one micro-batch of as many rows
    plan = plan_batches(comparisons, shape.pairs, rows=shape.pairs, micro_batch_tokens=sum(shape.lengths))
    batches = jax.device_put(plan.batch_at(0))
    state, advance = make_update(case)
    start = time.perf_counter()
    compiled = advance.lower(state, batches).compile()
    compile_seconds = time.perf_counter() - start
    seconds, loss = time_updates(compiled, state, batches)
    work = count_work(comparisons.lengths)
    return {
        "compile_seconds": compile_seconds,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "loss": loss,
        "flops": update_flops(config, work).total,
        "flops_with_recomputation": update_flops(config, work, remat=case.remat).total,
        "pairs": shape.pairs,
        "computed": sum(batch.tokens.size for batch in batches),
        "logical": int(comparisons.num_tokens.sum()),
        "rows": [[len(batch.tokens), *batch.regions] for batch in batches],
        "compiled_bytes": compiled_bytes(compiled),
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def make_update(case: Case):
    """The state of random weights, and the jitted update that takes it."""
    import jax
    import jax.numpy as jnp

    from rm.model.compute import Compute
    from rm.model.llama import rewards
    from rm.training.losses import pairwise_loss
    from rm.training.optimizers import adamw
    from rm.training.step import init_state, update

    kept = TYPES[case.types]

    def objective(model, batch):
        r = rewards(model, batch, Compute(dtype=jnp.bfloat16, remat=case.remat, attention=case.attention))
        return pairwise_loss(r[..., 0], r[..., 1], batch.margin), r

    optimizer = adamw(1e-5)
    if kept.moments == "bfloat16":
        optimizer = with_bfloat16_moments(optimizer)
    # jitted, for the float32 copy of the weights that moments are shaped after would not fit
    start = jax.jit(partial(init_state, optimizer=optimizer), donate_argnums=0)
    state = start(random_model(case.shape, jnp.dtype(kept.weights)))
    return state, jax.jit(partial(update, objective=objective, optimizer=optimizer), donate_argnums=0)


def random_model(shape: str, dtype):
    """What `init_reward_model` draws, leaf by leaf, because blocks and their stack together would not fit."""
    import jax
    import jax.numpy as jnp

    from rm.model.llama import init_reward_model

    config = llama(shape)
    shapes = jax.eval_shape(partial(init_reward_model, config, key=jax.random.key(0), dtype=dtype))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))  # threefry's counters take gigabytes
    normal = jax.jit(
        lambda key, shape, dtype: config.initializer_range * jax.random.normal(key, shape, dtype),
        static_argnums=(1, 2),
    )

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        is_norm = "norm" in jax.tree_util.keystr(path)
        return jnp.ones(leaf.shape, leaf.dtype) if is_norm else normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(tree, [draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)])


def with_bfloat16_moments(optimizer):
    """The same optimizer with both moments in bfloat16; optax's own option, `mu_dtype`, has the first one alone."""
    import jax
    import jax.numpy as jnp
    import optax

    def rounded(state):
        is_float = partial(jnp.issubdtype, arg2=jnp.floating)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if is_float(leaf.dtype) else leaf, state)

    def update(updates, state, params=None):
        updates, state = optimizer.update(updates, state, params)
        return updates, rounded(state)

    return optax.GradientTransformation(lambda params: rounded(optimizer.init(params)), update)


def time_updates(compiled, state, batches) -> tuple[list[float], float]:
    """Seconds of each timed update, and the loss of the last one."""
    import jax

    seconds, loss = [], float("nan")
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batches))
        seconds.append(time.perf_counter() - start)
        loss = float(metrics["loss"])
    return seconds[WARM_UP:], loss


def compiled_bytes(compiled) -> int | None:
    """Memory that the compiler planned: state, batch and everything in between."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    arguments_and_outputs = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return arguments_and_outputs + plan.temp_size_in_bytes


def answer(question: str) -> None:
    """The whole of such a process: prints one line that `ask` reads, with the error where there was one."""
    find_rm()
    try:
        result = probe() if question == "probe" else measure(Case(**json.loads(question)))
    except Exception as error:  # whatever went wrong with one case is a row of the table
        out_of_memory = "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
        line = next(iter(str(error).splitlines()), "")
        result = {"error": "out of memory" if out_of_memory else f"{type(error).__name__}: {line}"[:160]}
        result["detail"] = str(error)[:4000]
    print(MARK + json.dumps(result), flush=True)


# What starts these processes and prints


def ask(question: str, seconds: float) -> dict[str, Any]:
    """The answer of a process, which is ended after `seconds`."""
    # a fraction of the memory is taken at once; the usual 75 % would leave out cases that fit
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"} | os.environ
    command = [sys.executable, __file__, "--answer", question]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": "stopped: the time was up"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return json.loads(lines[-1].removeprefix(MARK))
    last = next(reversed(done.stderr.strip().splitlines()), "")
    return {"error": f"crashed, exit code {done.returncode}: {last}"[:160], "detail": done.stderr[-4000:]}


def run_case(case: Case, machine: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The figures of a case, or under `error` why there are none."""
    if seconds < LEAST_SECONDS:
        return {"error": "not run: the time was up"}
    need, room = TYPES[case.types].bytes * machine["parameters"][case.shape], machine["bytes"]
    if room and need > room:
        return {"error": f"not run: state and gradients take {need / 1e9:.0f} GB of {room / 1e9:.0f} GB"}
    result = ask(json.dumps(dataclasses.asdict(case)), seconds)
    if "error" not in result and machine["platform"] == "gpu" and machine["device"] in PEAKS:
        possible = PEAKS[machine["device"]] * result["seconds"]
        result |= {"mfu": result["flops"] / possible, "hfu": result["flops_with_recomputation"] / possible}
    return result


HEADER = (
    "| shape | attention | remat | weights, moments | MFU | with recomputation | s/update (min–max) "
    "| computed tokens/s | logical tokens/s | pairs/s | peak GB | planned GB | compile s |\n" + "|---" * 13 + "|"
)


def table_row(case: Case, result: dict[str, Any]) -> str:
    """A case as a row of the table."""
    cells = [case.shape, case.attention, case.remat, case.types]
    if "error" in result:
        return "| " + " | ".join([*cells, result["error"].replace("|", "/"), *[""] * 8]) + " |"
    seconds, spread = result["seconds"], result["all_seconds"]
    cells += [f"{result[name]:.1%}" if name in result else "–" for name in ("mfu", "hfu")]
    cells += [f"{seconds:.3f} ({min(spread):.3f}–{max(spread):.3f})"]
    cells += [f"{result[name] / seconds:,.0f}" for name in ("computed", "logical")]
    cells += [f"{result['pairs'] / seconds:.1f}"]
    cells += [f"{result[name] / 1e9:.1f}" if result[name] else "–" for name in ("peak_bytes", "compiled_bytes")]
    return "| " + " | ".join([*cells, f"{result['compile_seconds']:.0f}"]) + " |"


def print_machine(machine: dict[str, Any], tiny: bool) -> None:
    """The lines above the table."""
    if tiny:
        print("A check of this script with a toy shape: these are no figures for the log.\n")
    memory = f", {machine['bytes'] / 1e9:.0f} GB for use" if machine["bytes"] else ""
    print(f"Machine:   {machine['device']} ({machine['platform']}){memory}; {machine['runtime']}")
    print("Versions:  " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(f"Command:   {command_line()}")
    print(f"Runs:      {WARM_UP} updates to warm up, median of {TIMED}; a fresh process for each case\n")
    for form in ATTENTION:
        if form not in machine["attention"]:
            print(f"attention {form!r}: rm does not have it, left out\n")
    if machine["device"] not in PEAKS:
        print(f"MFU left out: the peak rate of {machine['device']!r} is not in the table of this script\n")


def command_line() -> str:
    return " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])


def print_aims(rows: list[dict[str, Any]]) -> None:
    """The best MFU of each shape against what it should be."""
    for shape, aim in AIMS.items():
        best = max((row["mfu"] for row in rows if row["shape"] == shape and "mfu" in row), default=None)
        if best is not None:
            print(f"{shape}: best MFU {best:.1%}, aim {aim:.0%}: {'reached' if best >= aim else 'missed'}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="cases that have not begun by then are left out")
    parser.add_argument("--shapes", nargs="+", choices=list(AIMS), default=list(AIMS))
    parser.add_argument("--tiny", action="store_true", help="a toy shape on any machine, to check the script")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.answer:
        return answer(args.answer)
    deadline = time.monotonic() + 60 * args.minutes
    machine = ask("probe", 60 * args.minutes)
    if "error" in machine:
        sys.exit(f"no GPU: jax does not start ({machine['error']})")
    if machine["platform"] != "gpu" and not args.tiny:
        sys.exit(f"no GPU: jax sees {machine['device']} ({machine['platform']}) alone; --tiny checks the script there")
    print_machine(machine, args.tiny)
    print(HEADER, flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"command": command_line(), "tiny": args.tiny, "machine": machine, "cases": []}
    forms = [form for form in ATTENTION if form in machine["attention"]]
    for case in list_cases(["tiny"] if args.tiny else args.shapes, forms):
        result = run_case(case, machine, deadline - time.monotonic())
        print(table_row(case, result), flush=True)
        record["cases"].append(dataclasses.asdict(case) | result)
        (args.output / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print()
    print_aims(record["cases"])
    return None if any("seconds" in row for row in record["cases"]) else sys.exit("no case ran to its end")


if __name__ == "__main__":
    main()
