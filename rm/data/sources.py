"""Preference data from files, saved data sets and the hub, as columns of a `datasets.Dataset`."""

import dataclasses
import glob
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, first_line
from .jsonl import check_json, read_json

if TYPE_CHECKING:
    from datasets import Dataset

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}
# no number, date or missing value is to be guessed from the texts
_CSV_IS_TEXT = {"converters": dict.fromkeys(("prompt", "chosen", "rejected"), str)}
_CSV_IS_TEXT |= {"keep_default_na": False, "na_values": [""]}
_HUB_ID = re.compile(r"(?P<path>[\w.-]+(/[\w.-]+)?)(:(?P<config_name>[^@]+))?(@(?P<revision>.+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as the command line names it."""

    path: str
    config_name: str | None = None
    revision: str | None = None
    weight: float | None = None


def parse_source(text: str) -> Source:
    """`PATH`, or `org/name[:CONFIG][@REVISION]` on the hub, and `=WEIGHT` after either.

    **Raises:** `ConfigError` where the weight is no positive number.

    >>> parse_source("org/name:english@v2=0.7")
    Source(path='org/name', config_name='english', revision='v2', weight=0.7)
    """
    if Path(text).exists():
        return Source(path=text)
    path, separator, number = text.rpartition("=")
    if not separator:
        return _parse_name(text)
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"{text}: expected a weight greater than 0 after '=', found {number!r}")
    return dataclasses.replace(_parse_name(path), weight=weight)


def _parse_name(text: str) -> Source:
    found = _HUB_ID.fullmatch(text)
    if found is None or is_file_name(text) or Path(text).exists():
        return Source(path=text)
    return Source(path=found["path"], config_name=found["config_name"], revision=found["revision"])


def is_file_name(path: str) -> bool:
    """Whether a name that does not exist means a file, and no repository of the hub."""
    return Path(path).suffix in (*_READERS, ".gz", ".txt") or path.startswith((".", "/", "~")) or glob.has_magic(path)


def expand(path: str) -> list[str]:
    """The files that a pattern such as `data/*.jsonl` stands for, sorted; anything else stands for itself.

    **Raises:** `DataError` where no file matches.
    """
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    files = sorted(glob.glob(path, recursive=True))
    if not files:
        raise DataError(f"{path}: no file matches; check the path, and quote patterns")
    return files


def load_comparisons(
    path_or_hub_id: str | Path,
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> "Dataset":
    """The rows of local files, a directory that `datasets` saved, or a data set of the hub.

    **Arguments:** `path_or_hub_id`, a `.json`, `.jsonl`, `.csv` (each also `.gz`), `.parquet` or `.arrow` file, a
    pattern for several (`data/*.jsonl`; a slice of the split is taken of each), a directory, or a hub id; `split`, the
    split to read, slices such as `train[:5%]` or `train[10:20]+test` included (a file is one split, `train`);
    `config_name` and `revision`, of a hub data set; `streaming`, rows one by one instead of all on the disk (an
    `IterableDataset`, whole splits only).

    **Raises:** `DataError`, naming the file and, in a JSON-lines file, the line.

    Any preprocessing is `load_comparisons(…).map(f)`: `f` gets a row and returns the columns of one of the forms.
    """
    from datasets import concatenate_datasets

    files = expand(str(path_or_hub_id))
    options = {"split": split, "config_name": config_name, "revision": revision, "streaming": streaming}
    parts = [_load_one(file, **options) for file in files]  # pyright: ignore[reportArgumentType]
    try:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(
            f"{path_or_hub_id}: the files' columns differ in type ({first_line(error.__cause__ or error)})"
        ) from None


def _load_one(name: str, *, split: str, config_name: str | None, revision: str | None, streaming: bool) -> "Dataset":
    path = Path(name)
    if path.is_file():
        dataset = _load_file(path, split, streaming)
    elif path.is_dir():
        dataset = _load_directory(path, split, config_name, streaming)
    elif is_file_name(name):
        raise DataError(f"{path}: no such file; check the path")
    else:
        source = name + (f":{config_name}" if config_name else "") + (f"@{revision}" if revision else "")
        options = {"revision": revision, "split": split, "streaming": streaming}
        dataset = _load(name, config_name=config_name, source=source, **options)
    if not streaming and not len(dataset):
        raise DataError(f"{name}: no rows; expected at least one comparison")
    return dataset


def _load_file(path: Path, split: str, streaming: bool) -> "Dataset":
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS:
        raise DataError(f"{path}: expected a file that ends in {', '.join(_READERS)} (or .gz), found {path.suffix!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected at least one comparison")
    if suffix == ".jsonl" and not streaming:  # first, for `datasets` reads on over what is wrong in a line
        check_json(path)
    options: dict[str, Any] = _CSV_IS_TEXT if suffix == ".csv" else {}
    dataset = _load(
        _READERS[suffix], data_files=str(path), split=split, source=str(path), streaming=streaming, **options
    )
    if not streaming and suffix in (".json", ".jsonl") and "timestamp" in str(dataset.features):
        from datasets import Dataset

        # texts that look like dates were taken for such
        return _slice({"train": Dataset.from_list([row for _, row in read_json(path)])}, split)
    return dataset


def _load_directory(path: Path, split: str, config_name: str | None, streaming: bool) -> "Dataset":
    import datasets

    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _load(str(path), config_name=config_name, split=split, source=str(path), streaming=streaming)
    try:
        saved = datasets.load_from_disk(str(path))
        chosen = _slice(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, split)
        return chosen.to_iterable_dataset() if streaming else chosen  # pyright: ignore[reportReturnType]
    except Exception as error:  # every reader raises its own kind
        raise DataError(f"{path}: {first_line(error.__cause__ or error)}") from None


def _slice(splits: Any, split: str) -> "Dataset":
    """What `split` names of data sets that are here already."""
    from datasets import ReadInstruction, concatenate_datasets

    parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _load(path: str, *, source: str, config_name: str | None = None, **options: Any) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it raises besides
    try:
        return datasets.load_dataset(path, config_name, **options)  # pyright: ignore[reportReturnType]
    except Exception as error:  # every reader raises its own kind
        if Path(source).is_file() and {".json", ".jsonl"} & set(Path(source).suffixes):
            check_json(Path(source), same_kinds=True)
        advice = "check the name and the connection" if not Path(source).exists() else "check what is in it"
        raise DataError(
            f"{source}: cannot be read ({first_line(error.__cause__ or error).rstrip('.')}); {advice}"
        ) from None
    finally:
        datasets.logging.set_verbosity(verbosity)
