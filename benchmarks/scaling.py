"""Time and memory of an update against sequence length, batch size, layers, K and prefix share, with what must be paid.

python benchmarks/scaling.py [--output build/scaling]

Draws scaling.png and writes scaling.json. A small Llama with random weights, one comparison to a row, float32. The
floor of the time is the operations that the comparisons ask for at the rate of a plain matrix product, measured in the
same run. The floor of the memory is the gradients and the carries: the inputs of all layers, which full remat keeps.
`--quick` checks the script with a toy model.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from random_comparisons import random_comparisons

import rm
from rm.model.compute import Remat
from rm.planning.flops import count_parameters, count_work, update_flops

REMAT: tuple[Remat, ...] = ("full", "none")
PRODUCT = (2048, 1024, 1024)


@dataclasses.dataclass(frozen=True)
class Point:
    """The work of an update. `sequence` is the length of prompt and response, `share` the prompt's part of it."""

    sequence: int = 512
    batch: int = 2
    layers: int = 4
    K: int = 2
    share: float = 0.5

    @property
    def lengths(self) -> list[int]:
        """Tokens of the prefix and of each response."""
        prefix = round(self.share * self.sequence)
        return [prefix, *[self.sequence - prefix] * self.K]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One curve: the field of `Point` that varies, and the others where they are not the usual ones."""

    field: str
    label: str
    values: tuple[float, ...]
    base: Point
    log: bool = False

    def points(self) -> list[Point]:
        return [dataclasses.replace(self.base, **{self.field: value}) for value in self.values]


PANELS = (
    Panel("sequence", "sequence length (tokens)", (128, 256, 512, 1024, 2048, 4096), Point(batch=1), log=True),
    Panel("batch", "batch size (comparisons)", (1, 2, 4, 8), Point(), log=True),
    Panel("layers", "layers", (3, 4, 8, 16), Point()),
    Panel("K", "K (responses of a comparison)", (2, 3, 4, 8), Point()),
    Panel("share", "prefix share of a sequence", (0.0, 0.25, 0.5, 0.75, 0.9375), Point(sequence=1024)),
)
QUICK = (
    Panel("sequence", "sequence length (tokens)", (128, 256, 512), Point(128, layers=2), log=True),
    Panel("batch", "batch size (comparisons)", (1, 2, 4), Point(128, layers=2), log=True),
    Panel("layers", "layers", (3, 4), Point(128)),
    Panel("K", "K (responses of a comparison)", (2, 3), Point(128, layers=2)),
    Panel("share", "prefix share of a sequence", (0.0, 0.5), Point(128, layers=2)),
)


def llama(layers: int, quick: bool) -> rm.LlamaConfig:
    """The architecture of all points but for the layers."""
    return rm.LlamaConfig(
        vocab_size=1024,
        hidden_size=64 if quick else 256,
        intermediate_size=172 if quick else 688,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )


def product_rate(rounds: int) -> float:
    """Operations per second of a plain float32 matrix product, the best of `rounds`."""
    rows, inner, columns = PRODUCT
    a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    product = jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    jax.block_until_ready(product(a, b))
    return 2 * rows * inner * columns / min(seconds_of(lambda: product(a, b)) for _ in range(rounds))


def seconds_of(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


@cache
def objective_of(remat: Remat):
    """The mean over neighbours in the order of preference, so that every response counts."""

    def objective(model, batch):
        r = rm.rewards(model, batch, rm.Compute(remat=remat))
        return rm.pairwise_loss(r[..., :-1], r[..., 1:]).mean(-1), r

    return objective


class Update:
    """The update of `rm.jit_update` from the same parts, with the plan of memory of the one that counts."""

    def __init__(self):
        self.optimizer = rm.adamw(1e-5)
        self.finish = jax.jit(partial(rm.apply_gradients, optimizer=self.optimizer), donate_argnums=0)

    def measure(self, point: Point, remat: Remat, *, quick: bool, rounds: int) -> dict[str, Any]:
        """Median seconds of an update, and the bytes that the compiler plans for `rm.accumulate` beside its inputs."""
        config = llama(point.layers, quick)
        batch = one_batch(random_comparisons(config, point.batch, *point.lengths), point)
        state = rm.init_state(rm.init_reward_model(config, key=jax.random.key(0)), self.optimizer)
        accumulate = jax.jit(partial(rm.accumulate, None, objective=objective_of(remat)))
        compiled = accumulate.lower(state.model, batch).compile()
        seconds = []
        for _ in range(1 + rounds):
            begin = time.perf_counter()
            state, metrics = self.finish(state, compiled(state.model, batch))
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - begin)
        return {"seconds": statistics.median(seconds[1:]), **planned_bytes(compiled)}


def planned_bytes(compiled) -> dict[str, int]:
    """Memory beside the inputs: temporary buffers, and with the results, which are the gradients."""
    plan = compiled.memory_analysis()
    if plan is None:
        sys.exit(f"jax {jax.__version__} has no plan of the memory on {jax.default_backend()}")
    temporary = plan.temp_size_in_bytes
    return {"temporary_bytes": temporary, "bytes": temporary + plan.output_size_in_bytes - plan.alias_size_in_bytes}


def one_batch(comparisons: rm.TokenizedComparisons, point: Point) -> rm.PreferenceBatch:
    """All comparisons in one micro-batch, a row each: as many processes as comparisons have as many rows."""
    plan = rm.plan_batches(comparisons, point.batch, rows=point.batch, micro_batch_tokens=sum(point.lengths))
    (batch,) = plan.batch_at(0)
    if batch.tokens.size != point.batch * sum(point.lengths):
        raise ValueError(f"expected rows without padding, found {batch.tokens.shape} for lengths {point.lengths}")
    return batch


def bounds(point: Point, quick: bool) -> dict[str, Any]:
    """What the comparisons ask for: operations under each remat, bytes of gradients and of the inputs of layers."""
    config = llama(point.layers, quick)
    work = count_work(np.array([point.lengths] * point.batch))
    flops = {remat: update_flops(config, work, remat=remat) for remat in REMAT}
    return {
        "tokens": work.tokens,
        "products": {remat: flops[remat].products for remat in REMAT},
        "attention": {remat: flops[remat].attention for remat in REMAT},
        "gradients": 4 * count_parameters(config),
        "carries": 4 * point.layers * work.tokens * config.hidden_size,
    }


def run(panels: tuple[Panel, ...], *, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Every point of every panel, the points that panels share once."""
    update = Update()
    measured: dict[Point, dict[str, Any]] = {}
    for point in dict.fromkeys(point for panel in panels for point in panel.points()):
        figures = {remat: update.measure(point, remat, quick=quick, rounds=rounds) for remat in REMAT}
        measured[point] = dataclasses.asdict(point) | bounds(point, quick) | {"measured": figures}
        print(f"{point}: " + ", ".join(f"{remat} {f['seconds']:.3f} s" for remat, f in figures.items()), flush=True)
    return [{"field": panel.field, "points": [measured[point] for point in panel.points()]} for panel in panels]


def floor_seconds(points: list[dict], remat: Remat, rate: float) -> np.ndarray:
    return np.array([p["products"][remat] + p["attention"][remat] for p in points]) / rate


def values(points: list[dict], remat: Remat, name: str) -> np.ndarray:
    return np.array([p["measured"][remat][name] for p in points])


def fit_time(points: list[dict], remat: Remat, rate: float) -> dict[str, float]:
    """Over the sequence lengths: `seconds ≈ constant + products / a + attention / b`, by least relative squares.

    No rate may exceed that of the plain product, nor the constant be negative: a fit to noise must not make one term
    pay for another.
    """
    terms = [np.ones(len(points)), *(np.array([p[name][remat] for p in points]) for name in ("products", "attention"))]
    design = np.stack(terms, axis=1) / values(points, remat, "seconds")[:, None]
    least = np.array([0.0, 1 / rate, 1 / rate])
    found = least + nonnegative_least_squares(design, 1 - design @ least)
    return {
        "constant_seconds": float(found[0]),
        "products_per_second": float(1 / found[1]),
        "attention_per_second": float(1 / found[2]),
        "largest_error": float(np.abs(design @ found - 1).max()),
    }


def nonnegative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`argmin |a x - b|` over `x ≥ 0`: the best of the solutions with some of the few columns left out."""
    best = np.zeros(a.shape[1])
    for columns in (list(some) for n in range(a.shape[1]) for some in combinations(range(a.shape[1]), n + 1)):
        scale = a[:, columns].max(axis=0)
        x = np.zeros(a.shape[1])
        x[columns] = np.linalg.lstsq(a[:, columns] / scale, b, rcond=None)[0] / scale
        if (x >= 0).all() and np.linalg.norm(a @ x - b) < np.linalg.norm(a @ best - b):
            best = x
    return best


def summarize(panels: list[dict], rate: float) -> dict[str, Any]:
    """What the curves say in numbers, for each remat."""
    by_field = {panel["field"]: panel["points"] for panel in panels}
    out: dict[str, Any] = {}
    for remat in REMAT:
        fit = fit_time(by_field["sequence"], remat, rate)
        curves = {field: summarize_curve(points, remat, rate, fit) for field, points in by_field.items()}
        out[remat] = {"fit": fit, "curves": curves, "layer": layer_bytes(by_field["layers"], remat)}
    return out


def summarize_curve(points: list[dict], remat: Remat, rate: float, fit: dict[str, float]) -> dict[str, float]:
    """The slope of the time beside attention against the products, 1 where it is linear, and how near the floor is."""
    seconds = values(points, remat, "seconds")
    attention = np.array([p["attention"][remat] for p in points]) / fit["attention_per_second"]
    beside = seconds - attention - fit["constant_seconds"]
    products, real = np.array([p["products"][remat] for p in points]), beside > 0
    enough = real.sum() > 1
    shares = floor_seconds(points, remat, rate) / seconds
    return {
        "slope": float(np.polyfit(np.log(products[real]), np.log(beside[real]), 1)[0]) if enough else float("nan"),
        "floor_least": float(shares.min()),
        "floor_most": float(shares.max()),
        "attention_most": float((attention / seconds).max()),
    }


def layer_bytes(points: list[dict], remat: Remat) -> dict[str, float]:
    """What each further layer takes: all of it, and of that its gradients and its carry."""
    layers = np.array([p["layers"] for p in points])
    used = {name: np.array([p[name] for p in points]) for name in ("gradients", "carries")}
    used["measured"] = values(points, remat, "bytes")
    return {name: float(np.polyfit(layers, size, 1)[0]) for name, size in used.items()}


def print_summary(summary: dict[str, Any], rate: float) -> None:
    print(f"\nfloat32 product {'×'.join(map(str, PRODUCT))}: {rate / 1e9:.0f} GFLOP/s")
    for remat, part in summary.items():
        fit, layer = part["fit"], {name: size / 2**20 for name, size in part["layer"].items()}
        beyond = layer["measured"] - layer["gradients"] - layer["carries"]
        print(
            f"\nremat {remat}. Over the sequence lengths: time = {1e3 * fit['constant_seconds']:.1f} ms + products at "
            f"{fit['products_per_second'] / 1e9:.0f} GFLOP/s + attention at "
            f"{fit['attention_per_second'] / 1e9:.0f} GFLOP/s, off by at most {fit['largest_error']:.0%}.\n"
            f"Each further layer takes {layer['measured']:.1f} MiB: gradients {layer['gradients']:.1f}, "
            f"carry {layer['carries']:.1f}, beyond these {beyond:.1f}.\n\n"
            "| curve | slope beside attention, 1 is linear | floor / time | attention / time at most |\n"
            "|---|---|---|---|"
        )
        for field, row in part["curves"].items():
            shares = f"{row['floor_least']:.0%}–{row['floor_most']:.0%}"
            print(f"| {field} | {row['slope']:.2f} | {shares} | {row['attention_most']:.0%} |")


COLORS: dict[Remat, str] = {"full": "#0072B2", "none": "#D55E00"}  # of Okabe & Ito, distinct to any eye
MARKERS: dict[Remat, str] = {"full": "o", "none": "s"}


def draw(panels: tuple[Panel, ...], results: list[dict], rate: float, path: Path, *, title: str) -> None:
    """Time above, memory below, a column for each panel."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(panels), figsize=(4 * len(panels), 7.5), layout="constrained", squeeze=False)
    for column, (panel, result) in enumerate(zip(panels, results, strict=True)):
        points, above, below = result["points"], axes[0, column], axes[1, column]
        for remat in REMAT:
            style = {"color": COLORS[remat], "marker": MARKERS[remat]}
            floor = floor_seconds(points, remat, rate)
            above.plot(panel.values, values(points, remat, "seconds"), **style, label=f"remat {remat}")
            above.plot(panel.values, floor, "--", color=COLORS[remat], label=f"FLOP floor, remat {remat}")
            below.plot(panel.values, values(points, remat, "bytes") / 2**20, **style, label=f"remat {remat}")
        gradients, carries = (np.array([p[name] for p in points]) / 2**20 for name in ("gradients", "carries"))
        below.plot(panel.values, gradients + carries, "--", color="#000000", label="gradients and carries")
        below.plot(panel.values, carries, ":", color="#000000", label="carries alone")
        for axis in (above, below):
            scale_axes(axis, panel)
        below.set_xlabel(panel.label)
        above.set_title(describe(panel), fontsize=9)
    axes[0, 0].set_ylabel("time of an update (s)")
    axes[1, 0].set_ylabel("peak memory beside the inputs (MiB)")
    for row in axes:
        handles, labels = row[0].get_legend_handles_labels()
        row[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def scale_axes(axis, panel: Panel) -> None:
    """Ticks at the values measured; both axes logarithmic, or both from zero."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if panel.log:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)
    axis.set_xticks(panel.values, [f"{value:g}" for value in panel.values])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def describe(panel: Panel) -> str:
    """What is the same for all points of a panel."""
    fixed = {name: value for name, value in dataclasses.asdict(panel.base).items() if name != panel.field}
    names = {"sequence": "{} tokens", "batch": "batch {}", "layers": "{} layers", "K": "K {}", "share": "share {}"}
    return ", ".join(names[name].format(value) for name, value in fixed.items())


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    packages = ("jax", "jaxlib", "equinox", "optax", "numpy")
    return {
        "device": model or jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/scaling"), help="folder for the picture and figures")
    parser.add_argument("--quick", action="store_true", help="a toy model and few points, to check the script")
    args = parser.parse_args()
    panels, rounds = (QUICK, 1) if args.quick else (PANELS, 3)
    args.output.mkdir(parents=True, exist_ok=True)
    begin, about = time.perf_counter(), machine()
    print(", ".join([about["device"], f"{about['cores']} cores", *map(" ".join, about["versions"].items())]))
    if args.quick:
        print("A check of this script with a toy model: these are no figures for the log.")
    rate = product_rate(5)
    results = run(panels, quick=args.quick, rounds=rounds)
    rate = max(rate, product_rate(5))  # a floor takes the best that the machine did in this run
    summary = summarize(results, rate)
    print_summary(summary, rate)
    record = {"machine": about, "quick": args.quick, "product_flops_per_second": rate}
    record |= {"seconds": time.perf_counter() - begin, "panels": results, "summary": summary}
    (args.output / "scaling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    size, place = llama(1, args.quick), f"{about['device']}, {about['cores']} cores"
    title = f"One update of a Llama of hidden size {size.hidden_size}, float32, {place}: {rate / 1e9:.0f} GFLOP/s"
    draw(panels, results, rate, args.output / "scaling.png", title=title)
    print(f"\n{record['seconds']:.0f} s; scaling.png and scaling.json are in {args.output}")


if __name__ == "__main__":
    main()
