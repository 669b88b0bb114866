"""Files that are written part by part, by processes that may be killed, and take their name when they are whole."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputError
from .hub import read_json
from .output import check_file, replace_file, writing


class PartialFile:
    """A file on its way: `PATH.partial`, and `PATH.partial.json`, which says how much of it is there for certain.

    `facts` decide what is written, and stay the same when it goes on; `notes` are those of the last part.
    """

    def __init__(self, path: Path):
        self.path, self.draft = path, path.with_name(f"{path.name}.partial")
        self._record = path.with_name(f"{self.draft.name}.json")
        found = read_json(self._record) if self._record.exists() else {}
        self.facts: dict[str, Any] = found.get("facts", {})
        self.notes: dict[str, Any] = found.get("notes", {})
        self._bytes: int = found.get("bytes", 0)
        if (self.draft.stat().st_size if self.draft.exists() else 0) < self._bytes:
            raise OutputError(f"{self.draft}: expected at least {self._bytes} bytes; remove it and {self._record}")

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Takes the facts for granted, or refuses them where the file was begun with others.

        **Raises:** `ConfigError`, naming the fact.
        """
        for name, now in facts.items():
            if (before := self.facts.setdefault(name, now)) != now:
                advice = f"go on with the same, or remove {self.draft} and {self._record.name}"
                raise ConfigError(f"{self.path}: was begun with {name} {before}, found {now}; {advice}")

    def append(self, text: str, notes: Mapping[str, Any]) -> None:
        """Adds a part; what an earlier process left half written makes room for it.

        **Raises:** `OutputError`.
        """
        content = text.encode()
        with writing(self.draft), self.draft.open("r+b" if self._bytes else "wb") as file:
            file.truncate(self._bytes)
            file.seek(self._bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._bytes, self.notes = self._bytes + len(content), dict(notes)
        replace_file(self._record, json.dumps({"facts": self.facts, "bytes": self._bytes, "notes": self.notes}))

    def finish(self) -> None:
        """Gives the file its name.

        **Raises:** `OutputError`.
        """
        with writing(self.path):
            os.truncate(self.draft, self._bytes)
            self.draft.rename(self.path)
            self._record.unlink()


@contextmanager
def partial_file(path: Path, *, resume: bool) -> Iterator[PartialFile]:
    """Holds a file that is to be written, as the only process; it takes its name when the block ends well.

    **Raises:** `OutputError` where the file exists already, another process writes it, or a part of it is there and
    `resume` is false.
    """
    from filelock import FileLock, Timeout

    check_file(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with writing(path), suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        raise OutputError(f"{path}: another process writes it; wait for it, or choose another place")
    try:
        if path.exists():
            raise OutputError(f"{path}: exists already; choose another --output or remove it")
        file = PartialFile(path)
        if file.draft.exists() and not resume:
            raise OutputError(f"{file.draft}: holds a part of it already; go on with --resume auto, or remove it")
        yield file
        file.finish()
    finally:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink()
