"""Exports reward models to Hugging Face directories, which `transformers`, TRL and vLLM load."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..devices.processes import fetch, leads
from ..errors import WeightsError, warn_once
from ..files.hub import RECORD, sha256_of
from ..files.output import new_directory, write_files
from ..files.weights import write_json, write_tensors
from ..model.adapters import frozen_layers, merged_weight
from ..model.layers import Linear
from ..model.llama import RewardModel
from ..model.published import LINEAR, MLP, head_names
from ..model.sharding import STACKS
from ..model.tensor_names import leaf_name, tensor_names
from ..text.pad_token import match_tokenizer
from ..text.portable import portable_files, splits_like_qwen2, with_date
from ..text.tokenizer import Tokenizer
from ..version import __version__
from .card import Texts, model_card


def save_reward_model(
    path: str | Path,
    model: RewardModel,
    tokenizer: Tokenizer,
    *,
    dtype=None,
    max_shard_bytes: int = 5_000_000_000,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a directory that `transformers`, TRL and vLLM load, as `LlamaForSequenceClassification` for a Llama.

    With a bias it is a `LlamaForTokenClassification`, whose logits at the last token are the reward. A head with a
    hidden layer is written in the form of INF-ORM, which no class of `transformers` reads; a warning says so.

    The directory holds `config.json`, `model.safetensors` (or shards with an index), the tokenizer's files (with the
    pad token of `match_tokenizer` and the changes of `portable_files`), a model card and `rm.json`. It appears only
    when it is complete.

    **Arguments:** `dtype`, of the weights on disk, by default that of the parameters (the head is always float32);
    `provenance`, facts about the run for `rm.json` and the card.

    **Raises:** `OutputError` where `path` exists already or cannot be written.
    """
    model, tokenizer = match_tokenizer(model, tokenizer)
    if not leads():  # this process only helps to gather the parameters
        write_model(None, model, dtype=dtype, max_shard_bytes=max_shard_bytes)
        return
    if model.config.model_type == "qwen2" and not splits_like_qwen2(tokenizer):
        found = (
            "the AutoTokenizer of transformers 5 takes Qwen2Tokenizer for every qwen2 model, which splits other tokens"
        )
        warn_once(f"{path}: {found} than this tokenizer; load it there as PreTrainedTokenizerFast")
    pooling = {"reads": "the rightmost token that is not pad_token_id", "pad_token_id": model.config.pad_token_id}
    if model.config.reward_token_id is not None:
        pooling["appended_token_id"] = model.config.reward_token_id
    record = {"rm_version": __version__, "pooling": pooling, **(provenance or {})}
    if tokenizer.chat_template is not None:
        record["chat_template_date"] = tokenizer.today.isoformat()
    with new_directory(path) as directory:
        record["tensors"] = write_model(directory, model, dtype=dtype, max_shard_bytes=max_shard_bytes)
        stored = jnp.dtype(model.norm.dtype if dtype is None else dtype).name
        write_json(directory / "config.json", _hf_config(model) | {"dtype": stored})
        files = portable_files(tokenizer)
        write_files(directory, files)
        record["sha256"] = {name: sha256_of(directory / name) for name in ("config.json", *files)}
        write_json(directory / RECORD, record)
        card = model_card(Path(path).name, record, _texts(model, tokenizer))
        (directory / "README.md").write_text(card, encoding="utf-8")
    if model.score_hidden is not None:
        warn_once(f"{path}: the head has a hidden layer, which rm reads, and no class of transformers")


def _hf_config(model: RewardModel) -> dict[str, Any]:
    """The `config.json` of a model: its class is the one whose head has the same tensors."""
    config, labels = model.config.to_hf(), len(model.score)
    if labels > 1:
        names = [f"reward_{label}" for label in range(labels)]
        config |= {"num_labels": labels, "id2label": dict(zip(map(str, range(labels)), names, strict=True))}
        config["label2id"] = {name: label for label, name in enumerate(names)}
    if model.score_hidden is not None:
        return config | {"architectures": ["INFORMForSequenceClassification"]}
    if model.score_bias is not None:
        token_class = config["architectures"][0].replace("ForSequence", "ForToken")
        return config | {"architectures": [token_class]}
    return config


def _texts(model: RewardModel, tokenizer: Tokenizer) -> Texts:
    templates = "\n".join(filter(None, (tokenizer.chat_template, *tokenizer.named_templates.values())))
    uses_date = "strftime_now(" in templates
    return Texts(
        chat=bool(templates),
        eos_token=tokenizer.eos_token,
        date=tokenizer.today.isoformat() if uses_date else None,
        date_is_written="strftime_now(" not in with_date(templates, tokenizer.today),
        appended=tokenizer.decode([token]) if (token := model.config.reward_token_id) is not None else "",
        head="hidden" if model.score_hidden is not None else "bias" if model.score_bias is not None else "linear",
        labels=len(model.score),
    )


def _named_leaves(model: RewardModel) -> dict[str, Any]:
    """The leaves by name; in place of a weight stands its layer, with the adapter if there is one."""
    found: dict[str, Any] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, Linear)):
        name = leaf_name(path)
        if not isinstance(node, Linear):
            found[name] = node
            continue
        found[f"{name}.weight"] = node
        found |= {} if node.bias is None else {f"{name}.bias": node.bias}
    return found


def write_model(
    directory: Path | None, model: RewardModel, *, dtype=None, max_shard_bytes: int, head: bool = True
) -> dict[str, str]:
    """Writes the tensors of a model under their Hugging Face names, with the head only if `head`.

    Adapters are merged into their weights, one tensor at a time. Returns the checksums. Without a directory, the
    process only helps to gather the tensors for the one that writes.
    """
    leaves, first = _named_leaves(model), frozen_layers(model)
    leaves = {leaf: array for leaf, array in leaves.items() if head or not leaf.startswith("score")}
    names = head_names("score", LINEAR if model.score_hidden is None else MLP)
    named = {leaf: tensor_names(leaf, model.config, names, first=first) for leaf in leaves}
    where = {name: (leaf, i) for leaf, names in named.items() for i, name in enumerate(names)}

    def whole(leaf: str) -> jax.Array:
        return leaves[leaf].weight if isinstance(leaves[leaf], Linear) else leaves[leaf]

    def disk_dtype(leaf: str) -> np.dtype:
        return jnp.dtype(whole(leaf).dtype if dtype is None or leaf.startswith("score") else dtype)

    def shape(leaf: str) -> tuple[int, ...]:
        return whole(leaf).shape[leaf.startswith(STACKS) :]

    def read(name: str) -> np.ndarray:
        leaf, layer = where[name]
        part = jax.tree.map(lambda x: x[layer], leaves[leaf]) if leaf.startswith(STACKS) else leaves[leaf]
        part = merged_weight(part) if isinstance(part, Linear) else part
        with np.errstate(over="ignore"):  # an overflow is refused below
            values = fetch(part).astype(disk_dtype(leaf))
        if not np.isfinite(values).all():
            raise WeightsError(f"tensor {name!r} has become NaN or infinite as {values.dtype}; nothing was written")
        return values

    sizes = {name: math.prod(shape(leaf)) * disk_dtype(leaf).itemsize for name, (leaf, _) in sorted(where.items())}
    return write_tensors(directory, sizes, read, max_shard_bytes=max_shard_bytes)
