"""The reward model that `--model` names: a directory, a hub id, or the checkpoint of a run, going on or over."""

import dataclasses
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..data.sources import parse_source
from ..files.hub import read_json
from ..model.loading import load_config, load_reward_model
from ..model.reward_model import RewardModel, init_reward_model
from ..saving.checkpoints import Checkpoints, abstract
from ..text.pad_token import match_config, match_tokenizer
from ..text.tokenizer import Tokenizer, load_tokenizer
from ..training.step import init_state
from .arguments import TrainArguments
from .read import read_tokenizer
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


def load(name: str) -> tuple[RewardModel, Tokenizer]:
    """A reward model and its tokenizer.

    **Raises:** what `load_reward_model` and `load_tokenizer` raise; `CheckpointError` where there is no such
    checkpoint, or a damaged one.
    """
    if is_checkpoint(name):
        return _load_checkpoint(Path(name))
    source = parse_source(name)
    tokenizer = load_tokenizer(source.path, revision=source.revision)  # first, for weights may take minutes
    return match_tokenizer(load_reward_model(source.path, revision=source.revision), tokenizer)


def _load_checkpoint(path: Path) -> tuple[RewardModel, Tokenizer]:
    """The model of a run after an update, as `run.json` describes it."""
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
