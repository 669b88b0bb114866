"""The mapping from the leaves of `RewardModel` to Hugging Face's tensor names."""

import re
from collections.abc import Mapping

import jax

from ..errors import WeightsError
from ..files.weights import TensorFiles
from .config import LlamaConfig
from .published import HEADS, SCORE

_TOP = {"embed_tokens": "model.embed_tokens.weight", "norm": "model.norm.weight"}
_MLP = ("gate_proj", "up_proj", "down_proj")
# Other tensors: a causal LM's own head, rotary tables that old versions stored, the statistics of Safe RLHF's rewards.
_IGNORED = r"lm_head\.weight|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq|normalizer\.(mean|var|count)"
# Prefixes that wrappers of a model add to its tensor names.
_WRAPPERS = {
    "module.": "DataParallel, DDP or DeepSpeed",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
    "base_model.model.": "peft",
    "pretrained_model.": "a value head of TRL",
}
_WRAPPER = re.compile(r"(?<![\w])(?:" + "|".join(map(re.escape, _WRAPPERS)) + ")")


def tensor_names(leaf: str, config: LlamaConfig, head: Mapping[str, str] = SCORE, *, first: int = 0) -> list[str]:
    """The names of the Hugging Face tensors that make up a leaf of `RewardModel`: one, or one per stacked layer.

    **Arguments:** `head`, the names of the head's tensors, as `find_head` gives them; `first`, the number of layers in
    `first_blocks`.

    >>> config = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=3,
    ...                      num_attention_heads=2)
    >>> tensor_names("blocks.q_proj.weight", config)
    ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight']
    >>> tensor_names("last_block.input_layernorm", config)
    ['model.layers.2.input_layernorm.weight']
    """
    if leaf.startswith("score"):
        return [head[leaf]]
    stack, _, rest = leaf.partition(".")
    last = config.num_hidden_layers - 1
    layers = {"first_blocks": range(first), "blocks": range(first, last), "last_block": [last]}
    if stack not in layers:
        return [_TOP[leaf]]
    name, _, kind = rest.partition(".")
    part = "" if name.endswith("layernorm") else "mlp." if name in _MLP else "self_attn."
    return [f"model.layers.{layer}.{part}{name}.{kind or 'weight'}" for layer in layers[stack]]


def leaf_name(path: tuple) -> str:
    """The dotted name of a leaf, for `tensor_names`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def check_names(files: TensorFiles, names: list[str]) -> None:
    """Raises `WeightsError`, naming a tensor and where possible the cause, unless files hold exactly these tensors."""
    expected = set(names)
    missing = sorted(expected - files.names)
    if missing:
        _check_prefix(files, missing)
        found = f"missing tensor {missing[0]!r}{_and_more(missing)}, which config.json asks for"
        advice = "use the config.json that belongs to the weights, and all of their shards"
        if missing == ["score.weight"]:
            advice = "if it is a causal LM, name it so in architectures (LlamaForCausalLM), and training draws a head"
        raise WeightsError(f"{files.directory}: {found}; {advice}")
    extra = sorted(name for name in files.names - expected if not re.fullmatch(_IGNORED, name))
    if extra:
        found = f"extra tensor {extra[0]!r}{_and_more(extra)} that config.json does not allow"
        advice = "use the config.json that belongs to the weights"
        if not extra[0].startswith("model."):
            advice = f"heads that are read are {', '.join(HEADS)}, linear or with one hidden layer"
        raise WeightsError(f"{files.directory}: {found}; {advice}")


def _check_prefix(files: TensorFiles, missing: list[str]) -> None:
    """Reports a LoRA adapter, or a prefix that a wrapper has added to tensor names, as the cause of missing tensors."""
    adapters = sorted(name for name in files.names if ".lora_" in name)
    if adapters:
        found = f"{adapters[0]!r}{_and_more(adapters)} are tensors of a LoRA adapter"
        raise WeightsError(f"{files.directory}: {found}; merge it into its base first (peft's merge_and_unload)")
    ends = [f".{name.removeprefix(start)}" for name in missing for start in ("", "model.")]
    wrapped = sorted(name for name in files.names if _WRAPPER.search(name) or name.endswith(tuple(ends)))
    if not wrapped:
        return
    name = wrapped[0]
    inner = _WRAPPER.search(name)
    end = max((end for end in ends if name.endswith(end)), key=len, default="")
    prefix = inner[0] if inner else name.removesuffix(end) + "."
    cause = f", which {_WRAPPERS[prefix]} leaves" if prefix in _WRAPPERS else ""
    found = f"the names of tensors have the prefix {prefix!r}{cause} ({name!r}{_and_more(wrapped)})"
    raise WeightsError(f"{files.directory}: {found}; take it out of the names, in the index too where there is one")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
