"""The reward model of a training state: `RUN/checkpoints/STEP`."""

import dataclasses
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..checkpoint import Checkpoints, abstract
from ..data.sources import parse_source
from ..data.tokenizer import Tokenizer
from ..hf import load_config, match_config
from ..hub import read_json
from ..model import RewardModel, init_reward_model
from ..update import init_state
from .arguments import TrainArguments
from .data import read_tokenizer
from .train import training_optimizer

_READ: dict[str, Callable[[str], Any]] = {
    "output": Path,
    "chat_template": Path,
    "chat_template_date": date.fromisoformat,
}


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is that of a checkpoint of a run.

    >>> is_checkpoint("run/checkpoints/500"), is_checkpoint("run/model")
    (True, False)
    """
    path = Path(path)
    return path.name.isdigit() and path.parent.name == "checkpoints"


def load_trained(path: str | Path) -> tuple[RewardModel, Tokenizer]:
    """The model and the tokenizer of a run after an update, as `run.json` describes them; the run may be going on.

    **Raises:** `CheckpointError` where there is no such checkpoint, or a damaged one.
    """
    path = Path(path)
    record = read_json(path.parent.parent / "run.json")
    args = _arguments(record["arguments"])
    source = parse_source(args.model)
    config, tokenizer = match_config(load_config(source.path, revision=source.revision), read_tokenizer(args))
    _, optimizer = training_optimizer(dataclasses.replace(args, offload=False), record["steps"])
    model = init_reward_model(config, key=jax.random.key(0), dtype=jnp.dtype(args.parameters))
    like = abstract(init_state(model, optimizer))
    del model  # memory for one of them
    with Checkpoints(path.parent, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(int(path.name), like)
    return state.model, tokenizer


def _arguments(found: dict[str, Any]) -> TrainArguments:
    known = {field.name for field in dataclasses.fields(TrainArguments)}
    read: dict[str, Any] = {n: _READ[n](v) if n in _READ and v is not None else v for n, v in found.items()}
    return TrainArguments(**{name: value for name, value in read.items() if name in known})
