"""Memory, traffic and efficiency of 8B and 70B updates on 8 to 1024 devices, from the compilers; no device is needed.

python benchmarks/scale.py [--output benchmarks/scale.json] [--only h100] [--rows 8]

Rows of 2048 tokens, one for each part of a batch or as many as `--rows`; float32 AdamW, bfloat16 compute, full remat.
The efficiency is what the published rates allow: computing over the longer of computing and sending, as if both went on
at once all the time.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import rm

CASES = [
    *(("llama-8b", f"h100:{count}", {"fsdp": count}) for count in (8, 64, 256, 1024)),
    *(("llama-8b", f"h100:{count}", {"data": count // 8, "fsdp": 8}) for count in (64, 1024)),
    *(("llama-70b", f"h100:{count}", {"fsdp": count}) for count in (64, 256, 1024)),
    ("llama-70b", "h100:1024", {"data": 16, "fsdp": 64}),
    ("llama-70b", "h100:1024", {"fsdp": 128, "tensor": 8}),
    *(("llama-8b", f"v5p:{shape}", {"fsdp": count}) for shape, count in (("2x2x2", 8), ("4x4x4", 64))),
    ("llama-8b", "v5p:8x8x16", {"data": 16, "fsdp": 64}),
    *(("llama-70b", f"v6e:{shape}", {"fsdp": count}) for shape, count in (("8x8", 64), ("16x16", 256))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    parser.add_argument("--rows", type=int, default=1, help="rows of each part of a batch")
    parser.add_argument("--only", default="", help="topologies that begin with this")
    args = parser.parse_args()
    print("| model | topology | mesh | peak GB | computing s | sending s | efficiency at most | limit | how |")
    print("|---|---|---|---:|---:|---:|---:|---|---|", flush=True)
    plans = []
    for model, topology, mesh in CASES:
        if not topology.startswith(args.only):
            continue
        rows = args.rows * mesh.get("data", 1) * mesh.get("fsdp", 1)
        try:
            found = rm.plan(model, topology, mesh=mesh, batch_size=rows)
        except rm.RmError as error:
            print(f"| {model} | {topology} | {mesh} | {error} |", file=sys.stderr)
            continue
        plans.append({"model": model, **dataclasses.asdict(found)})
        print(line(model, found), flush=True)
    if args.output:
        args.output.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")


def line(model: str, found: rm.Plan) -> str:
    """A row of the table."""
    shown = ",".join(f"{axis}={size}" for axis, size in found.mesh.items())
    computing, sending = found.compute_seconds or 0.0, found.communication_seconds or 0.0
    heaviest = max(found.communication_bytes, key=lambda axis: found.communication_bytes[axis], default="")
    limit = f"sending along {heaviest}" if sending > computing else "computing"
    if found.missing_bytes:
        limit = f"memory: {found.missing_bytes / 1e9:.1f} GB missing"
    how = f"compiled, {found.compile_seconds:.0f} s" if found.compiled else "estimated"
    efficiency = computing / max(computing, sending)
    figures = f"{found.peak_bytes_per_device / 1e9:.1f} | {computing:.2f} | {sending:.2f} | {efficiency:.0%}"
    return f"| {model} | {found.topology} | {shown} | {figures} | {limit} | {how} |"


if __name__ == "__main__":
    main()
