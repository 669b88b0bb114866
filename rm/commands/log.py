"""What a run tells the person who waits: metrics.jsonl and progress."""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..distributed import leads
from ..errors import RmError
from ..output import append_line, replace_file

_NOTES = ("num_tokens", "skipped", "skipped_in_a_row", "window", "norms")
_NORMS, _FEWEST_NORMS = 50, 10  # of which a median is taken


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
    origin: Callable[[int], str]  # the row that a comparison was made from
    max_skipped: int
    spike: float | None = None  # times the median of earlier norms that a gradient's may have
    num_tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    norms: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # of the last updates, with their steps
    _since: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint must keep for the log to go on as if nothing had happened."""
        return {name: getattr(self, name) for name in _NOTES}

    def resume(self, step: int, notes: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint: later lines are taken out of the file."""
        for name in _NOTES:
            setattr(self, name, notes.get(name, getattr(self, name)))
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        whole = [line for line in lines if line.endswith("}")]  # the last one may be torn
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        if leads():
            replace_file(self.path, "".join(f"{line}\n" for line in kept))

    def limit(self, step: int) -> float:
        """The norm of the gradient above which update `step` is to be skipped."""
        known = [norm for number, norm in self.norms if number < step - 1]  # those before are always known by now
        if self.spike is None or len(known) < _FEWEST_NORMS:
            return math.inf
        return self.spike * statistics.median(known[-_NORMS:])

    def add(self, step: int, metrics: Mapping[str, jax.Array], *, indices: np.ndarray, tokens: int) -> None:
        """Takes the metrics of update `step` (counted from 1); writes a line where a window ends.

        **Raises:** `RmError` where the last `max_skipped` updates were skipped.
        """
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self.num_tokens += tokens
        self.window.append(values | {"pairs": len(indices), "tokens": tokens})
        self.report.step(step, values)
        if values["skipped"]:
            self._skip(step, values, indices)
        else:
            self.skipped_in_a_row = 0
            self.norms = [*self.norms, (step, values["grad_norm"])][-_NORMS - 2 :]
        if step % self.log_every == 0 or step == self.steps:
            self._close_window(step)

    def _skip(self, step: int, values: Mapping[str, float], indices: np.ndarray) -> None:
        """Names what an update that was skipped would have learned from."""
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        why = {name: values[name] for name in ("loss", "grad_norm")}
        self.write(step, {**why, "skipped": self.skipped, "rows": [self.origin(i) for i in np.sort(indices)]})
        if self.skipped_in_a_row >= self.max_skipped:
            raise RmError(
                f"the last {self.max_skipped} updates were skipped (loss {why['loss']}, norm of the gradient "
                f"{why['grad_norm']} at step {step}); the checkpoints before are whole: lower --learning-rate, or look "
                f"at the rows named in {self.path}"
            )

    def _close_window(self, step: int) -> None:
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now  # a coarse clock may not have moved
        averaged = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")
        good = [values for values in self.window if not values["skipped"]] or self.window
        entry = {name: sum(values[name] for values in good) / len(good) for name in averaged}
        entry |= {
            "grad_norm": good[-1]["grad_norm"],
            "skipped": self.skipped,
            "learning_rate": float(jnp.asarray(self.schedule(step - 1))),
            "num_tokens": self.num_tokens,
            "pairs_per_second": sum(values["pairs"] for values in self.window) / seconds,
            "tokens_per_second": sum(values["tokens"] for values in self.window) / seconds,
        }
        self.window = []
        self.write(step, entry)

    def write(self, step: int, entry: Mapping[str, Any]) -> None:
        """Appends a line to the file and shows it."""
        infinite = {name for name, value in entry.items() if isinstance(value, float) and not math.isfinite(value)}
        finite = {name: None if name in infinite else value for name, value in entry.items()}  # JSON has no NaN
        line = {"step": step, "epoch": step / self.steps_per_epoch, **finite}
        if leads():
            append_line(self.path, json.dumps(line))
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
        elif "rows" in entry:
            text = f"step {entry['step']}/{self._steps}  skipped: loss {entry['loss']}, grad_norm {entry['grad_norm']}"
        else:
            shown = [f"{name} {value:.4f}" for name, value in entry.items() if name.startswith("eval_")]
            text = f"step {entry['step']}/{self._steps}  " + "  ".join(shown)
        self.print(text)

    def print(self, text: str) -> None:
        """A line of plain text."""
        (self._bar.console if self._bar else self._console).print(text, markup=False, highlight=False, soft_wrap=True)
