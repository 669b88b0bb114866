#!/usr/bin/env bash
# transformers 4.57.6 and 5.24.0 give different ids for one directory whose tokenizer.json says `add_prefix_space: true`
# in its ByteLevel pre-tokenizer and whose tokenizer_config.json (PreTrainedTokenizerFast) says nothing of it. 4.57.6
# rewrites the pre-tokenizer with its own default, false; 5.24.0 follows tokenizer.json.
#
# Seen on 2026-11-28, for the text "ab": 5.24.0 [2, 0, 1] (space, a, b), 4.57.6 [0, 1] (a, b).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > show.py <<'PYTHON'
import json, pathlib, sys

import transformers

place = pathlib.Path("tokenizer")
place.mkdir(exist_ok=True)
level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2}, "merges": []}
content = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": level, "post_processor": None}
(place / "tokenizer.json").write_text(json.dumps(content | {"decoder": None, "model": model}))
(place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
found = transformers.AutoTokenizer.from_pretrained(place)("ab")["input_ids"]
print(transformers.__version__, found)
assert found == json.loads(sys.argv[1]), "the ids have changed: the finding is out of date"
PYTHON
python3 -m venv old
old/bin/python -m pip install -q 'transformers==4.57.6'
old/bin/python show.py '[0, 1]'
python3 -m venv new
new/bin/python -m pip install -q 'transformers==5.24.0'
new/bin/python show.py '[2, 0, 1]'
