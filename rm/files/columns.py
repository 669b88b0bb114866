"""Converts rows to Arrow columns and back, without changing a value."""

import decimal
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from .row_files import Fields

if TYPE_CHECKING:
    from datasets import Features

_INTEGERS = 2**53  # larger integers are not exact as floats
_HALF = re.compile("[\ud800-\udfff]")  # of a character, which Arrow cannot hold
_NUMBERS = re.compile(rb"\[\s*-?\d[\d\s,.eE+-]*\]")
JSON = "json"  # the kind of a column of objects, of lists that are not all numbers, or of values of several kinds


def kind_of(text: bytes) -> str | None:
    """The kind of column that holds a JSON value unchanged: an Arrow type, `json`, or `None` for null.

    >>> [kind_of(text) for text in (b'"a"', b"0.5", b"7", b"true", b"[1, 2]", b'[{"role": "user"}]', b"null")]
    ['string', 'float64', 'int64', 'bool', 'list<int64>', 'json', None]
    """
    first = text[:1]
    if first == b'"':
        return "string" if b"\\u" not in text or not _HALF.search(json.loads(text)) else JSON
    if first in b"[{":
        return _kind_of_list(text) if _NUMBERS.fullmatch(text) else JSON
    if first in b"tfn":
        return None if first == b"n" else "bool"
    if text.lstrip(b"-").isdigit():
        return "int64" if abs(int(text)) <= _INTEGERS else JSON
    return "float64"


def merge_kinds(first: str | None, second: str | None) -> str | None:
    """The kind of a column that holds values of both kinds.

    >>> merge_kinds("list<int64>", "list<float64>"), merge_kinds("string", "json"), merge_kinds(None, "bool")
    ('list<float64>', 'json', 'bool')
    """
    if first == second or first is None or second is None:
        return first or second
    for number in ("{}", "list<{}>"):
        if {first, second} == {number.format("int64"), number.format("float64")}:
            return number.format("float64")
    return JSON


def _kind_of_list(text: bytes) -> str:
    kinds = {kind_of(item.strip()) for item in text[1:-1].split(b",")}
    return JSON if JSON in kinds else f"list<{'float64' if 'float64' in kinds else 'int64'}>"


def find_kinds(rows: Iterable[Fields]) -> dict[str, str]:
    """The kind of every column, over all rows; columns that are null in all of them are left out."""
    kinds: dict[str, str | None] = {}
    for row in rows:
        for name, text in row.items():
            before = kinds.get(name)
            if before != JSON:
                kinds[name] = merge_kinds(before, kind_of(text))
    return {name: kind for name, kind in kinds.items() if kind is not None}


def features_of(kinds: Mapping[str, str]) -> "Features":
    """The features of a `datasets.Dataset` whose columns have these kinds."""
    from datasets import Features, Json, List, Value

    def feature(kind: str) -> Any:
        item = kind.removeprefix("list<").removesuffix(">")
        return Json() if kind == JSON else Value(item) if item == kind else List(Value(item))

    return Features({name: feature(kind) for name, kind in kinds.items()})


def to_columns(rows: list[Fields], kinds: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    """The rows as a table; `schema` is that of `kinds`."""

    def value(text: bytes, kind: str) -> Any:
        return text.decode() if kind == JSON else parse_json(text)

    columns = {
        name: [None if text == b"null" else value(text, kind) for text in (row.get(name, b"null") for row in rows)]
        for name, kind in kinds.items()
    }
    stored = pa.schema([(name, pa.string() if kinds[name] == JSON else schema.field(name).type) for name in kinds])
    return pa.table(columns, schema=stored).cast(schema)


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text, as the standard library reads it."""
    try:
        return msgspec.json.decode(text)  # several times as fast, with equal results for all that it accepts
    except (msgspec.MsgspecError, RecursionError):  # NaN, lone surrogates
        return json.loads(text)


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table.

    A column gives every struct the keys of all rows, missing ones as nulls; these are removed, nulls of JSON are kept.
    """
    columns = {name: list(_values(column)) for name, column in zip(table.column_names, table.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    if isinstance(column.type, pa.JsonType):
        texts = (text for chunk in column.chunks for text in chunk.storage.to_pylist())
        return (None if text is None else parse_json(text) for text in texts)
    if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
        return iter(column.to_pylist())
    if pa.types.is_nested(column.type):
        return (without_nulls(value) for value in column.to_pylist())
    return (float(value) if isinstance(value, decimal.Decimal) else value for value in column.to_pylist())


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The type to read a Parquet column as; `None` if a data set cannot hold it.

    Dictionary, large, view and fixed-size types become the plain types of their values, decimals become floats.
    """
    if isinstance(kind, pa.JsonType):
        return kind
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_map(kind):
        return None
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType | pa.LargeListViewType):
        item = plain_type(kind.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(kind):
        fields = [(field.name, plain_type(field.type)) for field in kind]
        return None if any(item is None for _, item in fields) else pa.struct(fields)
    from datasets import Features

    try:
        Features.from_arrow_schema(pa.schema([("column", kind)]))
    except (ValueError, NotImplementedError, TypeError):
        return None
    return kind


def without_null_type(kind: pa.DataType) -> pa.DataType:
    """The type with texts where it has nothing but nulls, which pyarrow does not cast within lists.

    >>> without_null_type(pa.list_(pa.struct([("text", pa.string()), ("image", pa.null())])))
    ListType(list<item: struct<text: string, image: string>>)
    """
    if pa.types.is_null(kind):
        return pa.string()
    if isinstance(kind, pa.ListType):
        return pa.list_(without_null_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, without_null_type(field.type)) for field in kind])
    return kind


def without_nulls(value: Any) -> Any:
    """The value without null keys, at any depth; a column gives every object the keys of all objects.

    >>> without_nulls({"role": "user", "name": None, "tool_calls": [{"id": None, "type": "function"}, None]})
    {'role': 'user', 'tool_calls': [{'type': 'function'}, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
