"""Preference data from files, saved data sets and the hub, as columns of a `datasets.Dataset`."""

import dataclasses
import glob
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, first_line
from ..files.repositories import fetch, find_files, quietly
from ..files.row_files import LINE, file_type
from .encode import Invalid
from .joining import columns_of, join_responses

if TYPE_CHECKING:
    from datasets import Dataset

# `datasets` takes tqdm's bars for notebooks, which ask for ipywidgets; nothing here needs them
warnings.filterwarnings("ignore", message="IProgress not found")

_READERS = dict.fromkeys((".json", ".jsonl", ".csv", ".tsv"), "rows") | {".parquet": "parquet", ".arrow": "arrow"}
_HUB_ID = re.compile(r"(?P<path>[\w.-]+(/[\w.-]+)?)(:(?P<config_name>[^@]+))?(@(?P<revision>.+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as the command line names it."""

    path: str
    config_name: str | None = None
    revision: str | None = None
    weight: float | None = None


def parse_source(text: str) -> Source:
    """Parses `PATH`, or `org/name[:CONFIG][@REVISION]` of the hub, either with an optional `=WEIGHT`.

    **Raises:** `ConfigError` where the weight is not a positive number.

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
    name = _HUB_ID.fullmatch(text)
    if name is None or is_file_name(text) or Path(text).exists():
        return Source(path=text)
    return Source(path=name["path"], config_name=name["config_name"], revision=name["revision"])


def is_file_name(path: str) -> bool:
    """True if a name that does not exist must mean a file rather than a hub repository."""
    return (
        Path(path).suffix in (*_READERS, ".gz", ".zst", ".txt")
        or path.startswith((".", "/", "~"))
        or glob.has_magic(path)
    )


def expand(path: str) -> list[str]:
    """The sorted files that match a pattern such as `data/*.jsonl`, at least one; any other path as it is."""
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
    lines: bool = False,
    invalid: Invalid = "raise",
    rename: Mapping[str, str] | None = None,
) -> "Dataset":
    """The rows of local files, a directory that `datasets` saved, or a data set of the hub.

    Rows of JSON and CSV files are read one by one, and no value depends on other rows. A column of texts, numbers or
    booleans has that type; any other column is JSON, with the values of the file. Rows of one response and its rating,
    HelpSteer's, are joined to one row for each prompt.

    **Arguments:** `path_or_hub_id`, a `.json`, `.jsonl`, `.csv`, `.tsv` (each also `.gz` or `.zst`), `.parquet` or
    `.arrow` file, a pattern for several (`data/*.jsonl`; a slice of the split is taken of each), a directory, or a hub
    id; `split`, the split to read, also with slices such as `train[:5%]` or `train[10:20]+test` (a file has the one
    split `train`); `config_name` and `revision`, of a hub data set; `streaming`, whether to read rows one by one
    without a copy on disk (an `IterableDataset`, whole splits only); `lines`, whether rows of JSON and CSV files get a
    column `__line__`, file and line, for the errors of `tokenize_comparisons`; `invalid`, whether a line that is not
    JSON is an error or left for `tokenize_comparisons(…, invalid="drop")` to count; `rename`, the columns to read
    under other names, such as `{"chosen": "response_j"}`.

    **Raises:** `DataError`, naming the file and the line.

    To preprocess, use `load_comparisons(…).map(f)`: `f` takes a row and returns the columns of a known format.
    """
    options = {"streaming": streaming, "lines": lines, "skip_unreadable": invalid == "drop"}
    files = expand(str(path_or_hub_id))
    if all(Path(file).is_file() for file in files):
        parts = _load_files([Path(file) for file in files], split, **options)
    else:
        parts = [_load_named(file, split, config_name, revision, **options) for file in files]
    rows = join_responses(_renamed(_joined(parts, str(path_or_hub_id)), rename or {}, str(path_or_hub_id)))
    if not streaming and not len(rows):
        raise DataError(f"{path_or_hub_id}: no rows; expected at least one comparison")
    return rows


def parse_rename(texts: Sequence[str]) -> dict[str, str]:
    """The columns to read under other names.

    **Raises:** `ConfigError` for what is not NEW=OLD, or names one twice.

    >>> parse_rename(["chosen=response_j", "rejected=response_k"])
    {'chosen': 'response_j', 'rejected': 'response_k'}
    """
    pairs = [text.partition("=") for text in texts]
    wrong = next((text for text, (new, _, old) in zip(texts, pairs, strict=True) if not new or not old), None)
    if wrong is not None:
        raise ConfigError(f"--rename: expected NAME=COLUMN, such as chosen=response_j, found {wrong!r}")
    found = {new: old for new, _, old in pairs}
    if len(found) < len(pairs) or len(set(found.values())) < len(pairs):
        raise ConfigError(f"--rename: a column is named twice, found {' '.join(texts)}")
    return found


def _renamed(rows: "Dataset", rename: Mapping[str, str], source: str) -> "Dataset":
    if not rename or not (names := columns_of(rows)):
        return rows
    for new, old in rename.items():
        if old not in names:
            found = ", ".join(name for name in names if name != LINE)
            raise DataError(f"{source}: rename {new}={old}: no column {old!r}; found {found}")
        if new in names and new not in rename.values():
            raise DataError(f"{source}: rename {new}={old}: there is a column {new!r} already; rename that one as well")
    if hasattr(rows, "__len__"):
        return rows.rename_columns({old: new for new, old in rename.items()})
    # `rename_columns` of a stream refuses a name that another column gives up
    return rows.map(_under_new_names, fn_kwargs={"rename": rename}, remove_columns=list(rename.values()))


def _under_new_names(row: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    return {new: row[old] for new, old in rename.items() if old in row}


def _joined(parts: "list[Dataset]", source: str) -> "Dataset":
    from datasets import concatenate_datasets

    try:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        found = first_line(error.__cause__ or error)
        raise DataError(f"{source}: the files' columns differ in type ({found})") from None


def _load_files(files: list[Path], split: str, *, streaming: bool, **options: bool) -> "list[Dataset]":
    """Loads local files, which may be of several types."""
    readers = [_reader(file) for file in files]
    if streaming and split != "train":
        raise DataError(f"{files[0]}: cannot stream split {split!r}; a file has one split, 'train', without slices")
    parts: list[Dataset] = []
    for reader in dict.fromkeys(readers):
        same = [file for file, file_reader in zip(files, readers, strict=True) if file_reader == reader]
        parts += _read_files(reader, same, streaming=streaming, **options)
    return parts if streaming else [_slice({"train": part}, split, str(files[0])) for part in parts]


def _read_files(reader: str, files: Sequence[str | Path], *, streaming: bool, **options: bool) -> "list[Dataset]":
    from ..files.arrow_files import load_parquet_files, load_row_files, stream_files

    if reader == "arrow":
        where = {"split": "train", "streaming": streaming}
        return [_load(reader, data_files=str(file), source=str(file), **where) for file in files]
    if streaming:
        return [stream_files(reader, files, **options)]  # pyright: ignore[reportReturnType]
    fetched = [fetch(file) for file in files]
    return load_row_files(fetched, **options) if reader == "rows" else load_parquet_files(fetched)


def _reader(path: Path) -> str:
    suffix = file_type(path)
    if suffix not in _READERS:
        expected = f"expected a file that ends in {', '.join(_READERS)} (or .gz, .zst)"
        raise DataError(f"{path}: {expected}, found {path.suffix!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected at least one comparison")
    return _READERS[suffix]


def _load_named(
    name: str, split: str, config_name: str | None, revision: str | None, *, streaming: bool, **options: bool
) -> "Dataset":
    """Loads a directory or a data set of the hub."""
    path = Path(name)
    if path.is_dir() and any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return _load_saved(path, split, streaming)
    if not path.exists() and is_file_name(name):
        raise DataError(f"{path}: no such file; check the path")
    source = name if path.is_dir() else name + (f":{config_name}" if config_name else "")
    source += f"@{revision}" if revision and not path.is_dir() else ""
    where = {"config_name": config_name, "source": source}
    if not path.is_dir():
        where["revision"] = revision
    located = find_files(name, **where)
    if located is None:
        return _load(name, split=split, streaming=streaming, **where)
    reader, files = located
    if streaming:
        return _joined(_read_files(reader, files(split), streaming=True, **options), source)
    names = dict.fromkeys(re.match(r"\w*", part)[0] for part in split.split("+"))  # pyright: ignore[reportOptionalSubscript]
    paths = {part: files(part) for part in names}
    parts = iter(_read_files(reader, [file for part in paths.values() for file in part], streaming=False, **options))
    splits = {part: _joined([next(parts) for _ in files], source) for part, files in paths.items()}
    return _slice(splits, split, source)


def _load_saved(path: Path, split: str, streaming: bool) -> "Dataset":
    import datasets

    with quietly(str(path)):
        saved = datasets.load_from_disk(str(path))
        chosen = _slice(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, split, str(path))
        return chosen.to_iterable_dataset() if streaming else chosen  # pyright: ignore[reportReturnType]


def _slice(splits: Any, split: str, source: str) -> "Dataset":
    """The rows that `split` selects of loaded data sets, by name."""
    from datasets import ReadInstruction, concatenate_datasets

    with quietly(source):
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
        if [(part.from_, part.to) for part in parts] == [(0, len(splits[part.splitname])) for part in parts[:1]]:
            return splits[parts[0].splitname]
        return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _load(path: str, *, source: str, config_name: str | None = None, **options: Any) -> "Dataset":
    import datasets

    with quietly(source):
        return datasets.load_dataset(path, config_name, **options)  # pyright: ignore[reportReturnType]
