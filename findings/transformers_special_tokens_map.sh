#!/usr/bin/env bash
# transformers 5.24.0: which of two files names the end-of-sequence token depends on a third key. special_tokens_map.json
# wins over tokenizer_config.json, but is not read at all where tokenizer_config.json has `added_tokens_decoder`, even an
# entry for another token. Tools that edit one of the files change nothing, or the wrong one.
#
# Seen on 2026-11-28: without the key '</map>', with it '</config>'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'transformers==5.24.0'
cd "$folder"
env/bin/python - <<'PYTHON'
import json, pathlib

import tokenizers
import transformers

place = pathlib.Path("tokenizer")
place.mkdir()
words = {"a": 0, "<unk>": 1, "</map>": 2, "</config>": 3, "<x>": 4}
backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
backend.save(str(place / "tokenizer.json"))
(place / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</map>"}))
config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</config>"}
for more, expected in (({}, "</map>"), ({"added_tokens_decoder": {"4": {"content": "<x>", "special": True}}}, "</config>")):
    (place / "tokenizer_config.json").write_text(json.dumps(config | more))
    found = transformers.AutoTokenizer.from_pretrained(place).eos_token
    print(sorted(more), found)
    assert found == expected, "another file is read: the finding is out of date"
PYTHON
