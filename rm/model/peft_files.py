"""Low-rank adapters in the directories that `peft` writes, added to the weights of their base as these are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ConfigError, WeightsError
from ..files.hub import ADAPTER, adapter_base, own_file, read_json
from ..files.weights import Part, TensorFiles

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# what an adapter can ask for besides LoRA, by its key in adapter_config.json; each changes what is computed
_NOT_COMPUTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "biases of adapters",
    "layer_replication": "replicated layers",
    "fan_in_fan_out": "transposed weights",
    "trainable_token_indices": "single trained tokens",
    "target_parameters": "adapters of parameters outside of linear layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
_WHOLE = ("model.embed_tokens.weight", "score.weight")  # tensors that an adapter may replace
_UNUSED = "lm_head.weight"
_PLAIN = re.compile(r"\^?[\w.]+\$?")  # a stranger's regular expression may take for ever


class Adapter(NamedTuple):
    """An adapter of which the configuration and the header have been read and checked."""

    directory: Path
    config: Mapping[str, Any]
    tensors: TensorFiles
    base: str
    revision: str | None

    @property
    def replaced(self) -> dict[str, str]:
        """The names of whole tensors, as the base names them, and as they stand in the file."""
        return {name: PREFIX + name for name in _WHOLE if PREFIX + name in self.tensors.names}

    def check(self, linear: Mapping[str, tuple[int, int]]) -> None:
        """Checks the tensors against the linear layers `[O, I]` of the base, by the names of their weights.

        **Raises:** `WeightsError`, naming the tensor.
        """
        names, known = self.tensors.names, {PREFIX + name for name in (*_WHOLE, _UNUSED)}
        for name, (rows, columns) in linear.items():
            a, b = _factors(name)
            known |= {a, b}
            if (a in names) != (b in names):
                raise WeightsError(f"{self._file}: only one of {a!r} and {b!r} is there; save the adapter again")
            if a in names:
                rank = self.tensors.shape(a)[0]
                self.tensors.check(a, (rank, columns), by="base")
                self.tensors.check(b, (rows, rank), by="base")
        extra = sorted(names - known)
        if any(f"{PREFIX}score.lora_" in name for name in extra):
            advice = "and its random base is not in the file; train with task_type SEQ_CLS, which saves the head"
            raise WeightsError(f"{self._file}: the score head itself has an adapter ({extra[0]!r}), {advice}")
        if extra:
            raise WeightsError(
                f"{self._file}: extra tensor {extra[0]!r}{f' (and {len(extra) - 1} more)' * (len(extra) > 1)}, "
                f"which is no adapter of a layer of the base {self.base}; use the base that belongs to it"
            )

    @property
    def _file(self) -> Path:
        return self.directory / WEIGHTS

    def add_to(self, array: np.ndarray, names: list[str], part: Part, *, stacked: bool) -> None:
        """Adds `scale · B A` to a part of a weight, or of several stacked, in place; other leaves stay as they are."""
        for layer, name in enumerate(names):
            if _factors(name)[0] not in self.tensors.names:
                continue
            weight, (rows, columns) = array[layer] if stacked else array, part[stacked:]
            a, b = (self._read(factor) for factor in _factors(name))
            low = b[slice(*rows)] @ a[:, slice(*columns)]
            weight[...] = (weight.astype(np.float32) + self.scale(name, len(a)) * low).astype(weight.dtype)

    def _read(self, name: str) -> np.ndarray:
        leaf = jax.ShapeDtypeStruct(self.tensors.shape(name), jnp.float32)
        whole = tuple((0, size) for size in leaf.shape)
        return self.tensors.read([name], leaf, [whole], stacked=False)[whole]

    def scale(self, name: str, rank: int) -> float:
        """`α/P`, or `α/√P` for rsLoRA; `alpha_pattern` has an `α` of its own for some modules."""
        module = name.removesuffix(".weight")
        patterns = self.config.get("alpha_pattern") or {}
        own = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        alpha = next(own, self.config.get("lora_alpha", 8))
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)


def _factors(name: str) -> tuple[str, str]:
    """The names of the two factors for the weight of a linear layer."""
    module = PREFIX + name.removesuffix("weight")
    return f"{module}lora_A.weight", f"{module}lora_B.weight"


def open_adapter(directory: Path) -> Adapter | None:
    """The adapter of a directory; `None` where it has no `adapter_config.json`.

    **Raises:** `ConfigError` for an adapter that is not LoRA, or asks for more; `WeightsError` for an unreadable file.
    """
    base = adapter_base(directory)
    if base is None:
        return None
    source = own_file(directory / ADAPTER)
    config = read_json(source)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{source}: peft_type must be 'LORA', found {config.get('peft_type')!r}; merge it first")
    asked = [what for key, what in _NOT_COMPUTED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        asked.append(f"bias {config['bias']!r}")
    patterns = [*(config.get("alpha_pattern") or {}), *(config.get("rank_pattern") or {})]
    if odd := [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]:
        asked.append(f"the pattern {odd[0]!r} (only names of modules are read)")
    if asked:
        raise ConfigError(f"{source}: {asked[0]} is not computed; merge the adapter first (peft's merge_and_unload)")
    return Adapter(directory, config, TensorFiles(directory, file=WEIGHTS), *base)
