"""Loading of reward models from Hugging Face directories: safetensors, no torch."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PRNGKeyArray

from ..devices.mesh import shardings, standard_mesh
from ..errors import ConfigError, WeightsError, warn_once
from ..files.hub import ADAPTER, RECORD, read_record, resolve_directory
from ..files.weights import INDEX, VALUE_HEAD, Part, TensorFiles
from .config import LlamaConfig
from .config_json import read_config
from .heads import abstract_head, check_label_weights, weigh_labels
from .llama import RewardModel, init_reward_model, init_score_head
from .peft_files import WEIGHTS, Adapter, open_adapter
from .published import SCORE, expected_shapes, find_head
from .sharding import check_mesh, partition_specs
from .tensor_names import check_names, leaf_name, tensor_names

_THREADS = 4  # for reading weights
_PATTERNS = ("config.json", RECORD, "model.safetensors", "model-*-of-*.safetensors", INDEX, f"{VALUE_HEAD}.*")
_PATTERNS += (ADAPTER, WEIGHTS)


def load_reward_model(
    path_or_hub_id: str | Path,
    *,
    dtype=jnp.float32,
    key: PRNGKeyArray | None = None,
    head_std: float | None = None,
    labels: int = 1,
    head: str | None = None,
    label_weights: Sequence[float] = (),
    revision: str | None = None,
    mesh: Mesh | None = None,
) -> RewardModel:
    """Loads the reward model of a directory or a hub repository with safetensors weights.

    A directory of `peft` (`adapter_config.json`, LoRA) is loaded with its base, and merged. docs/models.md lists the
    backbones and heads that are read. The `pad_token_id` of a sequence classifier is the pooling rule. No other
    architecture has a pooling rule yet (`match_tokenizer` sets it), not even one with a head: OpenRLHF's `RewardModel`
    pads with the token at which it reads the reward. A causal LM gets a head from `N(0, head_std²)`.

    **Arguments:** `dtype`, the type of the parameters, whatever the files hold (the head is always float32); `key`, for
    the random head of a causal LM; `head_std`, `initializer_range` if `None`; `labels`, the rows of that head; `head`,
    such as `"lm_head:0"` for a causal LM whose reward is the first logit of the next token; `label_weights`, which make
    one reward of a head of several labels, their weighted sum; `revision`, a branch, tag or commit of a hub repository;
    `mesh`, the devices that hold the model; each process reads the shards of its own devices only.

    **Raises:** `ConfigError` for a `config.json` that is not supported, and unless `label_weights` are one for each
    label; `WeightsError`, naming the tensor, for a file that cannot be read, a missing, extra, duplicate, misshapen or
    non-finite tensor, a head that is not computed, and for a causal LM without `key`.
    """
    files = open_reward_model(path_or_hub_id, dtype=dtype, head=head, revision=revision)
    return files.load(key=key, head_std=head_std, labels=labels, label_weights=label_weights, mesh=mesh)


class ModelFiles(NamedTuple):
    """The files of a reward model, of which the configuration and the headers have been read and checked."""

    tensors: TensorFiles
    config: LlamaConfig
    stored: RewardModel  # the shapes and types of what the files hold: without a head, or with one
    head: Mapping[str, str]  # the tensors of the head by its leaves
    adapter: Adapter | None = None  # low-rank updates to add to the weights

    @property
    def labels(self) -> int:
        """The labels of the head; one where there is none yet."""
        return len(self.stored.score) if self.head else 1

    def fingerprint(self) -> str:
        """A hash of the tensors; see `TensorFiles.fingerprint`."""
        files = [self.tensors, *([self.adapter.tensors] if self.adapter else [])]
        return "-".join(each.fingerprint() for each in files)

    def load(
        self,
        *,
        key: PRNGKeyArray | None = None,
        head_std: float | None = None,
        labels: int = 1,
        label_weights: Sequence[float] = (),
        mesh: Mesh | None = None,
    ) -> RewardModel:
        """The model; no process waits for another. See `load_reward_model`."""
        self._check(key, label_weights)
        leaves, structure = jax.tree_util.tree_flatten_with_path(self.stored)
        placement: list[Sharding | None] = [None] * len(leaves)
        mesh = mesh and standard_mesh(mesh)
        if mesh is not None:
            check_mesh(self.config, mesh)
            placement = jax.tree.leaves(shardings(partition_specs(self.stored, mesh), mesh))
        with ThreadPoolExecutor(_THREADS) as threads:
            model = structure.unflatten(threads.map(self._read, leaves, placement))
        if not self.head and key is not None:
            drawn = init_score_head(self.config, key=key, std=head_std, labels=labels)
            return replace(model, score=_replicated(drawn, mesh))
        weighed = weigh_labels(model, label_weights) if len(label_weights) else {}
        return replace(model, **{name: _replicated(values, mesh) for name, values in weighed.items()})

    def _check(self, key: PRNGKeyArray | None, label_weights: Sequence[float]) -> None:
        """Refuses before weights are read what would fail after it; says where a head is drawn that may be there."""
        row = "lm_head.weight" in self.tensors.names or self.config.tie_word_embeddings
        if not self.head and key is None:
            advice = "so this is no reward model yet; train it, or give a key to draw a head"
            advice += "; where a row of lm_head is the head, name it (head='lm_head:0', --head)" if row else ""
            directory = (self.adapter or self.tensors).directory
            raise WeightsError(f"{directory}: no tensor 'score.weight', {advice}")
        if len(label_weights):
            check_label_weights(self.labels, label_weights)
        if not self.head and "lm_head.weight" in self.tensors.names:
            warn_once(
                f"{self.tensors.directory}: has no reward head, so a random one is drawn; if a row of lm_head is one, "
                "as in Nemotron-70B-Reward-HF, name it: head='lm_head:0' (--head lm_head:0)"
            )

    def _read(self, named: tuple[Any, jax.ShapeDtypeStruct], sharding: Sharding | None) -> jax.Array:
        name, leaf = leaf_name(named[0]), named[1]
        if sharding is None:
            whole = tuple((0, size) for size in leaf.shape)
            return jax.device_put(self._read_parts(name, leaf, [whole])[whole])  # on a CPU without a copy
        where = sharding.addressable_devices_indices_map(leaf.shape)
        parts = {
            device: tuple(part.indices(size)[:2] for part, size in zip(index or (), leaf.shape, strict=True))
            for device, index in where.items()
        }
        arrays = self._read_parts(name, leaf, list(dict.fromkeys(parts.values())))  # each once
        on_devices = [jax.device_put(arrays[part], device) for device, part in parts.items()]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, on_devices)

    def _read_parts(self, leaf_name: str, leaf: jax.ShapeDtypeStruct, parts: list[Part]) -> dict[Part, np.ndarray]:
        names, stacked = tensor_names(leaf_name, self.config, self.head), leaf_name.startswith("blocks.")
        if self.adapter is None:
            return self.tensors.read(names, leaf, parts, stacked=stacked)
        if names[0] in self.adapter.replaced:
            return self.adapter.tensors.read([self.adapter.replaced[names[0]]], leaf, parts, stacked=False)
        arrays = self.tensors.read(names, leaf, parts, stacked=stacked)
        for part, array in arrays.items():
            self.adapter.add_to(array, names, part, stacked=stacked)
        return arrays


def open_reward_model(
    path_or_hub_id: str | Path, *, dtype=jnp.float32, head: str | None = None, revision: str | None = None
) -> ModelFiles:
    """Finds the files of a reward model, and checks all that can be known before weights are read.

    **Raises:** what `load_reward_model` raises, but for values of tensors and for a missing `key`.
    """
    directory = resolve_directory(path_or_hub_id, _PATTERNS, revision=revision)
    adapter = open_adapter(directory)
    if adapter is None:
        return _open_whole(directory, dtype, head)
    base = resolve_directory(adapter.base, _PATTERNS, revision=adapter.revision)
    if head is not None and SCORE["score"] in adapter.replaced:
        raise ConfigError(f"{directory}: has a head, {SCORE['score']!r}; leave out head={head!r} (--head)")
    return _with_adapter(_open_whole(base, dtype, head), adapter)


def _open_whole(directory: Path, dtype: Any, head: str | None) -> ModelFiles:
    config, labels, is_classifier = read_config(directory / "config.json")
    recorded = read_record(directory).get("tensors")
    files = TensorFiles(directory, recorded if isinstance(recorded, dict) else None)
    if config.num_hidden_layers > len(files.names):  # checked before any loop over layers
        found = f"{directory / 'config.json'} says {config.num_hidden_layers} layers"
        found += f", the weights have {len(files.names)} tensors in all"
        raise WeightsError(f"{directory}: {found}; use the config.json that belongs to the weights")
    names = find_head(files, config, head) or ({"score": SCORE["score"]} if is_classifier else {})
    template = jax.eval_shape(lambda: init_reward_model(config, key=jax.random.key(0), dtype=dtype))
    stored = replace(template, **abstract_head(expected_shapes(files, names, config, labels)))
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}
    check_names(files, [name for leaf in leaves for name in tensor_names(leaf, config, names)])
    for leaf, expected in leaves.items():
        for name in tensor_names(leaf, config, names):
            files.check(name, expected.shape[leaf.startswith("blocks.") :])
    return ModelFiles(files, config, stored, names)


def _replicated(values: Any, mesh: Mesh | None) -> jax.Array:
    """An array on every device of a mesh; all processes have the same, so none needs to ask another."""
    if mesh is None:
        return jnp.asarray(values)
    values = np.asarray(values)
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, PartitionSpec()), values.__getitem__)


def _with_adapter(base: ModelFiles, adapter: Adapter) -> ModelFiles:
    """The files of a base with an adapter, whose head and resized embedding stand in place of the base's.

    **Raises:** `WeightsError`, naming the tensor, for one that does not fit the base.
    """
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base.stored)}
    linear = {
        name: leaf.shape[-2:]
        for leaf_name, leaf in leaves.items()
        if leaf_name.endswith("_proj.weight")
        for name in tensor_names(leaf_name, base.config)
    }
    adapter.check(linear)
    config, stored, names = base.config, base.stored, base.head
    embedding, score = (adapter.replaced.get(name) for name in ("model.embed_tokens.weight", SCORE["score"]))
    if embedding:
        config = replace(config, vocab_size=adapter.tensors.shape(embedding)[0])
        shape = (config.vocab_size, config.hidden_size)
        adapter.tensors.check(embedding, shape, by="base")
        stored = replace(stored, embed_tokens=jax.ShapeDtypeStruct(shape, stored.embed_tokens.dtype))
    if score:
        names = {"score": SCORE["score"]}
        shapes = expected_shapes(adapter.tensors, {"score": score}, config, None)
        adapter.tensors.check(score, shapes["score"], by="base")
        stored = replace(stored, **abstract_head(shapes))
    return ModelFiles(base.tensors, config, replace(stored, config=config), names, adapter)


def load_config(path_or_hub_id: str | Path, *, revision: str | None = None) -> LlamaConfig:
    """The configuration that `load_reward_model` would load, without reading weights; preparing data needs no more.

    **Raises:** `ConfigError` for a `config.json` that is not supported.
    """
    directory = resolve_directory(path_or_hub_id, ("config.json", RECORD, ADAPTER, WEIGHTS), revision=revision)
    if (directory / ADAPTER).is_file():
        return open_reward_model(directory).config
    return read_config(directory / "config.json").config
