"""Files of JSON lines that the commands write: metrics.jsonl, scores.jsonl."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .output import replace_file
from .row_files import Row, read_rows


def read_lines(path: Path) -> list[Row]:
    """The objects of a file, an empty list where there is none; a last line that was cut short is left out.

    **Raises:** `DataError`, naming the line.
    """
    rows = [row for _, row in read_rows(path)] if path.exists() else []
    if rows and isinstance(rows[-1], DataError) and not path.read_bytes().endswith(b"\n"):
        rows.pop()  # its writer was killed
    for row in rows:
        if isinstance(row, DataError):
            raise row
    return rows  # pyright: ignore[reportReturnType]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file that appears, or takes the place of the old one, as a whole.

    **Raises:** `OutputError`.
    """
    replace_file(path, (json.dumps(row) + "\n" for row in rows))
