#!/usr/bin/env bash
# datasets 5.2.0: one number among the texts that `map` returns puts quotation marks around the texts near it. Rows are
# written a thousand at a time; a block with texts and a number is taken for JSON, every value of it is encoded, and because
# the first block has made the column one of texts, the encoded form stays: 999 answers that read yes become "yes", with the
# marks. Whether this happens depends on where the odd row lies: in the first block every text comes back as it was.
#
# Seen on 2026-11-29, 2500 rows that are 'yes' but for one 4: at row 200 2499 times 'yes', at row 1200 1500 times 'yes' and
# 999 times '"yes"'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'datasets==5.2.0' 'pandas<4'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python - <<'PYTHON'
import collections

import datasets

datasets.disable_progress_bars()
rows = datasets.Dataset.from_dict({"id": list(range(2500))})


def answers(odd):
    column = rows.map(lambda row: {"answer": 4 if row["id"] == odd else "yes"})["answer"][:]
    return collections.Counter(map(repr, column))


early, late = answers(200), answers(1200)
print(dict(early), dict(late))
assert early == {"'yes'": 2499, "4": 1}, "a number in the first block reads otherwise: the finding is out of date"
assert late == {"'yes'": 1500, "'\"yes\"'": 999, "'4'": 1}, "texts stay as they are: the finding is out of date"
PYTHON
