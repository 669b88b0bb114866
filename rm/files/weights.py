"""Reading and writing the tensors of a directory of safetensors files."""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from ..errors import WeightsError, system_reason
from .hub import own_file, read_json

INDEX = "model.safetensors.index.json"
VALUE_HEAD = "value_head"  # a file of LLaMA-Factory's beside a causal LM
_THREADS = 4  # for reading pieces of tensors
_DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}
_PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors")
_POINTER = b"version https://git-lfs"
# The names of a backbone's tensors: bare, of a model with a head, of a causal LM inside another model, of Starling.
_BACKBONE = re.compile(r"(?:|model\.|model\.model\.|transformer\.)((?:embed_tokens|layers|norm|rotary_emb)\..*)")
_SAMPLE, _SAMPLES = 2**16, 16  # bytes of a piece of a tensor, and pieces of a large one, that its fingerprint is of
_PIECE = 2**18  # elements that are read, converted and checked at once, while they are in the processor's cache


Part = tuple[tuple[int, int], ...]  # where it begins and ends in every dimension


class _Stored(NamedTuple):
    """Where a tensor lies."""

    name: str  # in the file
    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file
    size: int  # bytes


class TensorFiles:
    """The tensors of a model directory by name, in one file or in shards with an index.

    Names are those of a model with a head, whatever prefix the backbone's have in the files; errors have those of the
    files. A tensor that is read whole must have the one of `checksums` (XXH3, 64 bits) where there is one. `file` is
    the only file to read, where it is given.
    """

    def __init__(self, directory: Path, checksums: Mapping[str, str] | None = None, *, file: str | None = None):
        self.directory, self._checksums = directory, checksums or {}
        self._stored: dict[str, _Stored] = {}
        for path in _weight_files(directory) if file is None else [own_file(directory / file)]:
            for stored in _read_header(path):
                backbone = _BACKBONE.fullmatch(stored.name)
                name = f"model.{backbone[1]}" if backbone else stored.name
                name = "lm_head.weight" if name == "model.lm_head.weight" else name
                if name in self._stored:
                    raise WeightsError(
                        f"{path}: duplicate tensor {name!r}, already in {self._stored[name].path.name}; take one out"
                    )
                self._stored[name] = stored

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, `()` where there is no such tensor."""
        return self._stored[name].shape if name in self._stored else ()

    def add_row(self, name: str, row: int, alias: str) -> None:
        """Adds one row of a matrix as a tensor of its own.

        **Raises:** `WeightsError` where there is no such matrix or row.
        """
        shape = self.shape(name)
        if len(shape) != 2 or row >= shape[0]:
            found = f"found {list(shape)}" if shape else "there is no such tensor"
            raise WeightsError(f"{self.directory}: {alias}: expected {name!r} with more than {row} rows, {found}")
        stored = self._stored[name]
        size = stored.size // shape[0]
        moved = {"shape": (1, shape[1]), "offset": stored.offset + row * size, "size": size}
        self._stored[alias] = stored._replace(name=alias, **moved)

    def read(
        self, names: list[str], leaf: jax.ShapeDtypeStruct, parts: Sequence[Part], *, stacked: bool
    ) -> dict[Part, np.ndarray]:
        """Parts of a leaf in its own type, all read at once; `stacked` where the tensors are its layers.

        Two parts have the same rows or none in common, and every part has all layers.

        **Raises:** `WeightsError`, naming the tensor, for NaN and infinities.
        """
        out = {part: _aligned_empty(tuple(stop - start for start, stop in part), leaf.dtype) for part in parts}
        for layer, name in enumerate(names):
            layers = [array[layer] if stacked else array for array in out.values()]
            self._read_into(layers, [part[stacked:] for part in out], name)
        return out

    def check(self, name: str, expected: tuple[int, ...], by: str = "config.json") -> None:
        """Refuses a tensor of another shape or of an unknown type; `by` is what it must fit.

        **Raises:** `WeightsError`, naming the tensor.
        """
        name, path, kind, shape, *_ = self._stored[name]
        if shape != expected:
            found = f"tensor {name!r} has shape {list(shape)}, expected {list(expected)} by {by}"
            raise WeightsError(f"{path}: {found}; use the {by} that belongs to the weights")
        if kind not in _DTYPES:
            found = f"tensor {name!r} is {kind}, expected {' or '.join(_DTYPES)}"
            raise WeightsError(f"{path}: {found}; use the weights before quantization, or save them as one of these")

    def fingerprint(self) -> str:
        """A hash of the names, types, shapes and values of all tensors, of more than 1 MiB 16 pieces spread over them.

        Other weights, as other training leaves them, differ in every piece. To read 70B parameters whole would take
        minutes on every machine; so it takes seconds.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(self._sample, sorted(self._stored)))
        return xxhash.xxh3_64("".join(parts)).hexdigest()

    def _sample(self, name: str) -> str:
        _, path, kind, shape, offset, size = self._stored[name]
        whole = size <= _SAMPLE * _SAMPLES
        starts = [0] if whole else [(size - _SAMPLE) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
        read = xxhash.xxh3_64(f"{name} {kind} {shape}")
        try:
            with path.open("rb") as file:
                for start in starts:
                    file.seek(offset + start)
                    read.update(file.read(size if whole else _SAMPLE))
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
        return read.hexdigest()

    def _read_into(self, arrays: list[np.ndarray], parts: list[Part], name: str) -> None:
        in_file, path, kind, shape, offset, _ = self._stored[name]
        width, dtype = math.prod(shape[1:]), jnp.dtype(_DTYPES[kind])
        ranges = sorted({part[0] for part in parts})
        whole = sum(stop - start for start, stop in ranges) == shape[0]
        read = xxhash.xxh3_64() if whole and name in self._checksums else None
        try:
            with path.open("rb") as file:
                for start, stop in ranges:
                    file.seek(offset + start * width * dtype.itemsize)
                    columns = [slice(*part[1]) if part[1:] else slice(0, 1) for part in parts]
                    targets = [
                        (array.reshape(stop - start, -1), own)  # a view: whole rows are read in place
                        for array, part, own in zip(arrays, parts, columns, strict=True)
                        if part[0] == (start, stop)
                    ]
                    if not _fill(targets, file, dtype, (stop - start, width), read):
                        found = f"tensor {in_file!r} holds NaN or infinite values (as {arrays[0].dtype})"
                        narrow = arrays[0].dtype == np.float16 != dtype  # what is finite on disk may overflow
                        advice = "load it as float32" if narrow else "the file is damaged or its training diverged"
                        raise WeightsError(f"{path}: {found}; {advice}")
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
        if read is not None and self._checksums[name] != read.hexdigest():
            advice = "copy the file again, or take 'tensors' out of rm.json where the change is meant"
            raise WeightsError(f"{path}: tensor {in_file!r} is not what was exported (see rm.json); {advice}")


def _fill(
    targets: list[tuple[np.ndarray, slice]], file: BufferedReader, dtype: np.dtype, shape: tuple[int, int], read: Any
) -> bool:
    """Reads and converts the next rows of a file, of which each target gets its columns; whether all are finite."""
    (rows, width), finite = shape, True
    step = max(1, _PIECE // width)
    for piece in (slice(start, min(start + step, rows)) for start in range(0, rows, step)):
        first = targets[0][0][piece]
        in_place = first.dtype == dtype and first.shape[1] == width
        values = first if in_place else np.empty((len(first), width), dtype)
        if file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:
            raise WeightsError(f"{file.name}: truncated while it was read; download it again")
        if read is not None:
            read.update(values.reshape(-1).view(np.uint8).data)
        for out, columns in targets:
            if not in_place:
                with np.errstate(over="ignore"):  # an infinity is found below
                    out[piece] = values[:, columns]
            finite &= _all_finite(min(out[piece], values, key=lambda array: array.itemsize))  # it overflows first
    return finite


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins at a multiple of 64 bytes, which JAX on a CPU takes over as it is."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _all_finite(values: np.ndarray) -> bool:
    if values.dtype == jnp.bfloat16:  # NumPy's own test is slow for it
        return bool((values.view(np.uint16) & 0x7F80 != 0x7F80).all())
    return bool(np.isfinite(values).all())


def _weight_files(directory: Path) -> list[Path]:
    """The files of the model, and that of a value head beside it."""
    value_head = own_file(directory / f"{VALUE_HEAD}.safetensors")
    return _model_files(directory) + [value_head] * value_head.is_file()


def _model_files(directory: Path) -> list[Path]:
    """The single file where there is one, as `transformers` does, else the shards of the index."""
    single, index = own_file(directory / "model.safetensors"), own_file(directory / INDEX)
    if single.is_file():
        if index.is_file():
            found = f"{single.name} and {index.name} are both there; {single.name} is read, as transformers does"
            logging.getLogger("rm").warning(f"{directory}: {found}; take out the one that is stale")
        return [single]
    if not index.is_file():
        others = sorted(path.name for path in directory.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f" (found {others[0]})" if others else ""
        raise WeightsError(f"{single}: no such file, nor {INDEX}; only safetensors weights are read{found}")
    names = read_json(index).get("weight_map")
    if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{index}: expected a 'weight_map' of tensor names to file names")
    for name in names.values():
        if not _PLAIN_NAME.fullmatch(name):
            raise WeightsError(f"{index}: {name!r} must be the plain name of a .safetensors file beside the index")
    return [own_file(directory / name) for name in sorted(set(names.values()))]


def _read_header(path: Path) -> list[_Stored]:
    """The tensors of a file, after the library has found it whole: no bytes missing, none left over."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise WeightsError(f"{path}: is a pointer of Git LFS, not the weights; fetch them with `git lfs pull`")
            file.seek(0)
            with safe_open(path, framework="np"):
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size), object_pairs_hook=_without_repetition)
    except FileNotFoundError:
        advice = "put it there, or use the configuration or index that belongs to the files"
        raise WeightsError(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: truncated or not a safetensors file ({error}); download it again") from None
    header.pop("__metadata__", None)
    return [
        _Stored(name, path, entry["dtype"], tuple(entry["shape"]), 8 + size + start, end - start)
        for name, entry in header.items()
        for start, end in [entry["data_offsets"]]
    ]


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a header: of two entries with one name, the library may have checked the other."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the header names a tensor or a property twice")
    return dict(pairs)


def write_tensors(
    directory: Path | None, sizes: Mapping[str, int], read: Callable[[str], np.ndarray], *, max_shard_bytes: int
) -> dict[str, str]:
    """Writes `model.safetensors`, or shards with an index where one file would exceed `max_shard_bytes`.

    `sizes` gives the bytes of every tensor and `read(name)` its values, so only one shard is in memory at a time.
    Without a directory everything is read and nothing written. Returns the checksum of every tensor.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if directory is None:
        for name in sizes:
            read(name)
        return {}
    shards = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    checksums = {}
    for file, names in shards.filename_to_tensors.items():
        tensors = {name: np.ascontiguousarray(read(name)) for name in names}
        checksums |= {name: xxhash.xxh3_64(array.view(np.uint8).data).hexdigest() for name, array in tensors.items()}
        try:
            save_file(tensors, directory / file, metadata={"format": "pt"})  # transformers refuses files without it
        except SafetensorError as error:  # as which an error of the system arrives
            raise OSError(system_reason(error)) from None
        (directory / file).chmod(0o644)  # the library leaves it to its owner alone
    if shards.is_sharded:
        weight_map = dict(sorted(shards.tensor_to_filename.items()))
        write_json(directory / INDEX, {"metadata": shards.metadata, "weight_map": weight_map})
    return checksums


def write_json(path: Path, value: Mapping) -> None:
    """A JSON file that ends in a newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
