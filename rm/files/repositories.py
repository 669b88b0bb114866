"""The files of a data set's directory or of its repository on the hub, split by split."""

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

Found = tuple[str, Callable[[str], list[str]]]  # how files are read, and which belong to a split

_BUILDERS = {"json": "rows", "csv": "rows", "parquet": "parquet"}  # of `datasets`, whose files are read here
_ON_THE_HUB = re.compile(r"hf://datasets/(?P<repository>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+)")
_ADVICE = "check the name and the connection"


def find_files(name: str, *, source: str, config_name: str | None, **where: Any) -> Found | None:
    """How the files of a directory or a repository are read and which a split has, `None` if they are not read here."""
    import datasets
    from datasets import config as settings

    known = Path(settings.HF_DATASETS_CACHE) / "rm-rows" / "files" / quote(source, safe="")
    try:
        with quietly(source, ConnectionError):
            builder = datasets.load_dataset_builder(name, config_name, **where)
    except ConnectionError as error:
        if not any(known.glob("*.json")):
            raise DataError(f"{source}: cannot be read ({first_line(error)}); {_ADVICE}") from None
        return _known_files(source, known)
    reader, found = _BUILDERS.get(str(builder.name)), builder.config.data_files
    if reader is None or not isinstance(found, dict):
        return None
    data_files = {str(part): list(names) for part, names in found.items()}

    if not Path(name).is_dir():
        with suppress(OSError, OutputError):  # a cache that cannot be written
            known.mkdir(parents=True, exist_ok=True)
            for split, names in data_files.items():
                replace_file(known / f"{split}.json", json.dumps([reader, *names]))
    return reader, partial(_files_of, data_files, source)


def _files_of(data_files: Mapping[str, list[str]], source: str, split: str) -> list[str]:
    if split not in data_files:
        raise DataError(f"{source}: no split {split!r}; found {', '.join(data_files)}")
    return data_files[split]


def fetch(name: str | Path) -> Path:
    """A file of this machine, or one of a repository, which is fetched once.

    **Raises:** `DataError` where it cannot be fetched.
    """
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


def _known_files(source: str, known: Path) -> Found:
    """The files of a repository as they were listed before, for when the hub is out of reach."""
    splits = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in known.glob("*.json")}
    reader = next(iter(splits.values()))[0]
    return reader, partial(_files_of, {split: names for split, (_, *names) in splits.items()}, source)


@contextmanager
def quietly(source: str, *passed: type[BaseException]) -> Iterator[None]:
    """One kind of error, in one line, for what `datasets` raises and logs besides, but for what is `passed` on."""
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
        raise DataError(
            f"{source}: cannot be read ({first_line(error.__cause__ or error).rstrip('.')}); {advice}"
        ) from None
    finally:
        datasets.logging.set_verbosity(verbosity)
