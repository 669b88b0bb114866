#!/usr/bin/env bash
# datasets 5.2.0: `map` takes its old result from the cache when the function has changed, if the function comes from an
# imported module. Functions of the script itself are pickled with their code, and what they call in other modules only by
# name: so an edit of the script is seen, an edit of `template.py` beside it is not. Training goes on with the old texts,
# without a word, and so do functions of the script that call into the module.
#
# Seen on 2026-11-29, after "old" was replaced by "new" in the module: from the module ['old'], called by a function of the
# script ['old'], in a new cache ['new'].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'datasets==5.2.0' 'pandas<4'
cd "$folder"
cat > prepare.py <<'PYTHON'
import sys

import datasets

import template

datasets.disable_progress_bars()


def render(row):
    return template.render(row)


rows = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
found = [rows.map(function)["text"][0] for function in (template.render, render)]
print(found)
assert found == sys.argv[1:], "the cache sees changes of a module: the finding is out of date"
PYTHON
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
echo '{"prompt": "a"}' > rows.jsonl
printf 'def render(row):\n    return {"text": "old"}\n' > template.py
HF_HOME="$folder/cache" env/bin/python prepare.py old old
printf 'def render(row):\n    return {"text": "new"}\n' > template.py
HF_HOME="$folder/cache" env/bin/python prepare.py old old
HF_HOME="$folder/other" env/bin/python prepare.py new new
