#!/usr/bin/env bash
# transformers 5.24.0 turns a function that is given to `apply_chat_template` for the template to call into its text, so the
# template fails with "'str' object is not callable". 4.57.6 passes it on. A date cannot be fixed by giving a template its
# own `strftime_now` any more; the argument `date_string` of Llama 3's templates works in both.
#
# Seen on 2026-11-28: 4.57.6 gives '2024', 5.24.0 raises TypeError 'str' object is not callable.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > show.py <<'PYTHON'
import datetime, sys

import tokenizers
import transformers

backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
tokenizer.chat_template = "{{ strftime_now('%Y') }}"
clock = datetime.datetime(2024, 7, 26).strftime
try:
    found = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, strftime_now=clock)
except TypeError as error:
    found = str(error)
print(transformers.__version__, found)
assert found == sys.argv[1], "the behaviour has changed: the finding is out of date"
PYTHON
python3 -m venv old
old/bin/python -m pip install -q 'transformers==4.57.6' 'jinja2==3.1.6'
old/bin/python show.py 2024
python3 -m venv new
new/bin/python -m pip install -q 'transformers==5.24.0' 'jinja2==3.1.6'
new/bin/python show.py "'str' object is not callable"
