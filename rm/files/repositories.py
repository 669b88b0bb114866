"""The files of each split of a data set, in a directory or a repository of the hub."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..errors import DataError, OutputError, first_line
from .output import replace_file

SplitFiles = tuple[str, Callable[[str], list[str]]]  # the reader, and a function from a split to its files

_BUILDERS = {"json": "rows", "csv": "rows", "parquet": "parquet"}  # of `datasets`, whose files are read here
_ON_THE_HUB = re.compile(r"hf://datasets/(?P<repository>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+)")
_ADVICE = "check the name and the connection"


def find_files(name: str, *, source: str, config_name: str | None, **where: Any) -> SplitFiles | None:
    """The reader of a data set's files and the files by split; `None` if `datasets` has to read them itself."""
    import datasets
    from datasets import config as settings

    listing = Path(settings.HF_DATASETS_CACHE) / "rm-rows" / "files" / f"{quote(source, safe='')}.json"
    try:
        with quietly(source, ConnectionError):
            builder = datasets.load_dataset_builder(name, config_name, **where)
    except ConnectionError as error:
        if not listing.is_file():
            raise DataError(f"{source}: cannot be read ({first_line(error)}); {_ADVICE}") from None
        reader, data_files = json.loads(listing.read_text(encoding="utf-8"))  # the hub is out of reach
        return reader, partial(_files_of, data_files, source)
    reader, by_split = _BUILDERS.get(str(builder.name)), builder.config.data_files
    if reader is None or not isinstance(by_split, dict):
        return None
    data_files = {str(part): list(names) for part, names in by_split.items()}
    if not Path(name).is_dir():
        with suppress(OSError, OutputError):  # a cache that cannot be written
            listing.parent.mkdir(parents=True, exist_ok=True)
            replace_file(listing, json.dumps([reader, data_files]))
    return reader, partial(_files_of, data_files, source)


def _files_of(data_files: Mapping[str, list[str]], source: str, split: str) -> list[str]:
    if split not in data_files:
        raise DataError(f"{source}: no split {split!r}; found {', '.join(data_files)}")
    return data_files[split]


def fetch(name: str | Path) -> Path:
    """The local path of a file; a file of a repository is downloaded once."""
    import datasets
    from huggingface_hub import hf_hub_download

    if Path(name).exists():
        return Path(name)
    with quietly(str(name)):
        place = _ON_THE_HUB.fullmatch(str(name))
        if place is None:
            return Path(datasets.DownloadManager().download(str(name)))  # pyright: ignore[reportArgumentType]
        revision, file = unquote(place["revision"]), place["file"]
        return Path(hf_hub_download(place["repository"], file, repo_type="dataset", revision=revision))


@contextmanager
def quietly(source: str, *passed: type[BaseException]) -> Iterator[None]:
    """Silences the logs of `datasets` and turns its errors, except those `passed`, into `DataError`s of one line."""
    import datasets

    datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (DataError, *passed):
        raise
    except Exception as error:  # every reader raises its own kind
        advice = _ADVICE if not Path(source).exists() else "check what is in it"
        reason = first_line(error.__cause__ or error).rstrip(".")
        raise DataError(f"{source}: cannot be read ({reason}); {advice}") from None
    finally:
        datasets.logging.set_verbosity(verbosity)
