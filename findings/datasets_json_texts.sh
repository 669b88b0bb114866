#!/usr/bin/env bash
# datasets 5.2.0: in a JSON-lines file whose column holds texts in some rows and lists in others, `load_dataset("json")`
# gives the text "4" back as the number 4, "true" as True and "null" as None, without a word. The column becomes the type
# Json, and a text that happens to be JSON is stored as if it were the value. A preference set of sums loses its answers.
#
# Seen on 2026-11-28: ["4", "true", "null", "yes", ["a"]] -> [4, True, None, 'yes', ['a']]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'datasets==5.2.0' 'pandas<4'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python - <<'PYTHON'
import json

import datasets

datasets.disable_progress_bars()
answers = ["4", "true", "null", "yes", ["a"]]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
read = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
print(read.features, read["answer"][:])
assert read["answer"][:] == [4, True, None, "yes", ["a"]], "texts now stay texts: the finding is out of date"
PYTHON
