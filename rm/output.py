"""Directories that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError


def check_writable(path: Path) -> None:
    """Refuses a place whose nearest existing directory is none, or is not to be written to.

    **Raises:** `OutputError`.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OutputError(f"{path}: cannot be written ({above} is not a directory that you may write to)")


def check_file(path: Path) -> None:
    """Refuses a place where no file can be written: below no directory, or a directory itself.

    **Raises:** `OutputError`.
    """
    check_writable(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: cannot be written ({path.parent} is not a directory)")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file")


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory to fill; it takes its name when the block ends well, and vanishes when it does not.

    **Raises:** `OutputError` where something stands at `path` already or the place cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.exists():
        raise OutputError(f"{path}: exists already; choose another place or remove it")
    try:
        draft.mkdir(parents=True)
        yield draft
        for file in draft.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        draft.rename(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
