"""The update of Llama-1B compiled for one H100, which need not be here: memory traffic, temporary memory, kernels.

python benchmarks/compiled_gpu.py [OLDER_CHECKOUT] [--topology h100:1] [--model llama-1b] [--rows 8]

It needs the compilers that `.ci/compilers` fetches. `bytes accessed` and `temporary` are XLA's own figures for the
program; calls of kernels and of copies are counted in its text. A row of another checkout has its ratios to this one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from hlo_traffic import bytes_accessed

from rm.planning.chips import parse_topology
from rm.planning.compiled import compiler_flags

HERE = Path(__file__).parent
MARK = "result "


def measure(topology: str, model: str, rows: int, attention: str, remat: str) -> dict[str, float]:
    """Compiles one update, in a process that has found the compilers."""
    from rm.devices.platform import compiling_for
    from rm.model.presets import PRESETS
    from rm.planning.compiled import default_compilers, find_devices, lower_update
    from rm.planning.estimates import Case

    sys.path.insert(0, str(default_compilers()))
    devices = find_devices(parse_topology(topology))
    options = {"rows": rows, "attention": attention, "remat": remat}
    case = Case(config=PRESETS[model], mesh={"fsdp": len(devices)}, **options)  # pyright: ignore
    with compiling_for("cuda"):
        compiled = lower_update(case, devices).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    longest = max(case.regions)
    return {
        "GB accessed": bytes_accessed(compiled) / 1e9,
        "temporary GB": memory.temp_size_in_bytes / 1e9,
        "copies": len(re.findall(r"= \S+ copy(?:-start)?\(", text)),
        "cuDNN forward": text.count('custom_call_target="__cudnn$fmhaSoftmax"'),
        "cuDNN backward": text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"'),
        "N × N buffers": len(re.findall(rf"= f32\[[\d,]*{longest},(?:{longest}|{case.regions[0] + longest})\]", text)),
    }


def ask(checkout: Path, *question: str) -> dict[str, float] | str:
    """The figures of a checkout, or the last line of the error."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {compiler_flags(parse_topology(question[0]))}".strip()
    env = os.environ | {"PYTHONPATH": str(checkout.absolute()), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--child", *question]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=checkout)
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if found:
        return json.loads(found[-1].removeprefix(MARK))
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("older", type=Path, nargs="?")
    parser.add_argument("--model", default="llama-1b")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--forms", nargs="+", default=["auto", "xla", "cudnn"])
    parser.add_argument("--remat", nargs="+", default=["full", "none"])
    parser.add_argument("--topology", default="h100:1")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        topology, model, rows, attention, remat = args.child
        print(MARK + json.dumps(measure(topology, model, int(rows), attention, remat)))
        return
    checkouts = {"this": HERE.parent} | ({"older": args.older} if args.older else {})
    header: list[str] = []
    for form in args.forms:
        for remat in args.remat:
            found = {
                name: ask(where, args.topology, args.model, str(args.rows), form, remat)
                for name, where in checkouts.items()
            }
            for name, figures in found.items():
                if isinstance(figures, str):
                    print(f"{form}, {remat}, {name}: {figures}", flush=True)
                    continue
                if not header:
                    header = list(figures)
                    print(
                        "| attention | remat | checkout | "
                        + " | ".join(header)
                        + " |\n"
                        + "|---" * (len(header) + 3)
                        + "|"
                    )
                cells = [f"{figures[key]:,.1f}" if "GB" in key else f"{figures[key]:.0f}" for key in header]
                this = found["this"]
                if name != "this" and isinstance(this, dict):
                    cells = [
                        f"{cell} ({this[key] / figures[key]:.2f} ×)" if figures[key] else cell
                        for cell, key in zip(cells, header, strict=True)
                    ]
                print(f"| {form} | {remat} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
