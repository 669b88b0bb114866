"""Updates, scoring and `python -m rm train` on one GPU, beside TRL and `transformers`: pairs per second, MFU, memory.

python benchmarks/gpu.py [--output build/gpu] [--minutes 6] [--torch-python INTERPRETER]

Shapes of Llama 1B and 8B with random weights; pairs of 512 + 768 | 768 tokens, and of the lengths of hh-rlhf. Every
case is a process of its own, so that one that runs out of memory or crashes costs a row, and that peaks are its own.
Each system has its best setting that fits and its default. `--torch-python` names an environment with torch,
transformers and trl, by default this one; what is not installed is a line. `--tiny` checks the script on any machine.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_cases import MARK, TIMED, WARM_UP, Case, list_cases

HERE = Path(__file__).parent
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "trl")
LEAST_SECONDS = 20  # a case is not begun with less time than this
AIMS = {"update 1B, fixed": 0.45, "update 8B, fixed": 0.50}  # MFU
RATIOS = {"update 1B, fixed": 2.0, "update 1B, hh-rlhf": 4.0, "score 1B, hh-rlhf": 3.0}

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
HEADER = "| case | system | recomputes | s | items/s | MFU | peak GB | ratio |\n|---|---|---|---:|---:|---:|---:|---:|"


def run_case(case: Case, python: Path, seconds: float) -> dict[str, Any]:
    """The figures of a case, or under `error` why there are none."""
    if seconds < LEAST_SECONDS:
        return {"error": "not run: the time was up"}
    script = HERE / ("gpu_rm.py" if case.system == "rm" else "gpu_torch.py")
    # a fraction of the memory is taken at once; the usual 75 % would leave out cases that fit
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"} | os.environ | {"WANDB_DISABLED": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [python, script, json.dumps(dataclasses.asdict(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "stopped: the time was up"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return json.loads(lines[-1].removeprefix(MARK))
    last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    memory = "RESOURCE_EXHAUSTED" in done.stderr or "OutOfMemory" in done.stderr
    return {"error": "out of memory" if memory else last[:160], "detail": done.stderr[-4000:]}


def add_ratios(found: list[tuple[Case, dict[str, Any]]]) -> None:
    """The share of the peak rate, and rm's rate over the best one of a peer on the same case."""
    for case, result in found:
        if "flops" in result and result.get("device") in PEAKS:
            result["mfu"] = result["flops"] / result["seconds"] / PEAKS[result["device"]]
        peers = [r for c, r in found if c.name == case.name and c.system != "rm" and "seconds" in r]
        if case.system == "rm" and peers and "seconds" in result:
            result["ratio"] = rate(result) / max(map(rate, peers))


def rate(result: dict[str, Any]) -> float:
    return result["items"] / result["seconds"]


def table_row(case: Case, result: dict[str, Any]) -> str:
    cells = [case.name, case.system, case.setting if case.what == "update" else "–"]
    if "error" in result:
        return "| " + " | ".join([*cells, result["error"].replace("|", "/"), *[""] * 4]) + " |"
    cells += [f"{result['seconds']:.3f}", f"{rate(result):,.1f}"]
    cells += [f"{result['mfu']:.1%}" if "mfu" in result else "–"]
    cells += [f"{result['peak_bytes'] / 1e9:.1f}" if result.get("peak_bytes") else "–"]
    return "| " + " | ".join([*cells, f"{result['ratio']:.2f}" if "ratio" in result else "–"]) + " |"


def aims(found: list[tuple[Case, dict[str, Any]]]) -> list[str]:
    """A line for each aim that was measured, and that of the command beside the update alone."""
    lines, best = [], {}
    for case, result in found:
        if case.system == "rm" and "seconds" in result:
            kept = best.setdefault(case.name, result)
            best[case.name] = max(kept, result, key=rate)
    for name, result in best.items():
        if name in AIMS and "mfu" in result:
            lines.append(f"{name}: MFU {result['mfu']:.1%}, aim {AIMS[name]:.0%}")
        if name in RATIOS and "ratio" in result:
            lines.append(f"{name}: {result['ratio']:.2f} times the best peer, aim {RATIOS[name]:.0f}")
        alone = best.get(name.replace("command", "update"))
        if name.startswith("command") and alone:
            lines.append(f"{name}: {rate(result) / rate(alone):.1%} of the update alone, aim 95%")
    return lines


def find_machine(tiny: bool) -> dict[str, Any]:
    """What JAX sees, asked in a process of its own, which gives the memory back."""
    code = "import jax, json; d = jax.devices()[0]; print(json.dumps([d.platform, d.device_kind]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"no GPU: jax does not start ({next(reversed(done.stderr.strip().splitlines()), '')})")
    platform, device = json.loads(done.stdout.splitlines()[-1])
    if platform != "gpu" and not tiny:
        sys.exit(f"no GPU: jax sees {device} ({platform}) alone; --tiny checks the script there")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"platform": platform, "device": device, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=6.0, help="cases that have not begun by then are left out")
    parser.add_argument("--torch-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--tiny", action="store_true", help="a toy shape on any machine, to check the script")
    args = parser.parse_args()
    deadline, machine = time.monotonic() + 60 * args.minutes, find_machine(args.tiny)
    if args.tiny:
        print("A check of this script with a toy shape: these are no figures for the log.\n")
    print(f"{machine['device']} ({machine['platform']}); " + ", ".join(map(" ".join, machine["versions"].items())))
    print(f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}; {WARM_UP} updates to warm up, median of {TIMED}\n")
    args.output.mkdir(parents=True, exist_ok=True)
    found: list[tuple[Case, dict[str, Any]]] = []
    for case in list_cases(args.tiny):
        python = Path(sys.executable) if case.system == "rm" else args.torch_python.absolute()
        found.append((case, run_case(case, python, deadline - time.monotonic())))
        print(f"{case.name}, {case.system}: {found[-1][1].get('seconds') or found[-1][1]['error']}", file=sys.stderr)
        add_ratios(found)
        record = machine | {"cases": [dataclasses.asdict(c) | r for c, r in found]}
        (args.output / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join([HEADER, *(table_row(*each) for each in found), "", *aims(found)]))
    if not any("seconds" in result for _, result in found):
        sys.exit("no case ran to its end")


if __name__ == "__main__":
    main()
