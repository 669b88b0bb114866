"""JSON files row by row, with what is wrong in them said by line."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import DataError

_TEXTS = ("prompt", "chosen", "rejected")
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What errors call each row, and the row: of JSON lines or of a document that is a list of objects.

    **Raises:** `DataError`, naming the file and the line or row.
    """
    if not _is_document(path):
        yield from ((f"line {number}", row) for number, row in read_rows(path))
        return
    for number, row in enumerate(_read_document(path)):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number}: expected a JSON object, found {type(row).__name__}")
        yield f"row {number}", row


def check_json(path: Path, *, same_kinds: bool = False) -> None:
    """Raises `DataError` for the first row that is not valid, or has numbers for texts, which `datasets` would convert.

    With `same_kinds` also for the first value that is of another kind than in the rows before.
    """
    seen: dict[str, tuple[str, str]] = {}
    empty = True
    for where, row in read_json(path):
        empty = False
        for name in _TEXTS:
            if isinstance(row.get(name), int | float):
                raise DataError(f"{path}: {where}: field {name!r}: expected text or messages, found {row[name]!r}")
        for name, kind in _kinds(row) if same_kinds else ():
            before, first = seen.setdefault(name, (kind, where))
            if kind != before:
                raise DataError(f"{path}: {where}: field {name!r}: expected {before} as in {first}, found {kind}")
    if empty:
        raise DataError(f"{path}: no rows; expected at least one comparison")


def _kinds(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _kinds(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for item in value:
            yield from _kinds(item, f"{name}[]")
    if name and value is not None:
        yield name, _KINDS[type(value)]


def _is_document(path: Path) -> bool:
    with _errors(path, lambda: "beginning"), _open(path) as file:
        return file.read(64).lstrip().startswith(b"[")


def _read_document(path: Path) -> list[Any]:
    with _errors(path, lambda: "document"), _open(path) as file:
        return json.load(file)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line numbers and the objects of a JSON-lines file, plain or gzipped, one at a time.

    **Raises:** `DataError`, naming the file and the line.
    """
    number = 0
    with _errors(path, lambda: f"line {number}"), _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number}: expected a JSON object, found {type(row).__name__}")
                yield number, row


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # pyright: ignore[reportReturnType]


@contextmanager
def _errors(path: Path, where: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{path}: {where()}: not valid JSON ({error.msg}, {at.removeprefix('line 1 ')})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {where()}: not valid UTF-8 ({error.reason})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested lists
        raise DataError(f"{path}: {where()}: cannot be read ({error})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: after {where()}: the gzip file is cut short or damaged ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
