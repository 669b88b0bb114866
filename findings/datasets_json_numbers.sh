#!/usr/bin/env bash
# datasets 5.2.0, pandas 3 or 2: a column of type Json keeps about ten decimals of a number. 7.8e-12 becomes 0, and
# 0.12345678901234 loses its last digits, when a column is made and again whenever `map` writes it, because the encoder is
# pandas' ujson with its default precision. `json.dumps` would keep every number. Columns of lists or objects with several
# kinds of values get this type by themselves from `load_dataset("json")`.
#
# Seen on 2026-11-28:
#   made   [{'score': 7.8e-12}, {'score': 0.12345678901234}] -> [{'score': 0.0}, {'score': 0.1234567890}]
#   read   the same two rows, from a file with mixed keys, after `map`: [0.0, 0.123456789]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'datasets==5.2.0' 'pandas<4'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python - <<'PYTHON'
import datasets

datasets.disable_progress_bars()
rows = [{"score": 7.8e-12}, {"score": 0.12345678901234}]
made = datasets.Dataset.from_dict({"info": rows}, features=datasets.Features({"info": datasets.Json()}))
found = [row["score"] for row in made["info"]]
print("made", found)
assert found == [0.0, 0.12345678900000001], "a Json column now keeps its numbers: the finding is out of date"

with open("rows.jsonl", "w") as file:
    file.write('{"info": {"score": 7.8e-12}}\n{"info": {"score": 0.12345678901234, "by": [1]}}\n{"info": "none"}\n')
read = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
mapped = read.map(lambda row: {"n": 1})
found = [row["score"] for row in mapped["info"][:2]]
print("read", read.features, found)
assert found == [0.0, 0.12345678900000001], "a mapped Json column now keeps its numbers: the finding is out of date"
PYTHON
