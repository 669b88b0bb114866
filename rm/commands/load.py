"""The reward model that `--model` names: a directory, a hub id, or the checkpoint of a run, going on or over."""

from datetime import date
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..data.sources import parse_source
from ..files.hub import read_json
from ..model.llama import RewardModel, init_reward_model
from ..model.loading import load_config, load_reward_model
from ..saving.checkpoints import Checkpoints
from ..text.pad_token import match_config, match_tokenizer
from ..text.tokenizer import Tokenizer, load_tokenizer


def is_checkpoint(path: str | Path) -> bool:
    """True for the path of a checkpoint of a run.

    >>> is_checkpoint("run/checkpoints/500"), is_checkpoint("run/model")
    (True, False)
    """
    path = Path(path)
    return path.name.isdigit() and path.parent.name == "checkpoints"


def load(name: str, mesh: Mesh | None = None) -> tuple[RewardModel, Tokenizer]:
    """A reward model, on a mesh where one is given, and its tokenizer.

    **Raises:** what `load_reward_model` and `load_tokenizer` raise; `CheckpointError` where there is no such
    checkpoint, or a damaged one.
    """
    if is_checkpoint(name):
        return _load_checkpoint(Path(name), mesh)
    source = parse_source(name)
    tokenizer = load_tokenizer(source.path, revision=source.revision)  # first, for weights may take minutes
    return match_tokenizer(load_reward_model(source.path, revision=source.revision, mesh=mesh), tokenizer)


def _load_checkpoint(path: Path, mesh: Mesh | None) -> tuple[RewardModel, Tokenizer]:
    """The model of a run after an update, as `run.json` describes it; the optimizer's state is not read."""
    args = read_json(path.parent.parent / "run.json")["arguments"]
    source, template, today = parse_source(args["model"]), args["chat_template"], args["chat_template_date"]
    tokenizer = load_tokenizer(
        source.path,
        revision=source.revision,
        chat_template=Path(template) if template else None,
        today=date.fromisoformat(today) if today else None,
    )
    config, tokenizer = match_config(load_config(source.path, revision=source.revision), tokenizer)
    init = partial(init_reward_model, config, dtype=jnp.dtype(args["parameters"]))
    like = jax.eval_shape(lambda key: init(key=key), jax.random.key(0))
    with Checkpoints(path.parent, read_only=True) as checkpoints:
        return checkpoints.restore_model(int(path.name), like, mesh=mesh), tokenizer
