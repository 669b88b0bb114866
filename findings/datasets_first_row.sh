#!/usr/bin/env bash
# datasets 5.2.0: a column that the first row does not have is lost, in `map` and in `Dataset.from_generator`, without a word.
# A function that adds a margin where it knows one adds none at all if the first row has none, and a trainer that reads
# margins where the column exists trains without. The other way round, where a later row lacks it, is a KeyError. The same
# function over the same rows as a stream keeps the margins.
#
# Seen on 2026-11-29, margins of three rows, of which the first has none: map and from_generator no column, stream [None, 1, 1].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'datasets==5.2.0' 'pandas<4'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python - <<'PYTHON'
import datasets

datasets.disable_progress_bars()
rows = datasets.Dataset.from_dict({"id": [0, 1, 2]})


def with_margin(row):
    return row | ({"margin": 1} if row["id"] else {})


def generate():
    yield from map(with_margin, rows)


mapped, generated = rows.map(with_margin).column_names, datasets.Dataset.from_generator(generate).column_names
streamed = [row.get("margin") for row in rows.to_iterable_dataset().map(with_margin)]
try:
    later = rows.map(lambda row: with_margin({"id": 2 - row["id"]})).column_names
except KeyError as error:
    later = f"KeyError {error}"
print(mapped, generated, streamed, later)
assert mapped == generated == ["id"], "the column is kept: the finding is out of date"
assert streamed == [None, 1, 1] and later == "KeyError 'margin'", "streams or later rows differ: the finding is out of date"
PYTHON
