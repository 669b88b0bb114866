"""The directory of a run: its checks, run.json, and the facts that an export carries."""

import hashlib
import json
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ..data.sources import is_file_name, parse_source
from ..devices.processes import leads
from ..errors import ConfigError, DataError, OutputError, WeightsError
from ..files.hub import read_json
from ..files.output import check_writable, read_owner, replace_file, writing
from ..saving.checkpoints import check_name
from ..text.tokenizer import Tokenizer
from ..version import __version__
from .options import flag

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "tokenizers", "datasets", "safetensors", "orbax-checkpoint")

_SEEN_SECONDS = 15  # in which a file that one process has written appears to another, on a slow file system

Resume = Literal["never", "auto", "required"]


def recorded(output: Path) -> dict[str, Any]:
    """What `run.json` says, or nothing where there is none."""
    return read_json(output / "run.json") if (output / "run.json").is_file() else {}


def check_output(output: Path, *, resume: Resume) -> None:
    """Refuses a directory that holds a run already, unless it is to be resumed.

    **Raises:** `OutputError`.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; choose a directory for the run")
    check_name(output)
    check_writable(output)
    saved = (output / "checkpoints").is_dir() and (output / "run.json").is_file()
    if resume == "never" and (output / "model").exists():
        advice = ", or go on longer with --resume auto and more --max-steps" if saved else ""
        raise OutputError(f"{output}: holds a finished run (model/ is there); choose another --output{advice}")
    if resume == "required" and not saved:
        raise OutputError(f"{output}: nothing to resume (no checkpoints/ and run.json); --resume auto begins one")
    if (resume == "never" or not (output / "run.json").is_file()) and any(
        (output / name).exists() for name in ("run.json", "metrics.jsonl", "checkpoints", "model")
    ):
        advice = ", or go on with --resume auto" if saved else ""
        raise OutputError(f"{output}: holds a run already; choose another --output{advice}")


def check_shared(output: Path, owner: Mapping[str, Any]) -> None:
    """Refuses a directory in which this process does not see what process 0 has written.

    **Arguments:** `owner`, what process 0 has said of itself there; a network's file system shows it after a while.

    **Raises:** `OutputError`.
    """
    end = time.monotonic() + _SEEN_SECONDS
    while (found := read_owner(output)) != owner:
        if time.monotonic() > end:
            seen = f"a file of {found.get('host')}, since {found.get('since')}" if found else "no such file"
            expected = (
                f"expected the .owner.json that process 0 wrote on {owner['host']} at {owner['since']}, found {seen}"
            )
            raise OutputError(f"{output.absolute()}: {expected}; give an --output that all processes share")
        time.sleep(0.2)
        list(output.parent.glob("*"))  # NFS then looks again at what it did not find before


def saved_steps(output: Path) -> list[int]:
    """The updates after which this process sees a checkpoint."""
    return sorted(int(path.name) for path in (output / "checkpoints").glob("*") if path.name.isdecimal())


def check_same_arguments(output: Path, arguments: Mapping[str, Any]) -> None:
    """Refuses to resume with other values of arguments that decide what a run computes.

    **Raises:** `ConfigError`, naming the flag.
    """
    before, now = recorded(output).get("arguments", {}), json.loads(json.dumps(arguments, default=str))
    for name in now:
        if name in before and before[name] != now[name]:  # an older run may not know of a flag
            found = f"the run has {flag(name)} {before[name]}, found {now[name]}"
            raise ConfigError(f"{output}: {found}; resume with the same")


def check_same_objective(output: Path, name: str) -> None:
    """Refuses to resume with another objective.

    **Raises:** `ConfigError`.
    """
    before = recorded(output).get("objective", name)
    if before != name:
        raise ConfigError(f"{output}: the run has the objective {before}, found {name}; resume with the same")


def check_same_data(output: Path, training: str) -> None:
    """Refuses to resume with training data that have changed since the run began.

    **Raises:** `DataError`.
    """
    before = recorded(output).get("data_sha256", [training])[0]  # those to evaluate on come after
    if before != training:
        found = f"the run began with data of hash {before}, found {training}"
        raise DataError(f"{output}: {found}; put the data back as it was, or begin a new run")


def check_same_weights(output: Path, fingerprint: str) -> None:
    """Refuses to go on with another base than that of the run, whose checkpoints hold only what trains.

    **Raises:** `WeightsError`.
    """
    before = recorded(output).get("weights_xxh3", fingerprint)
    if before != fingerprint:
        found = f"--model has weights of hash {fingerprint}, the run began with {before}"
        raise WeightsError(f"{output}: {found}; put the weights back as they were, or begin a new run")


def check_length(output: Path, steps: int, *, streaming: bool = False) -> None:
    """Refuses to resume with fewer updates than the run has; more are fine.

    **Raises:** `ConfigError`.
    """
    before = recorded(output).get("steps", steps)
    if steps < before:
        found = f"--max-steps and --epochs make {steps} updates, and the run has {before}"
        raise ConfigError(f"{output}: {found}; resume with as many or more")
    if streaming and steps > before:
        found = f"a run of {before} updates with --streaming has read no rows for {steps}"
        raise ConfigError(f"{output}: {found}; resume with the same --max-steps")


def set_model_aside(output: Path) -> Path:
    """Renames the export of a run that goes on, so that it is finished again where there is another.

    **Raises:** `OutputError`.
    """
    model = output / "model"
    steps = recorded(output).get("steps")
    aside = output / f"model-{steps}"
    if leads():
        with writing(aside):
            model.rename(aside)
            if (output / "adapter").is_dir():
                (output / "adapter").rename(output / f"adapter-{steps}")
    return aside


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json`, replacing the old one as a whole; one process does."""
    if leads():
        replace_file(output / "run.json", json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n")


def run_id(output: Path) -> str:
    """The name of the run among others of a tracker's, the same when it is resumed."""
    return recorded(output).get("run_id") or uuid.uuid4().hex[:8]


def versions() -> dict[str, str]:
    """The versions of the packages and of Python, and the devices."""
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


def pool_rewards(evaluation: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, Any]:
    """Mean and spread of the rewards of all evaluation sets together, every reward with the same weight.

    `mean = Σ nᵢ mᵢ / Σ nᵢ` and `std² = Σ nᵢ (sᵢ² + (mᵢ - mean)²) / Σ nᵢ`, which need not what each reward was.

    **Arguments:** `evaluation`, with `eval_NAME_mean_reward` and `eval_NAME_std_reward`; `counts`, the rewards of each
    set, two for a comparison.

    >>> found = {"eval_a_mean_reward": 1.0, "eval_a_std_reward": 1.0}  # of 0, 0, 2, 2
    >>> found |= {"eval_b_mean_reward": 4.0, "eval_b_std_reward": 0.0}  # of 4, 4
    >>> pool_rewards(found, {"a": 4, "b": 2})
    {'mean': 2.0, 'std': 1.632993161855452, 'count': 6, 'data': ['a', 'b']}
    """
    sizes = list(counts.values())
    means, stds = (np.array([evaluation[f"eval_{name}_{kind}_reward"] for name in counts]) for kind in ("mean", "std"))
    mean = np.average(means, weights=sizes)
    std = np.sqrt(np.average(stds**2 + (means - mean) ** 2, weights=sizes))
    return {"mean": float(mean), "std": float(std), "count": sum(sizes), "data": list(counts)}


def provenance(
    record: Mapping[str, Any], tokenizer: Tokenizer, *, hyperparameters: Mapping[str, Any], repository: str | None
) -> dict[str, Any]:
    """The facts of the run that an export carries. Exports are given away, so local files lose their directory."""
    arguments, template = record["arguments"], tokenizer.chat_template
    base = parse_source(arguments["model"])
    return {
        "base_model": _public_name(base.path),
        "base_model_is_hub_id": _is_hub_id(base.path),
        "dataset": [_public_name(parse_source(dataset).path) for dataset in arguments["dataset"]],
        "data": {
            name: table | {"source": _public_name(table["source"]), "hub": _is_hub_id(table["source"])}
            for name, table in record["data"].items()
        },
        "hyperparameters": json.loads(json.dumps(hyperparameters, default=str)),
        "steps": record.get("best_step", record["steps"]),
        **({"lengthened": record["lengthened"]} if "lengthened" in record else {}),
        "parameters": record["model"]["parameters"],
        "trained": record["model"]["trained"],
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "evaluation": record["evaluation"],
        **({"reward": record["reward"]} if "reward" in record else {}),
        "repository": repository,
        "versions": record["versions"],
    }


def _is_hub_id(path: str) -> bool:
    return not Path(path).exists() and not is_file_name(path)


def _public_name(path: str) -> str:
    return path if _is_hub_id(path) else Path(path).resolve().name
