"""Rows of one response each, as HelpSteer has them: those of one prompt that follow each other become one row."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .public_forms import RATED
from .render import Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_PROMPT, *_LISTED = RATED  # the other columns have a value for each response


def join_responses(rows: Any) -> Any:
    """Rows of the columns `RATED`, with lists of the responses to one prompt and of their ratings; other rows as is.

    Rows of one prompt are joined where they follow each other. Further columns have the values of the first of them.

    **Arguments:** `rows`, a `datasets.Dataset` or `IterableDataset`, or dicts.

    >>> rows = [{"prompt": "a", "response": text, "helpfulness": rating} for text, rating in (("b", 1), ("c", 4))]
    >>> list(join_responses(rows))
    [{'prompt': 'a', 'response': ['b', 'c'], 'helpfulness': [1, 4]}]
    """
    if not hasattr(rows, "select_columns"):
        return _join(rows)
    if not _are_rated(columns_of(rows)):
        return rows
    return _join_table(rows) if hasattr(rows, "__len__") else _join_stream(rows)


def columns_of(rows: "Dataset | IterableDataset") -> list[str]:
    """The names of the columns; of a stream that does not know them, those of its first row."""
    try:
        return rows.column_names or list(next(iter(rows), {}))
    except Exception:  # said with its place where the row is read
        return []


def _are_rated(names: Iterable[str]) -> bool:
    names = set(names)
    return names.issuperset(RATED) and names.isdisjoint(("chosen", "rejected", "responses"))


def _prompt(row: Row) -> str | None:
    """The prompt of a row of one response; `None` for any other row."""
    texts = isinstance(row.get("response"), str) and isinstance(row.get(_PROMPT), str)
    return row[_PROMPT] if texts and _are_rated(row) else None


def _join(rows: Iterable[Row]) -> Iterator[Row]:
    for prompt, same in groupby(rows, _prompt):
        if prompt is None:
            yield from same
            continue
        first, *others = same
        yield {**first, **{name: [row[name] for row in (first, *others)] for name in _LISTED}}


def _join_stream(rows: "IterableDataset") -> "IterableDataset":
    from datasets import IterableDataset

    return IterableDataset.from_generator(_join, gen_kwargs={"rows": rows})  # pyright: ignore[reportReturnType]


def _join_table(rows: "Dataset") -> "Dataset":
    """The same by columns, of which Python sees the prompts alone."""
    import pyarrow as pa
    from datasets import Dataset

    table: pa.Table = rows.with_format("arrow")[:]  # pyright: ignore[reportAssignmentType]
    kinds = [table.schema.field(name).type for name in (_PROMPT, "response")]
    if not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds):
        return rows  # joined already, or refused where they are read
    prompts = table[_PROMPT].to_pylist()
    new = [number for number, text in enumerate(prompts) if not number or text is None or text != prompts[number - 1]]
    bounds = pa.array([*new, len(prompts)], pa.int32())
    columns = {
        name: pa.ListArray.from_arrays(bounds, column.combine_chunks()) if name in _LISTED else column.take(new)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return Dataset(pa.table(columns))
