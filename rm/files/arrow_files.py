"""JSON, CSV and Parquet files as data sets: converted once to memory-mapped Arrow files in the cache of `datasets`."""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import DataError, OutputError, first_line
from .columns import features_of, find_kinds, plain_type, to_columns, to_rows, without_null_type
from .output import new_directory, writing
from .repositories import fetch
from .row_files import LINE, UNREADABLE, Fields, read_fields, read_rows, to_json

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BATCH = 1000  # rows that are in memory at a time


def load_row_files(files: Sequence[Path], *, lines: bool, skip_unreadable: bool) -> "list[Dataset]":
    """A data set for each JSON or CSV file, all with the same columns.

    A column of texts, numbers, lists of numbers or booleans has that type; any other is JSON. The type holds for all
    rows of all files, and no value changes.

    **Arguments:** `lines`, whether a column `__line__` gives the place of each row; `skip_unreadable`, whether a row
    that cannot be read is kept, with the reason in the column `__unreadable__`, instead of raising.

    **Raises:** `DataError`, naming the file and the line.
    """

    def fields(file: Path) -> Iterator[Fields]:
        return _marked(file, read_fields(file), to_json, lines, skip_unreadable)

    def write(directory: Path) -> None:
        kinds = find_kinds(row for file in files for row in fields(file))
        schema = features_of(kinds).arrow_schema
        for number, file in enumerate(files):
            rows = fields(file)
            batches = (to_columns(batch, kinds, schema) for batch in iter(lambda: list(islice(rows, _BATCH)), []))  # noqa: B023
            _write_stream(directory / f"{number}.arrow", schema, batches)

    return _converted(files, [lines, skip_unreadable], write)


def stream_files(reader: str, files: Sequence[str | Path], **options: bool) -> "IterableDataset":
    """The rows of JSON, CSV (`rows`) or `parquet` files one by one, each file fetched when it is reached."""
    from datasets import IterableDataset

    arguments = {"files": [str(file) for file in files], **options}
    return IterableDataset.from_generator(_stream if reader == "rows" else _stream_parquet, gen_kwargs=arguments)  # pyright: ignore[reportReturnType]


def load_parquet_files(files: Sequence[Path]) -> "list[Dataset]":
    """A data set for each Parquet file, all with the same columns, without those of types that `datasets` lacks."""
    from datasets import Features

    try:
        schema = pa.unify_schemas(list(map(_parquet_schema, files)), promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{files[0]}: the files' columns differ in type ({first_line(error)})") from None
    schema = Features.from_arrow_schema(_without_null_types(schema)).arrow_schema

    def write(directory: Path) -> None:
        for number, file in enumerate(files):
            _write_stream(directory / f"{number}.arrow", schema, _parquet_tables(file, schema))

    return _converted(files, [], write)


def _without_null_types(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, without_null_type(field.type)) for field in schema])


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read ({first_line(error)}); check what is in it") from None


def _parquet_tables(file: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    from pyarrow import parquet

    with _reading(file):
        for batch in parquet.ParquetFile(file).iter_batches(_BATCH):
            yield _cast(pa.Table.from_batches([batch]), schema)


def _parquet_schema(file: Path) -> pa.Schema:
    from pyarrow import parquet

    with _reading(file):
        plain = [(field.name, plain_type(field.type)) for field in parquet.read_schema(file)]
    return pa.schema([(name, kind) for name, kind in plain if kind is not None])


def source_files(rows: "Dataset") -> list[str] | None:
    """The Arrow files that hold exactly these rows, in order; `None` if rows were selected or changed."""
    if getattr(rows, "_indices", rows) is not None:  # no public property tells a data set that was shuffled
        return None
    blocks = [block for line in getattr(rows.data, "blocks", [[rows.data]]) for block in line]
    changes = [change for block in blocks for change in getattr(block, "replays", None) or ()]
    whole = all(hasattr(block, "path") for block in blocks)
    whole &= all(name == "replace_schema_metadata" for name, *_ in changes)
    return [block.path for block in blocks] if whole and rows.data.num_columns == blocks[0].num_columns else None


def read_tables(rows: "Dataset", columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    """The rows in tables of about `size`; unchanged files are read, not mapped, so that their pages are not kept."""
    files = source_files(rows)
    if files is None:
        yield from rows.select_columns(list(columns)).with_format("arrow").iter(size)  # pyright: ignore[reportReturnType]
        return
    for file in files:
        with pa.OSFile(file) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch]).select(list(columns))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the schema; columns that it lacks are null."""
    columns = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    }
    return pa.table(columns, schema=schema)


def _marked(file: Path, rows: Iterator, encode: Callable, lines: bool, skip_unreadable: bool) -> Iterator[dict]:
    """The rows with their places and, instead of those that cannot be read, the reasons."""
    for where, row in rows:
        if isinstance(row, DataError):
            if not skip_unreadable:
                raise row
            row = {UNREADABLE: encode(str(row).removeprefix(f"{file}: {where}: "))}
        if lines:
            row[LINE] = encode(f"{file}: {where}")
        yield row


def _stream_parquet(files: list[str], **_: bool) -> Iterator[dict[str, Any]]:
    for file in map(fetch, files):
        for table in _parquet_tables(file, _without_null_types(_parquet_schema(file))):
            yield from to_rows(table)


def _stream(files: list[str], lines: bool, skip_unreadable: bool) -> Iterator[dict[str, Any]]:
    for file in map(fetch, files):
        yield from _marked(file, read_rows(file), str, lines, skip_unreadable)


def _write_stream(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _converted(files: Sequence[Path], options: list[Any], write: Callable[[Path], None]) -> "list[Dataset]":
    """The data sets that `write` makes from these files, or the cached ones of an earlier call."""
    from datasets import Dataset, config

    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    facts = [[str(file), str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    digest = hashlib.sha256(json.dumps([*options, *facts]).encode() + b"".join(code)).hexdigest()
    entry = Path(config.HF_DATASETS_CACHE) / "rm-rows" / digest
    if not entry.is_dir():
        try:
            with new_directory(entry) as draft:
                write(draft)
        except OutputError:
            if not entry.is_dir():  # the cache cannot be written, and no other process wrote the entry
                entry = Path(tempfile.mkdtemp(prefix="rm-rows-"))
                atexit.register(shutil.rmtree, entry, ignore_errors=True)
                with writing(entry):
                    write(entry)
    return [Dataset.from_file(str(entry / f"{number}.arrow")) for number in range(len(files))]
