"""A run's directory and what it tells the person who waits: metrics.jsonl, run.json, progress."""

import dataclasses
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..distributed import leads
from ..errors import ConfigError, OutputError
from ..hub import read_json
from ..output import check_writable
from ..version import __version__

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "tokenizers", "datasets", "safetensors", "orbax-checkpoint")

_MAY_CHANGE = {
    "output",
    "resume",
    "eval_dataset",
    "eval_split",
    "log_every",
    "eval_every",
    "save_every",
    "num_proc",
    "cache",
    "attention",
    "offload",
    "mesh",
    "distributed",
    "coordinator",
    "num_processes",
    "process_id",
}


def check_output(output: Path, *, resume: bool) -> None:
    """Refuses a directory that holds a run already, unless it is to be resumed.

    **Raises:** `OutputError`.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; choose a directory for the run")
    check_writable(output)
    if (output / "model").exists():
        raise OutputError(f"{output}: holds a finished run (model/ is there); choose another --output")
    saved = (output / "checkpoints").is_dir() and (output / "run.json").is_file()
    if resume and not saved:
        raise OutputError(f"{output}: nothing to resume (no checkpoints/ and run.json); run without --resume")
    if not resume and any((output / name).exists() for name in ("run.json", "metrics.jsonl", "checkpoints")):
        advice = ", or go on with --resume" if saved else ""
        raise OutputError(f"{output}: holds a run already; choose another --output{advice}")


def check_same_arguments(output: Path, arguments: Mapping[str, Any]) -> None:
    """Refuses to resume with arguments that would make another run of it.

    **Raises:** `ConfigError`, naming the flag.
    """
    before = read_json(output / "run.json").get("arguments", {})
    now = json.loads(json.dumps(arguments, default=str))
    for name in now.keys() - _MAY_CHANGE:
        if name in before and before[name] != now[name]:  # an older run may not know of a flag
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{output}: the run has {flag} {before[name]}, found {now[name]}; resume with the same")


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json`, replacing the old one as a whole; one process does."""
    if not leads():
        return
    draft = output / "run.json.tmp"
    draft.write_text(json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(output / "run.json")


def versions() -> dict[str, str]:
    """What the run is computed with: packages, Python, devices."""
    found = {"rm": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return found | {"platform": device.platform, "device": device.device_kind, "devices": str(jax.device_count())}


@dataclasses.dataclass
class TrainingLog:
    """Averages metrics over windows of `log_every` updates and writes them down.

    Metrics of an update are read once the next one is under way, so the host never makes the device wait.
    """

    path: Path
    steps: int
    steps_per_epoch: int
    log_every: int
    schedule: optax.Schedule
    report: "Reporter"
    num_tokens: int = 0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    _since: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint must keep for the log to go on as if nothing had happened."""
        return {"num_tokens": self.num_tokens, "window": self.window}

    def resume(self, step: int, notes: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint: later lines are taken out of the file."""
        self.num_tokens, self.window = notes["num_tokens"], list(notes["window"])
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        whole = [line for line in lines if line.endswith("}")]  # the last one may be torn
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def add(self, step: int, metrics: Mapping[str, jax.Array], *, pairs: int, tokens: int) -> None:
        """Takes the metrics of update `step` (counted from 1); writes a line where a window ends."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self.num_tokens += tokens
        self.window.append(values | {"pairs": pairs, "tokens": tokens})
        self.report.step(step, values)
        if step % self.log_every == 0 or step == self.steps:
            self._close_window(step)

    def _close_window(self, step: int) -> None:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        averaged = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")
        entry = {name: sum(values[name] for values in self.window) / len(self.window) for name in averaged}
        entry |= {
            "grad_norm": self.window[-1]["grad_norm"],
            "learning_rate": float(jnp.asarray(self.schedule(step - 1))),
            "num_tokens": self.num_tokens,
            "pairs_per_second": sum(values["pairs"] for values in self.window) / seconds,
            "tokens_per_second": sum(values["tokens"] for values in self.window) / seconds,
        }
        self.window = []
        self.write(step, entry)

    def write(self, step: int, entry: Mapping[str, float]) -> None:
        """Appends a line to the file and shows it."""
        finite = {name: value if math.isfinite(value) else None for name, value in entry.items()}  # JSON has no NaN
        line = {"step": step, "epoch": step / self.steps_per_epoch, **finite}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.report.line({**line, **entry})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (evaluating, saving) does not count against the throughput."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start


class Reporter:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, steps: int, *, done: int = 0):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps = steps
        self._console = Console(file=sys.stdout, quiet=not leads())
        self._bar = None
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("compiling …", total=steps, completed=done)
        self._speed = ""

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar; the first loss is shown beside ln 2, where a fresh head should begin."""
        if step == 1:
            self.print(f"first loss {metrics['loss']:.4f} (ln 2 = 0.6931, where centering is off)")
        if self._bar:
            text = f"loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.3f}{self._speed}"
            self._bar.update(self._task, completed=step, description=text)

    def line(self, entry: Mapping[str, float]) -> None:
        """Shows a line of metrics.jsonl."""
        if "pairs_per_second" in entry:
            self._speed = f"  {entry['pairs_per_second']:.1f} pairs/s"
            if self._bar:
                return
            text = (
                f"step {entry['step']}/{self._steps}  loss {entry['loss']:.4f}  accuracy {entry['accuracy']:.3f}  "
                f"margin {entry['margin']:.3f}{self._speed}"
            )
        else:
            shown = [f"{name} {value:.4f}" for name, value in entry.items() if name.startswith("eval_")]
            text = f"step {entry['step']}/{self._steps}  " + "  ".join(shown)
        self.print(text)

    def print(self, text: str) -> None:
        """A line of plain text."""
        (self._bar.console if self._bar else self._console).print(text, markup=False, highlight=False, soft_wrap=True)


def dataset_name(dataset: str, taken: Sequence[str] = ()) -> str:
    """The name that metrics give a data set: `…/my-pairs.jsonl.gz` is `my_pairs`."""
    stem = Path(dataset).name.split(".")[0] or "data"
    name = "".join(letter if letter.isalnum() else "_" for letter in stem)
    names = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)
