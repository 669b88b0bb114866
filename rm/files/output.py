"""Directories and files that appear whole or not at all; every function raises `OutputError` where it cannot write."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError, system_reason

_OWNER = ".owner.json"


def check_writable(path: Path) -> None:
    """Refuses a place whose nearest existing directory is none, or is not to be written to."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OutputError(f"{path}: cannot be written ({above} is not a directory that you may write to)")


def check_file(path: Path) -> None:
    """Refuses a place where no file can be written: below no directory, or a directory itself."""
    check_writable(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: cannot be written ({path.parent} is not a directory)")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file")


def replace_file(path: Path, text: str | Iterable[str]) -> None:
    """Writes a file, all at once or part by part, that appears or takes the place of the old one as a whole."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            with draft.open("w", encoding="utf-8") as file:
                file.writelines([text] if isinstance(text, str) else text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by their names, which may lie in a folder of the directory."""
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One kind of error, in one line, where a place cannot be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({system_reason(error)})") from None


@contextmanager
def locked(directory: Path) -> Iterator[dict[str, Any] | None]:
    """Holds a directory as the only process; gives the owner that ended without letting go of it, if there was one.

    The lock is the kernel's (`filelock`), so it ends with its process; a file beside it says who holds it, as does the
    error that others get.
    """
    from filelock import FileLock, Timeout

    owner = directory / _OWNER
    lock = FileLock(directory / ".lock")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    if not lock.is_locked:
        found = read_owner(directory)
        who = f"process {found.get('process')} on {found.get('host')}, since {found.get('since')}"
        raise OutputError(f"{directory}: in use by {who}; wait for it, or choose another --output")
    try:
        before = read_owner(directory) or None
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        replace_file(owner, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}))
        yield before
        owner.unlink(missing_ok=True)
    finally:
        lock.release()


def read_owner(directory: Path) -> dict[str, Any]:
    """What a process said of itself when it took a directory."""
    try:
        return json.loads((directory / _OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it was killed on the way
        return {}


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory to fill; it takes its name when the block ends well, and vanishes when it does not."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.exists():
        raise OutputError(f"{path}: exists already; choose another place or remove it")
    try:
        with writing(path):
            draft.mkdir(parents=True)
            yield draft
            for file in filter(Path.is_file, draft.rglob("*")):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
