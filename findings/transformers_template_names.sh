#!/usr/bin/env bash
# transformers 5.24.0: `apply_chat_template(messages, chat_template="tool_use")` on a tokenizer that has no template of that
# name renders the name itself. The conversation becomes the eight letters "tool_use", without an error or a warning, so
# rewards of all conversations are equal. A name that exists is looked up; any other text is taken for a template.
#
# Seen on 2026-11-28: 'tool_use'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'transformers==5.24.0' 'jinja2==3.1.6'
"$folder/env/bin/python" - <<'PYTHON'
import tokenizers
import transformers

backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
messages = [{"role": "user", "content": "a"}]
found = tokenizer.apply_chat_template(messages, chat_template="tool_use", tokenize=False)
print(repr(found))
assert found == "tool_use", "an unknown name is no longer rendered: the finding is out of date"
PYTHON
