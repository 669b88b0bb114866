"""Reading and writing the tensors of a directory of safetensors files."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from .errors import WeightsError
from .hub import read_json

INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "BF16", "F16")


class TensorFiles:
    """The tensors of a model directory by name, in one file or in shards with an index.

    Names are those of a model with a head: a bare backbone's get the prefix `model.`.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._where: dict[str, tuple[Path, str]] = {}
        self._handles = {path: _open(path) for path in _weight_files(directory)}
        for path, handle in self._handles.items():
            for stored in handle.keys():  # noqa: SIM118 (no dict)
                name = stored if stored.startswith(("model.", "score.", "lm_head.")) else f"model.{stored}"
                if name in self._where:
                    raise WeightsError(f"{path}: duplicate tensor {name!r}, already in {self._where[name][0].name}")
                self._where[name] = (path, stored)

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._where)

    def read(self, names: list[str], leaf: jax.ShapeDtypeStruct, *, stacked: bool) -> np.ndarray:
        """A leaf as one array in its own type; `stacked` where the tensors are its layers.

        **Raises:** `WeightsError`, naming the tensor, for another shape, an unknown type, or NaN and infinities.
        """
        out = np.empty(leaf.shape, leaf.dtype)
        parts = out.reshape(len(names) if stacked else 1, *leaf.shape[stacked:])  # a view: layers are read in place
        for i, name in enumerate(names):
            path, stored = self._where[name]
            header = self._handles[path].get_slice(stored)
            shape, kind = tuple(header.get_shape()), header.get_dtype()
            if shape != parts.shape[1:]:
                raise WeightsError(f"{path}: tensor {name!r} has shape {list(shape)}, expected {list(parts.shape[1:])}")
            if kind not in _DTYPES:
                raise WeightsError(f"{path}: tensor {name!r} is {kind}, expected {' or '.join(_DTYPES)}")
            parts[i] = self._handles[path].get_tensor(stored)
            if not np.isfinite(parts[i]).all():
                raise WeightsError(
                    f"{path}: tensor {name!r} holds NaN or infinite values (as {leaf.dtype}); it is damaged"
                )
        return out


def _weight_files(directory: Path) -> list[Path]:
    single = directory / "model.safetensors"
    if not (directory / INDEX).is_file():
        if not single.is_file():
            raise WeightsError(f"{single}: no such file, nor {INDEX}; only safetensors weights are read")
        return [single]
    names = read_json(directory / INDEX).get("weight_map")
    if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{directory / INDEX}: expected a 'weight_map' of tensor names to file names")
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError(f"{directory / INDEX}: {name!r} must be the plain name of a file beside the index")
    return [directory / name for name in sorted(set(names.values()))]


def _open(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="np")
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file, but the index names it; download it again") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: truncated or not a safetensors file ({error}); download it again") from None


def write_tensors(
    directory: Path, sizes: Mapping[str, int], read: Callable[[str], np.ndarray], *, max_shard_bytes: int
) -> None:
    """Writes `model.safetensors`, or shards with an index where one file would exceed `max_shard_bytes`.

    `sizes` gives the bytes of every tensor and `read(name)` its values, so only one shard is in memory at a time.
    """
    from safetensors.numpy import save_file

    shards = list(_split(sizes, max_shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        many = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = many if len(shards) > 1 else "model.safetensors"
        tensors = {name: np.ascontiguousarray(read(name)) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})  # transformers refuses files without it
        (directory / file).chmod(0o644)  # the library leaves it to its owner alone
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / INDEX, index)


def _split(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    shard, used = [], 0
    for name, size in sizes.items():
        if shard and used + size > limit:
            yield shard
            shard, used = [], 0
        shard.append(name)
        used += size
    yield shard


def write_json(path: Path, value: Mapping) -> None:
    """A JSON file that ends in a newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
