"""The memory of an update by formula against that of XLA's compiler for CPUs, over a grid of shapes.

python benchmarks/plan.py [--quick] [--output FILE.json]

Every case is compiled for virtual CPU devices of this process, which allocates nothing; what LLVM would optimise is
left out, because the buffers are assigned before. The grid varies one thing at a time around a few shapes.
"""

import argparse
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()}

import jax  # noqa: E402

import rm  # noqa: E402
from rm.planning.compiled import lower_update, peak_bytes  # noqa: E402
from rm.planning.estimates import Case  # noqa: E402
from rm.planning.memory import estimate  # noqa: E402

MESHES = {
    "one device": {},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "tensor=2,fsdp=4": {"tensor": 2, "fsdp": 4},
    "context=2,data=4": {"context": 2, "data": 4},
}
BASE = {"model": (4, 256, 1000), "mesh": "one device", "rows": 4, "max_length": 1024}  # layers, hidden size, vocabulary
WIDE = BASE | {"model": (8, 1024, 32_000), "rows": 1, "max_length": 256}  # where the optimizer takes most
GRID = [
    *({"mesh": mesh} for mesh in MESHES),
    *({"mesh": mesh, "rows": 32, "max_length": 2048} for mesh in MESHES),
    *({"dtype": dtype, "remat": remat} for dtype in ("bfloat16", "float32") for remat in ("full", "dots", "none")),
    *({"mesh": "fsdp=8", "remat": remat} for remat in ("dots", "none")),
    *({"model": (8, 128, 1000), "remat": "none", "rows": rows, "max_length": 512} for rows in (4, 6)),
    *({"model": model} for model in ((2, 64, 256), (8, 512, 1000), (2, 1024, 128_000))),
    *({"model": (2, 64, 256), "rows": 1, "max_length": 256, "mesh": mesh} for mesh in ("one device", "fsdp=8")),
    *(WIDE | {"optimizer": name} for name in ("adamw", "lion", "adafactor")),
    *(WIDE | {"moments": "bfloat16", "mesh": mesh} for mesh in ("one device", "fsdp=8", "data=8")),
    *(WIDE | {"parameters": "bfloat16", "mesh": mesh} for mesh in ("one device", "fsdp=8")),
    *(WIDE | {"rows": rows, "max_length": 1024, "mesh": "fsdp=8"} for rows in (1, 8)),
]
QUICK = [{"model": (2, 64, 256), "max_length": 256}]


def make_case(model: tuple[int, int, int], mesh: str, rows: int, **options: Any) -> Case:
    """A case of `rows` rows per device, with attention in blocks."""
    layers, hidden, vocabulary = model
    config = rm.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden if hidden < 512 else 3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(4, hidden // 64),
        num_key_value_heads=max(2, hidden // 256),
    )
    sizes = MESHES[mesh]
    total = rows * sizes.get("data", 1) * sizes.get("fsdp", 1)
    return Case(config=config, mesh=sizes, rows=total, attention="block", **options)


def measure(case: Case) -> tuple[int, int]:
    """The bytes of a device at the peak, by formula and by the compiler."""
    devices = jax.devices()[: math.prod(case.mesh.values())]
    return estimate(case).peak, peak_bytes(lower_update(case, devices).compile(), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures of every case")
    args = parser.parse_args()
    print("| layers, hidden, vocabulary | mesh | rows a device | tokens | other | formula, MB | compiler, MB | ratio |")
    print("|---|---|---:|---:|---|---:|---:|---:|", flush=True)
    found = []
    for options in QUICK if args.quick else GRID:
        options = BASE | options
        formula, compiler = measure(make_case(**options))
        found.append(options | {"formula": formula, "compiler": compiler})
        shown = ["{}, {}, {}".format(*options["model"]), options["mesh"], options["rows"], options["max_length"]]
        other = " ".join(str(value) for name, value in options.items() if name not in BASE)
        shown += [other, f"{formula / 1e6:.1f}", f"{compiler / 1e6:.1f}", f"{formula / compiler:.2f}"]
        print("| " + " | ".join(map(str, shown)) + " |", flush=True)
    ratios = [row["formula"] / row["compiler"] for row in found]
    print(f"{len(ratios)} cases: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
