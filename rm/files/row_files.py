"""JSON, CSV and TSV files, row by row: every value as it stands in the file, every error with its line.

Also the files of JSON lines that the commands write, metrics.jsonl and scores.jsonl."""

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec

from ..errors import DataError, first_line, warn_once
from .output import replace_file

Row = dict[str, Any]
Fields = dict[str, bytes]  # the JSON text of every value
Numbered = Iterator[tuple[str, Row | DataError]]

LINE, UNREADABLE = "__line__", "__unreadable__"  # columns: where a row stands, and why it cannot be read
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".zst")
_WRAPPER = "data"  # the field of a document that holds its rows, as in SQuAD's files and the pages of `datasets`
# columns of a CSV file that are no texts: those of every form, then those of public forms
_NUMBERS = {"margin", "score_chosen", "score_rejected"}
_NUMBERS |= {"winner_model_a", "winner_model_b", "winner_tie", "better_response_id", "overall_preference"}
_NUMBERS |= {"preference_strength", "labels", "helpfulness"}


def read_rows(path: Path) -> Numbered:
    """Rows of a `.jsonl`, `.json`, `.csv` or `.tsv` file (also `.gz`, `.zst`), each with its place: `line 3`, `row 2`.

    A JSON document is a list of rows, or an object with such a list under `data`; what else the object has is said.
    A row that cannot be read is given as a `DataError`, and reading goes on after it.

    **Raises:** `DataError` where the file as a whole cannot be read.
    """
    return _read(path, as_text=False)


def _read(path: Path, *, as_text: bool) -> Numbered:
    where = "the beginning"
    with _errors(path, lambda: where), _open(path) as file:
        separator = _SEPARATORS.get(file_type(path))
        if separator:
            rows = _csv_rows(path, file, separator)
        else:
            rows = _json_rows(path, file, _parse_fields if as_text else _parse)
        for where, row in rows:
            yield where, row


def read_fields(path: Path) -> Iterator[tuple[str, Fields | DataError]]:
    """`read_rows` with every value as JSON text: that of the file, where it is a file of JSON lines."""
    for where, row in _read(path, as_text=True):
        if isinstance(row, DataError):
            yield where, row
        else:
            yield where, {name: value if isinstance(value, bytes) else to_json(value) for name, value in row.items()}


def to_json(value: Any) -> bytes:
    """The JSON text of a value, in UTF-8, half characters escaped."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def checked_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """`read_rows`, which raises the `DataError` of the first row that cannot be read."""
    for where, row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        yield where, row


def read_lines(path: Path) -> list[Row]:
    """The rows of a file that the commands write; none where there is no file, and without a last line cut short."""
    rows = [row for _, row in read_rows(path)] if path.exists() else []
    if rows and isinstance(rows[-1], DataError) and not path.read_bytes().endswith(b"\n"):
        rows.pop()  # its writer was killed
    for row in rows:
        if isinstance(row, DataError):
            raise row
    return rows  # pyright: ignore[reportReturnType]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines that appears, or takes the place of the old one, as a whole."""
    replace_file(path, (json.dumps(row) + "\n" for row in rows))


def file_type(path: Path) -> str:
    """The ending that says what is in a file, without that of its compression.

    >>> file_type(Path("pairs.jsonl.zst")), file_type(Path("pairs.csv"))
    ('.jsonl', '.csv')
    """
    return Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix


def _json_rows(path: Path, file: IO[bytes], parse: Callable[[bytes, str], Any]) -> Numbered:
    """The rows of JSON lines or of a document; the first line that is not blank tells which it is."""
    before = []
    for first in file:
        before.append(first)
        if start := first.removeprefix(codecs.BOM_UTF8).strip():
            break
    else:
        return iter(())
    if start.startswith(b"["):
        return _list_rows(path, first + file.read())
    several_lines = start.startswith(b"{") and start.endswith((b"{", b"[", b","))
    if several_lines or _wrapped(_parse(start, "")) is not None:
        before[-1] += file.read()
        document = _parse(before[-1], "")
        if isinstance(document, dict):
            return _wrapped_rows(path, document)
        before[-1:] = io.BytesIO(before[-1])  # lines after all, of which the first is cut short
    return _line_rows(path, chain(before, file), parse)


def _wrapped(document: Any) -> list[Row] | None:
    """The rows of a document that is an object; `None` if it has none."""
    rows = document.get(_WRAPPER) if isinstance(document, dict) else None
    return rows if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows) else None


def _wrapped_rows(path: Path, document: Row) -> Numbered:
    rows, others = _wrapped(document), [name for name in document if name != _WRAPPER]
    if rows is None or any(isinstance(document[name], list) for name in others):
        expected = f"expected JSON lines, a list of rows, or an object with one list of rows, {_WRAPPER!r}"
        raise DataError(f"{path}: document: {expected}; found an object of {', '.join([*document][:9])}")
    if others:
        warn_once(f"{path}: the rows are those of {_WRAPPER!r}; not read: {', '.join(others)}")
    return ((f"row {number} of {_WRAPPER!r}", row) for number, row in enumerate(rows))


def _line_rows(path: Path, lines: Iterable[bytes], parse: Callable[[bytes, str], Any]) -> Numbered:
    for number, line in enumerate(lines, 1):
        if stripped := line.strip():
            yield f"line {number}", parse(stripped, f"{path}: line {number}")


def _list_rows(path: Path, text: bytes) -> Numbered:
    document = _parse(text, f"{path}: document", kind=list)
    if isinstance(document, DataError):
        raise document
    for number, row in enumerate(document):
        yield f"row {number}", row if isinstance(row, dict) else _not_an_object(f"{path}: row {number}", row)


def _csv_rows(path: Path, file: IO[bytes], separator: str) -> Numbered:
    csv.field_size_limit(sys.maxsize)  # the library's own limit is shorter than long responses are
    reader = csv.DictReader(codecs.iterdecode(file, "utf-8-sig"), delimiter=separator)
    names, where = (), "line 1"
    try:
        names = reader.fieldnames or ()
        where = f"line {reader.line_num + 1}"  # where the row begins; texts may have several lines
        for row in reader:
            if None in row or None in row.values():
                found = len(names) + (len(row[None]) if None in row else -list(row.values()).count(None))
                columns = f"expected {len(names)} values as in the first line, found {found}"
                yield where, DataError(f"{path}: {where}: {columns}")
            else:
                yield where, {name: _csv_value(name, text) for name, text in row.items()}
            where = f"line {reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(f"{path}: {where}: not valid CSV ({error})") from None


def _csv_value(name: str, text: str) -> Any:
    if not text:
        return None
    if text.startswith("[{"):  # a cell has no other way to hold messages
        found = _parse(text.encode(), "", kind=list)
        return found if isinstance(found, list) and all(map(_is_message, found)) else text
    try:
        return float(text) if name in _NUMBERS else text
    except ValueError:
        return text  # refused with its name where it is needed


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and not {"role", "from"}.isdisjoint(value)


def _parse_fields(line: bytes, where: str) -> Any:
    """The fields of a row as they stand in the line, found by a parser that builds no objects of them."""
    try:
        # decoded first, because it does not check UTF-8 where it builds nothing
        return {name: bytes(text) for name, text in _FIELDS.decode(line.decode()).items()}
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):  # what it refuses may still be read
        return _parse(line, where)


def _parse(text: bytes, where: str, kind: type = dict) -> Any:
    """The JSON value of a row or a document, or a `DataError`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        return DataError(f"{where}: not valid JSON ({error.msg}, {at.removeprefix('line 1 ')})")
    except UnicodeDecodeError as error:
        return DataError(f"{where}: not valid UTF-8 ({error.reason})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested lists
        return DataError(f"{where}: cannot be read ({error})")
    return value if isinstance(value, kind) else _not_an_object(where, value)


def _not_an_object(where: str, value: Any) -> DataError:
    return DataError(f"{where}: expected a JSON object, found {type(value).__name__}")


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))  # pyright: ignore[reportArgumentType]
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # pyright: ignore[reportReturnType]


@contextmanager
def _errors(path: Path, where: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: after {where()}: not valid UTF-8 ({error.reason})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: after {where()}: the gzip file is cut short or damaged ({error})") from None
    except OSError as error:
        reason = error.strerror or f"the file is cut short or damaged: {first_line(error)}"  # pyarrow's say no number
        raise DataError(f"{path}: cannot be read ({reason})") from None
