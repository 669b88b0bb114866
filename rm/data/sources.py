"""Preference data from files, saved data sets and the hub, as columns of a `datasets.Dataset`."""

import gzip
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_comparisons(path_or_hub_id: str | Path, *, split: str = "train") -> "Dataset":
    """The rows of a local file, a directory that `datasets` saved, or a data set of the hub.

    **Arguments:** `path_or_hub_id`, a `.json`, `.jsonl`, `.csv` (each also `.gz`) or `.parquet` file, a directory, or a
    hub id; `split`, the split to read, slices such as `train[:5%]` included (a file is one split, `train`).

    **Raises:** `DataError`, naming the file and, in a JSON-lines file, the line.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        dataset = _load_file(path, split)
    elif path.is_dir():
        dataset = _load_directory(path, split)
    elif path.suffix in _READERS or str(path_or_hub_id).startswith((".", "/", "~")):
        raise DataError(f"{path}: no such file")
    else:
        dataset = _load(str(path_or_hub_id), split=split, source=path)
    if not len(dataset):
        raise DataError(f"{path_or_hub_id}: no rows; expected at least one comparison")
    return dataset


def _load_file(path: Path, split: str) -> "Dataset":
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS:
        raise DataError(f"{path}: expected a file that ends in {', '.join(_READERS)} (or .gz), found {path.suffix!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected at least one comparison")
    return _load(_READERS[suffix], data_files=str(path), split=split, source=path)


def _load_directory(path: Path, split: str) -> "Dataset":
    import datasets

    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _load(str(path), split=split, source=path)
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise DataError(f"{path}: no split {split!r}; it has {', '.join(map(repr, saved))}")
    return saved[split]


def _load(name: str, *, source: Path, split: str, data_files: str | None = None) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, data_files=data_files, split=split)  # pyright: ignore[reportReturnType]
    except Exception as error:  # every reader raises its own kind
        problem = _diagnose(source) or str(error.__cause__ or error).strip().partition("\n")[0]
        raise DataError(f"{source}: {problem}") from None


def _diagnose(path: Path) -> str | None:
    """What is wrong with a JSON file, as precisely as a line number."""
    suffixes = {Path(path.stem).suffix, path.suffix}
    if not path.is_file() or not suffixes & {".jsonl", ".json"}:
        return None
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            if file.read(1) == b"[":
                return _diagnose_document(path.read_bytes())
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number}: expected a JSON object, found {line[:40]!r}"
    except json.JSONDecodeError as error:
        return f"line {number}: not valid JSON ({error.msg}, column {error.colno})"
    except UnicodeDecodeError as error:
        return f"line {number}: not valid UTF-8 ({error.reason})"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"line {number + 1}: the gzip file is cut short or damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _diagnose_document(content: bytes) -> str | None:
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: not valid JSON ({error.msg}, column {error.colno})"
    return None
