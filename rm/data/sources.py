"""Preference data from files, saved data sets and the hub, as columns of a `datasets.Dataset`."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
# no number, date or missing value is to be guessed from the texts
_CSV_IS_TEXT = {"converters": dict.fromkeys(("prompt", "chosen", "rejected"), str)}
_CSV_IS_TEXT |= {"keep_default_na": False, "na_values": [""]}


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
    elif path.suffix in (*_READERS, ".gz", ".txt") or str(path_or_hub_id).startswith((".", "/", "~")):
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
    if suffix == ".jsonl":  # first, for `datasets` reads on over two objects in a line and bytes that are not UTF-8
        _diagnose(path)
    options = _CSV_IS_TEXT if suffix == ".csv" else {}
    return _load(_READERS[suffix], data_files=str(path), split=split, source=path, **options)


def _load_directory(path: Path, split: str) -> "Dataset":
    import datasets

    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _load(str(path), split=split, source=path)
    try:
        saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        name, _, rest = split.partition("[")
        if name in splits:
            chosen = splits[name]
            spec = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(chosen)}) if rest else []
            return chosen.select(range(*(spec[0].from_, spec[0].to))) if spec else chosen
    except Exception as error:  # every reader raises its own kind
        raise DataError(f"{path}: {str(error).strip().partition(chr(10))[0]}") from None
    raise DataError(f"{path}: no split {name!r}; it has {', '.join(map(repr, splits))}")


def _load(name: str, *, source: Path, split: str, data_files: str | None = None, **options: Any) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it raises besides
    try:
        return datasets.load_dataset(name, data_files=data_files, split=split, **options)  # pyright: ignore[reportReturnType]
    except Exception as error:  # every reader raises its own kind
        _diagnose(source)
        raise DataError(f"{source}: {str(error.__cause__ or error).strip().partition(chr(10))[0]}") from None
    finally:
        datasets.logging.set_verbosity(verbosity)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line numbers and the objects of a JSON-lines file, plain or gzipped, one at a time.

    **Raises:** `DataError`, naming the file and the line.
    """
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}: line {number}: expected a JSON object, found {type(row).__name__}")
                    yield number, row
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {number}: not valid JSON ({error.msg}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {number}: not valid UTF-8 ({error.reason})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested lists
        raise DataError(f"{path}: line {number}: cannot be read ({error})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: after line {number}: the gzip file is cut short or damaged ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _diagnose(path: Path) -> None:
    """Raises what is wrong with a JSON-lines file, as precisely as a line number; nothing is said of other files."""
    if path.is_file() and {Path(path.stem).suffix, path.suffix} & {".jsonl", ".json"}:
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
                is_document = file.read(1) == b"["
        except (OSError, EOFError, zlib.error):
            is_document = False
        if not is_document and not sum(1 for _ in read_rows(path)):
            raise DataError(f"{path}: no rows; expected at least one comparison")
