"""A run's directory: what may stand in it, and run.json."""

import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax

from ..devices.processes import leads
from ..errors import ConfigError, DataError, OutputError
from ..files.hub import read_json
from ..files.output import check_writable, replace_file
from ..version import __version__
from .flags import flag

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "tokenizers", "datasets", "safetensors", "orbax-checkpoint")

MAY_CHANGE = {
    "output",
    "resume",
    "eval_dataset",
    "eval_split",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "keep_best",
    "max_skipped",
    "wandb",
    "tensorboard",
    "trackio",
    "quiet",
    "push_to",
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


Resume = Literal["never", "auto", "required"]


def check_output(output: Path, *, resume: Resume) -> None:
    """Refuses a directory that holds a run already, unless it is to be resumed.

    **Raises:** `OutputError`.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; choose a directory for the run")
    check_writable(output)
    if (output / "model").exists():
        raise OutputError(f"{output}: holds a finished run (model/ is there); choose another --output")
    saved = (output / "checkpoints").is_dir() and (output / "run.json").is_file()
    if resume == "required" and not saved:
        raise OutputError(f"{output}: nothing to resume (no checkpoints/ and run.json); --resume auto begins one")
    if (resume == "never" or not (output / "run.json").is_file()) and any(
        (output / name).exists() for name in ("run.json", "metrics.jsonl", "checkpoints")
    ):
        advice = ", or go on with --resume auto" if saved else ""
        raise OutputError(f"{output}: holds a run already; choose another --output{advice}")


def check_same_arguments(output: Path, arguments: Mapping[str, Any]) -> None:
    """Refuses to resume with arguments that would make another run of it.

    **Raises:** `ConfigError`, naming the flag.
    """
    before = read_json(output / "run.json").get("arguments", {}) if (output / "run.json").is_file() else {}
    now = json.loads(json.dumps(arguments, default=str))
    for name in now.keys() - MAY_CHANGE:
        if name in before and before[name] != now[name]:  # an older run may not know of a flag
            found = f"the run has {flag(name)} {before[name]}, found {now[name]}"
            raise ConfigError(f"{output}: {found}; resume with the same")


def check_same_data(output: Path, hashes: Sequence[str]) -> None:
    """Refuses to resume with data that has changed since the run began.

    **Raises:** `DataError`.
    """
    before = read_json(output / "run.json").get("data_sha256") if (output / "run.json").is_file() else None
    if before is not None and before != list(hashes):
        found = f"the run began with data of hash {', '.join(before)}, found {', '.join(hashes)}"
        raise DataError(f"{output}: {found}; put the data back as it was, or begin a new run")


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json`, replacing the old one as a whole; one process does."""
    if leads():
        replace_file(output / "run.json", json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n")


def run_id(output: Path) -> str:
    """The name of the run among others of a tracker's, the same when it is resumed."""
    before = read_json(output / "run.json") if (output / "run.json").is_file() else {}
    return before.get("run_id") or uuid.uuid4().hex[:8]


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


def dataset_name(dataset: str, taken: Sequence[str] = ()) -> str:
    """The name that metrics give a data set: `…/my-pairs.jsonl.gz` is `my_pairs`."""
    stem = Path(dataset).name.split(".")[0] or "data"
    name = "".join(letter if letter.isalnum() else "_" for letter in stem)
    names = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)
