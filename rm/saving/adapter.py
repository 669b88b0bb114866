"""Low-rank adapters in the form of `peft`, which loads them onto their base."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ..devices.processes import fetch, leads
from ..errors import ConfigError
from ..files.hub import ADAPTER
from ..files.output import new_directory, write_files
from ..files.weights import write_json
from ..model.adapters import TARGETS, frozen_layers
from ..model.heads import is_matrix
from ..model.layers import Linear, Lora
from ..model.llama import RewardModel
from ..model.peft_files import PREFIX, WEIGHTS
from ..model.tensor_names import leaf_name, tensor_names
from ..text.pad_token import match_tokenizer
from ..text.portable import portable_files
from ..text.tokenizer import Tokenizer


def save_adapter(
    path: str | Path, model: RewardModel, tokenizer: Tokenizer, *, base: str | Path, revision: str | None = None
) -> None:
    """Writes the adapters and the head of a model as a directory that `peft` and `load_reward_model` load.

    It holds `adapter_config.json`, `adapter_model.safetensors` (float32) and the tokenizer's files, and appears only
    when it is complete.

    **Arguments:** `base`, the directory or hub id of the weights without the adapters; a directory is written down as
    an absolute path; `revision`, a branch, tag or commit of a hub repository.

    **Raises:** `ConfigError` for a model without adapters, and for a head that is not one matrix; `OutputError` where
    `path` exists or cannot be written.
    """
    from safetensors.numpy import save_file

    if not is_matrix(model):
        found = "the head has a bias or a hidden layer, which peft's form does not hold"
        raise ConfigError(f"save_adapter: {found}; save_reward_model writes the merged model")
    model, tokenizer = match_tokenizer(model, tokenizer)
    tensors = {name: np.ascontiguousarray(fetch(array)) for name, array in _tensors(model)}  # all processes take part
    if not leads():
        return
    with new_directory(path) as directory:
        write_json(directory / ADAPTER, _config(model, base) | {"revision": revision})
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / WEIGHTS).chmod(0o644)  # the library leaves it to its owner alone
        write_files(directory, portable_files(tokenizer))


def _adapters(model: RewardModel) -> dict[str, Lora]:
    """The adapters by the name of their layer, such as `blocks.q_proj`."""
    layers = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, Linear))
    return {leaf_name(path): node.lora for path, node in layers if isinstance(node, Linear) and node.lora is not None}


def _tensors(model: RewardModel) -> Iterator[tuple[str, Array]]:
    """The tensors by the names that `peft` gives them."""
    yield f"{PREFIX}score.weight", model.score
    for layer, lora in _adapters(model).items():
        names = [
            name.removesuffix("weight")
            for name in tensor_names(f"{layer}.weight", model.config, first=frozen_layers(model))
        ]
        for number, name in enumerate(names):
            for factor, array in (("lora_A", lora.a), ("lora_B", lora.b)):
                yield f"{PREFIX}{name}{factor}.weight", array[number] if layer.startswith("blocks.") else array


def _config(model: RewardModel, base: str | Path) -> dict[str, Any]:
    adapters = _adapters(model)
    if not adapters:
        raise ConfigError("save_adapter: the model has no adapters; save_reward_model writes a whole model")
    lora, first = next(iter(adapters.values())), frozen_layers(model)
    rank = lora.a.shape[-2]
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(Path(base).absolute()) if Path(base).is_dir() else str(base),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": lora.scale * rank,  # whatever rule the scale came from
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": [f"{name}_proj" for name in TARGETS if f"last_block.{name}_proj" in adapters],
        "modules_to_save": ["classifier", "score"],
        "layers_to_transform": list(range(first, model.config.num_hidden_layers)) if first else None,
        "layers_pattern": "layers" if first else None,
    }
