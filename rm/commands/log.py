"""The log of a run: metrics.jsonl, and trackers that get the same numbers."""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..data.comparisons import TokenizedComparisons
from ..devices.processes import leads
from ..errors import RmError
from ..files.output import append_line
from ..files.row_files import read_lines, write_lines
from ..training.objectives import TAKEN
from .progress import Reporter
from .signs import Signs, after_evaluation, after_update, after_window, at_the_end
from .trackers import Track, finite_numbers

_NOTES = ("num_tokens", "skipped", "skipped_in_a_row", "window", "norms", "signs")
_AVERAGED = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")
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
    report: Reporter
    comparisons: TokenizedComparisons
    max_skipped: int
    pairwise: bool = True  # whether the loss of a model that knows nothing is ln 2
    spike: float | None = None  # times the median of earlier norms that a gradient's may have
    tracks: Sequence[Track] = ()  # called with the numbers of every line
    num_tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    norms: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # of the last updates, with their steps
    signs: Signs = dataclasses.field(default_factory=Signs)
    _since: float = dataclasses.field(default_factory=time.perf_counter)
    _waiting: tuple[int, Mapping[str, jax.Array], np.ndarray] | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """The part of the log's state that a checkpoint keeps, so that a resumed log continues exactly."""
        return {name: getattr(self, name) for name in _NOTES} | {"signs": dataclasses.asdict(self.signs)}

    def resume(self, step: int, notes: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint: later lines are taken out of the file."""
        for name in _NOTES:
            setattr(self, name, notes.get(name, getattr(self, name)))
        signs = notes.get("signs", {})
        self.signs = Signs(**signs | {"told": tuple(signs.get("told", ()))})
        if leads():
            write_lines(self.path, [line for line in read_lines(self.path) if step and line["step"] <= step])

    def limit(self, step: int) -> float:
        """The norm of the gradient above which update `step` is to be skipped."""
        known = [norm for number, norm in self.norms if number < step - 1]  # those before are always known by now
        if self.spike is None or len(known) < _FEWEST_NORMS:
            return math.inf
        return self.spike * statistics.median(known[-_NORMS:])

    def add(self, step: int, metrics: Mapping[str, jax.Array], indices: np.ndarray) -> None:
        """Takes the metrics of update `step` (counted from 1) over the comparisons `indices`, and reads those before.

        **Raises:** `RmError` where the last `max_skipped` updates were skipped.
        """
        before, self._waiting = self._waiting, (step, metrics, indices)
        if before is not None:
            self._read(*before)

    def _read(self, step: int, metrics: Mapping[str, jax.Array], indices: np.ndarray) -> None:
        """Waits for the metrics of an update; writes a line where a window ends."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        tokens = int(self.comparisons.num_tokens[indices].sum())
        self.num_tokens += tokens
        self.window.append(values | {"pairs": len(indices), "tokens": tokens})
        self.report.step(step, values)
        if values["skipped"]:
            self._skip(step, values, indices)
        else:
            self.skipped_in_a_row = 0
            self.norms = [*self.norms, (step, values["grad_norm"])][-_NORMS - 2 :]
        self.signs, sign = after_update(self.signs, values)
        self._warn(step, sign)
        if step % self.log_every == 0 or step == self.steps:
            self._close_window(step)

    def _skip(self, step: int, values: Mapping[str, float], indices: np.ndarray) -> None:
        """Names what an update that was skipped would have learned from."""
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        why = {name: values[name] for name in ("loss", "grad_norm")}
        rows = [self.comparisons.origin(i) for i in np.sort(indices)]
        self.write(step, {**why, "skipped": self.skipped, "rows": rows})
        if self.skipped_in_a_row >= self.max_skipped:
            raise RmError(
                f"the last {self.max_skipped} updates were skipped (loss {why['loss']}, norm of the gradient "
                f"{why['grad_norm']} at step {step}); the checkpoints before are whole: lower --learning-rate, or look "
                f"at the rows named in {self.path}"
            )

    def _close_window(self, step: int) -> None:
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now  # a coarse clock may not have moved
        good = [values for values in self.window if not values["skipped"]] or self.window
        own = sorted(good[0].keys() - TAKEN)
        entry = {name: sum(values[name] for values in good) / len(good) for name in (*_AVERAGED, *own)}
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
        self.signs = after_window(self.signs, entry["loss"])
        if self.pairwise and step == self.steps:
            self._warn(step, at_the_end(self.signs, self.steps))

    def evaluated(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """Writes an evaluation down, and says what is wrong with it; before the first update, a head may be zero."""
        self.write(step, evaluation)
        if step:
            self.signs, said = after_evaluation(self.signs, evaluation)
            for text in said:
                self._warn(step, text)

    def _warn(self, step: int, text: str) -> None:
        if text:
            self.write(step, {"warning": text})

    def write(self, step: int, entry: Mapping[str, Any]) -> None:
        """Appends a line to the file, shows it and gives it to the trackers."""
        infinite = {name for name, value in entry.items() if isinstance(value, float) and not math.isfinite(value)}
        finite = {name: None if name in infinite else value for name, value in entry.items()}  # JSON has no NaN
        line = {"step": step, "epoch": step / self.steps_per_epoch, **finite}
        if leads():
            append_line(self.path, json.dumps(line))
        self.report.line({**line, **entry})
        shown = {"skipped": entry["skipped"]} if "rows" in entry else entry  # whose loss would hide the window's mean
        if numbers := finite_numbers(shown):
            for track in self.tracks:
                track(step, {"epoch": line["epoch"], **numbers})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Reads what there is to read; the time inside (evaluating, saving) does not count against the throughput."""
        if self._waiting is not None:
            self._read(*self._waiting)
            self._waiting = None
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
