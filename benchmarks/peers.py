"""rm, TRL and EasyDeL on the reference workload, in turn, each run in its own process and environment.

python benchmarks/peers.py [--all]

Within a round every system takes the same pairs, and a ratio is formed within a round. Two systems do not: TRL with
length-grouped sampling takes batches spread over the lengths of all pairs, as that sampler makes them, and EasyDeL the
few updates that its speed allows. EasyDeL pads every side to the maximal length, so that pairs differ little for it.
"""

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import MARK
from workload import FILES, SHARED

HERE = Path(__file__).parent
REFERENCE = ("hh-rlhf", 8)
SYSTEMS = {
    "rm-float32": "rm, float32",
    "rm-bfloat16": "rm, bfloat16",
    "trl-float32": "TRL, float32",
    "trl-bfloat16": "TRL, bfloat16",
    "trl-grouped-float32": "TRL length-grouped, float32",
    "trl-grouped-bfloat16": "TRL length-grouped, bfloat16",
    "easydel-float32": "EasyDeL, float32",
    "rm-lora-float32": "rm with LoRA, float32",
    "trl-lora-float32": "TRL with LoRA of peft, float32",
}
RATIOS = (
    ("rm-float32", "trl-float32"),
    ("rm-bfloat16", "trl-bfloat16"),
    ("rm-float32", "trl-grouped-float32"),
    ("rm-bfloat16", "trl-grouped-bfloat16"),
    ("rm-float32", "easydel-float32"),
    ("rm-lora-float32", "rm-float32"),
    ("rm-lora-float32", "trl-lora-float32"),
)
REQUIREMENTS = {
    "trl": ("torch==2.13.0", "transformers>=5.20,<6", "trl>=1.15,<2", "accelerate>=1.10,<2", "peft>=0.18,<1"),
    "easydel": ("torch==2.13.0", "pillow", "easydel==0.3.0"),
}
COLUMNS = {
    "pairs_per_second": ("pairs/s", ".2f"),
    "computed_per_second": ("computed tokens/s", ",.0f"),
    "logical_per_second": ("logical tokens/s", ",.0f"),
    "peak_gib": ("peak GiB", ".1f"),
    "first_step_seconds": ("first step s", ".0f"),
}
COLOURS = {"rm": "#56B4E9", "trl": "#E69F00", "easydel": "#009E73"}  # of Okabe and Ito: told apart by everyone
EASYDEL_UPDATES = 2  # one takes most of a minute
TIME_LIMIT = 3600  # seconds for one run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that has data/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--easydel-rounds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=12, help="timed at batch 8; larger batches: about as many pairs")
    parser.add_argument("--data", nargs="+", choices=FILES, default=[REFERENCE[0]])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[REFERENCE[1]])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--all", action="store_true", help="all data at batch 8, 32 and 64; EasyDeL on the reference workload only"
    )
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment that has TRL")
    parser.add_argument("--easydel-python", type=Path, help="interpreter of an environment that has EasyDeL")
    cache = Path.home() / ".cache/rm-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where environments are made for those not given")
    parser.add_argument("--output", type=Path, default=Path("peers"), help="folder for peers.json and peers.png")
    args = parser.parse_args()
    if args.all:
        args.data, args.batch_sizes = list(FILES), [8, 32, 64]
    if not (args.shared / "data").is_dir():
        sys.exit(f"{args.shared}: no such folder with data/ in it; --shared names it")
    return args


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def execute(command: list, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", **options)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def ending(status: int) -> str:
    """A status below zero names a signal; SIGKILL is what a machine sends that has no memory left."""
    return f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"


def make_environment(peer: str, directory: Path) -> Path:
    """An environment with the peer in it, kept for the next time."""
    python, made = directory / "bin/python", directory / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS[peer])
    if not (made.is_file() and made.read_text() == wanted):
        say(f"{peer}: making an environment in {directory}")
        execute([sys.executable, "-m", "venv", "--clear", directory], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        execute([*pip, *REQUIREMENTS[peer]], check=True)
        made.write_text(wanted)
    return python


def interpreters(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """The interpreter of each system, and why a peer has none."""
    given = {"rm": Path(sys.executable), "trl": args.trl_python, "easydel": args.easydel_python}
    found, missing = {}, {}
    for peer in dict.fromkeys(system.split("-")[0] for system in args.systems):
        try:
            # absolute, not resolved: the link tells Python which environment it is in
            found[peer] = given[peer].absolute() if given[peer] else make_environment(peer, args.cache / peer)
        except subprocess.CalledProcessError as error:
            missing[peer] = last_line(error.stderr)
            say(f"{peer}: could not be installed and is left out: {missing[peer]}")
    return found, missing


def child_environment(home: Path) -> dict[str, str]:
    """Nothing cached by an earlier run, so that the first step always compiles; nothing from the network."""
    left_out = {"JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    folders = {"HOME": str(home), "TMPDIR": str(home), "HF_HOME": str(home / "huggingface")}
    return kept | folders | {"HF_HUB_OFFLINE": "1"}


def write_workload(args: argparse.Namespace, data: str, directory: Path) -> None:
    """In a process of its own: a process reports no less memory than its parent had, so this one stays small."""
    done = execute([sys.executable, HERE / "workload.py", args.shared.absolute(), data, directory])
    if done.returncode:
        sys.exit(f"{data}: the workload could not be written: {last_line(done.stderr)}")


def num_updates(args: argparse.Namespace, system: str, batch_size: int) -> int:
    updates = math.ceil(args.updates * REFERENCE[1] / batch_size)
    return min(updates, EASYDEL_UPDATES) if system.startswith("easydel") else updates


def takes_part(args: argparse.Namespace, system: str, case: tuple[str, int], number: int) -> bool:
    if not system.startswith("easydel"):
        return True
    return number <= args.easydel_rounds and (case == REFERENCE or not args.all)


def measure(python: Path, system: str, workload: Path, batch_size: int, updates: int, seed: int) -> dict:
    """What one run reports, or its error."""
    peer, *variant, dtype = system.split("-")
    with tempfile.TemporaryDirectory() as scratch:
        options = {"workload": workload, "scratch": scratch, "batch-size": batch_size, "dtype": dtype, "seed": seed}
        options |= {"updates": updates, "variant": "-".join(variant) or "default", "started": time.time()}
        command = [python, HERE / f"train_{peer}.py", *(f"--{name}={value}" for name, value in options.items())]
        try:
            done = execute(command, cwd=scratch, env=child_environment(Path(scratch)), timeout=TIME_LIMIT)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"error": str(error)}
    reports = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not reports:
        return {"error": f"{ending(done.returncode)}: {last_line(done.stderr)}"}
    return json.loads(reports[-1].removeprefix(MARK))


def run_case(args: argparse.Namespace, pythons: dict[str, Path], case: tuple[str, int], workload: Path) -> list[dict]:
    runs = []
    for number in range(1, args.rounds + 1):
        for system in args.systems:
            python = pythons.get(system.split("-")[0])
            if python is None or not takes_part(args, system, case, number):
                continue
            updates = num_updates(args, system, case[1])
            figures = measure(python, system, workload, case[1], updates, seed=number)
            result = figures.get("error") or f"{figures['pairs_per_second']:.2f} pairs/s"
            say(f"{case[0]}, batch {case[1]}, round {number}, {system}: {result}")
            where = {"data": case[0], "batch_size": case[1], "round": number, "system": system, "updates": updates}
            runs.append(where | figures)
    return runs


def median(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}}" if values else "–"


def spread(values: list[float], form: str) -> str:
    return f"{median(values, form)} ({min(values):{form}}–{max(values):{form}})"


def ratios(runs: list[dict], ours: str, theirs: str, figure: str = "pairs_per_second") -> list[float]:
    """A figure of one system over that of another, for each round that both have."""
    values = {(run["system"], run["round"]): run[figure] for run in runs if "error" not in run}
    rounds = sorted(number for system, number in values if system == ours and (theirs, number) in values)
    return [values[ours, number] / values[theirs, number] for number in rounds]


def case_tables(runs: list[dict]) -> str:
    """The medians of each system, and the ratios with their spread, as Markdown."""
    lines = ["| system | runs | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(COLUMNS)))
    for system in dict.fromkeys(run["system"] for run in runs):
        good = [run for run in runs if run["system"] == system and "error" not in run]
        medians = [median([run[name] for run in good], form) for name, (_, form) in COLUMNS.items()]
        lines.append(f"| {SYSTEMS[system]} | {len(good)} | " + " | ".join(medians) + " |")
    compared = {(ours, theirs): ratios(runs, ours, theirs) for ours, theirs in RATIOS}
    rows = [
        f"| {SYSTEMS[ours]} / {SYSTEMS[theirs]} | {len(values)} | {spread(values, '.2f')} "
        f"| {spread(ratios(runs, ours, theirs, 'peak_gib'), '.2f')} |"
        for (ours, theirs), values in compared.items()
        if values
    ]
    if rows:
        titles = "| ratio | rounds | pairs/s: median (min–max) | peak memory: median (min–max) |"
        lines += ["", titles, "|---|---:|---:|---:|", *rows]
    return "\n".join(lines)


def machine() -> dict[str, str | int | float]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory, 1),
    }


def commit() -> str:
    try:
        return execute(["git", "describe", "--always", "--dirty"], cwd=HERE).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def versions(runs: list[dict]) -> dict[str, dict[str, str]]:
    return {run["system"].split("-")[0]: run["versions"] for run in runs if "error" not in run}


def chart(runs: list[dict], path: Path) -> None:
    """Pairs a second: a panel for each case, a bar for each system, a line from the slowest round to the fastest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data, sizes = (list(dict.fromkeys(run[name] for run in runs)) for name in ("data", "batch_size"))
    systems = [system for system in SYSTEMS if any(run["system"] == system for run in runs)]
    height = len(data) * (0.22 * len(systems) + 0.5) + 0.3
    with pyplot.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(
            len(data), len(sizes), figsize=(6.5, height), sharey=True, squeeze=False, layout="constrained"
        )
        for row, name in zip(axes, data, strict=True):
            for panel, size in zip(row, sizes, strict=True):
                here = [run for run in runs if (run["data"], run["batch_size"]) == (name, size)]
                draw_panel(panel, here, systems)
                panel.set_title(f"{name}, batch {size}", fontsize=8)
        axes[0, 0].set_yticks(range(len(systems)), [SYSTEMS[system] for system in systems])
        axes[0, 0].invert_yaxis()
        figure.supxlabel("pairs per second (median; line: slowest to fastest round)", fontsize=8)
        figure.savefig(path, dpi=200)
        pyplot.close(figure)


def draw_panel(panel, runs: list[dict], systems: list[str]) -> None:
    """The number stands to the right of the longest line of its row, so that nothing overlaps."""
    top = max((run["pairs_per_second"] for run in runs if "error" not in run), default=1)
    for place, system in enumerate(systems):
        mine = [run for run in runs if run["system"] == system]
        values = [run["pairs_per_second"] for run in mine if "error" not in run]
        text = median(values, ".1f" if top >= 20 else ".2f") if values else "failed" if mine else "not run"
        if values:
            panel.barh(place, statistics.median(values), 0.7, color=COLOURS[system.split("-")[0]])
            panel.plot([min(values), max(values)], [place, place], color="black", linewidth=1)
        panel.annotate(text, (max(values, default=0), place), (3, 0), textcoords="offset points", va="center")
    panel.set_xlim(0, 1.35 * top)
    panel.tick_params(axis="y", left=False)


def main() -> None:
    args = parse_arguments()
    pythons, missing = interpreters(args)
    about = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "not_installed": missing,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{name}: {value}" for name, value in about.items() if value), flush=True)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for data in args.data:
            write_workload(args, data, Path(folder) / data)
            for size in args.batch_sizes:
                case = run_case(args, pythons, (data, size), Path(folder) / data)
                print(f"\n{data}, batch {size}\n\n{case_tables(case)}", flush=True)
                runs += case
                everything = about | {"versions": versions(runs), "runs": runs}
                (args.output / "peers.json").write_text(json.dumps(everything, indent=1) + "\n")
    print("\n" + "\n".join(f"{peer}: {found}" for peer, found in versions(runs).items()))
    if runs:
        chart(runs, args.output / "peers.png")
    if any("error" in run for run in runs):
        sys.exit("some runs failed, see above")


if __name__ == "__main__":
    main()
