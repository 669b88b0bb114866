"""Where a run's metrics go besides metrics.jsonl: functions of a step and its numbers, which never end the run."""

import importlib.util
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RmError

Track = Callable[[int, Mapping[str, float]], None]
"""Takes the number of an update, counted from 1, and the finite numbers of a line of metrics.jsonl."""

PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboardX", "trackio": "trackio"}
_SECONDS = 60  # that wandb may take to begin, and again to end
_LOGIN_SECONDS = 30  # that it waits at a terminal for somebody to log in
_FLUSH = "x_transaction_log_flush_interval"  # a setting of wandb 0.31, whose 15 seconds a killed run would lose
_SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # what variables that hold one end in


def check_installed(name: str) -> None:
    """Raises `ConfigError` where the package of a tracker is missing."""
    found = importlib.util.find_spec(PACKAGES[name])
    if found is None or found.origin is None:  # a mere folder of that name, as wandb leaves in many places
        advice = f"python -m pip install 'rm-jax[{name}]'"
        raise ConfigError(f"--{name} needs the package {PACKAGES[name]}, which is not installed: {advice}")


def finite_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What of a line of metrics a tracker is given.

    >>> finite_numbers({"loss": 0.5, "grad_norm": float("nan"), "skipped": 0, "margin": None, "rows": ["a: row 1"]})
    {'loss': 0.5, 'skipped': 0}
    """
    numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


@contextmanager
def tensorboard_tracker(directory: Path, about: Mapping[str, Any], *, step: int = 0) -> Iterator[Track]:
    """Writes event files that TensorBoard shows.

    Written at once and in this thread: the queue of tensorboardX's own writer blocks for ever once a disk is full.

    **Arguments:** `about`, the run in sections, each shown as a text; `step`, the update to go on after: what was
    written of later ones is hidden.
    """
    from tensorboardX.event_file_writer import EventsWriter  # pyright: ignore
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
    from tensorboardX.summary import scalar, text  # pyright: ignore

    directory.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")  # another name within the same second

    def write(step: int, **content: Any) -> None:
        writer.write_event(Event(wall_time=time.time(), step=step, **content))
        writer.flush()

    def track(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            write(step, summary=scalar(name, value))

    write(step + 1, session_log=SessionLog(status=SessionLog.START))
    for name, section in about.items():
        write(step, summary=text(name, f"```json\n{json.dumps(section, indent=2, ensure_ascii=False)}\n```"))
    try:
        yield track
    finally:
        writer.close()


@contextmanager
def wandb_tracker(
    project: str, about: Mapping[str, Any], *, run_id: str, name: str, directory: Path, quiet: bool = False
) -> Iterator[Track]:
    """Sends to Weights & Biases; with `WANDB_MODE=offline` it only writes below `directory`.

    Of a process that is killed the file there lacks the last step, which wandb holds back until the next begins, and
    the last second; with versions of wandb that cannot be told how often to write, up to 32 KiB, which may be all.

    **Arguments:** `about`, the configuration of the run; `run_id`, the run that is begun or gone on with.

    **Raises:** what wandb raises, such as without a login or a network, after a minute at the latest.
    """
    import wandb  # pyright: ignore

    wandb.setup(wandb.Settings(login_timeout=_LOGIN_SECONDS, silent=quiet))
    often: dict[str, Any] = {_FLUSH: 1.0} if _FLUSH in wandb.Settings.model_fields else {}
    settings = wandb.Settings(
        init_timeout=_SECONDS, finish_timeout=_SECONDS, console="off", save_code=False, silent=quiet, **often
    )
    place: dict[str, Any] = {"project": project, "id": run_id, "resume": "allow", "name": name, "dir": str(directory)}
    with wandb.init(**place, config=dict(about), allow_val_change=True, settings=settings) as run:

        def track(step: int, values: Mapping[str, float]) -> None:
            if step >= run.step:  # a resumed run has the steps before, with the same values
                run.log(dict(values), step=step)

        yield track


@contextmanager
def trackio_tracker(project: str, about: Mapping[str, Any], *, name: str, quiet: bool = False) -> Iterator[Track]:
    """Writes to trackio's own place on this machine, or to the Space that `TRACKIO_SPACE_ID` names.

    Its thread writes every half second, which is what a process that is killed loses.
    """
    import trackio  # pyright: ignore

    said = redirect_stdout(io.StringIO()) if quiet else nullcontext()
    with said:
        options: dict[str, Any] = {"config": dict(about), "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        run = trackio.init(project, name=name, resume="allow", **options)
    known = getattr(run, "_next_step", 0)  # trackio has no public name for it

    def track(step: int, values: Mapping[str, float]) -> None:
        if step >= known:  # a resumed run has the steps before, with the same values
            run.log(dict(values), step=step)

    try:
        yield track
    finally:
        with said:
            trackio.finish()


def open_trackers(
    output: Path,
    about: Mapping[str, Any],
    *,
    step: int,
    run_id: str,
    name: str | None = None,
    wandb: str | None = None,
    tensorboard: bool = False,
    trackio: str | None = None,
    quiet: bool = False,
) -> dict[str, AbstractContextManager[Track]]:
    """The trackers that a run asked for, by name.

    **Arguments:** `output`, the directory of the run; `about`, what `run.json` says; `step`, the update after which the
    run goes on; `run_id`, by which it is known to services; `name`, shown there in place of the directory's; `wandb`
    and `trackio`, projects there.
    """
    about, name = json.loads(json.dumps(about, default=str)), name or output.name
    found: dict[str, AbstractContextManager[Track]] = {}
    if tensorboard:
        found["tensorboard"] = tensorboard_tracker(output / "tensorboard", about, step=step)
    if wandb:
        found["wandb"] = wandb_tracker(wandb, about, run_id=run_id, name=name, directory=output, quiet=quiet)
    if trackio:
        found["trackio"] = trackio_tracker(trackio, about, name=f"{name}-{run_id}", quiet=quiet)
    return found


@contextmanager
def guarded(name: str, tracker: AbstractContextManager[Track], warn: Callable[[str], None]) -> Iterator[Track]:
    """A tracker that is dropped once anything in it fails, at its beginning, a step or its end; `warn` is told once."""
    failed = False

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal failed
        try:
            return function(*arguments)
        except Exception as error:  # whatever it is, the run matters more
            if not failed:
                warn(f"{name} failed ({_reason(error)}); training goes on without it")
            failed = True

    track = attempt(tracker.__enter__)
    opened = not failed
    try:
        yield lambda step, values: None if failed else attempt(track, step, values)
    finally:
        if opened:
            attempt(tracker.__exit__, *sys.exc_info())


def _reason(error: Exception) -> str:
    """The kind and the first line of an error, with no secret of the environment in it."""
    text = str(error).strip().partition("\n")[0][:200]
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRET) and len(value) >= 8:
            text = text.replace(value, "…")
    return str(RmError(f"{type(error).__name__}: {text}" if text else type(error).__name__))
