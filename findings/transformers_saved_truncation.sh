#!/usr/bin/env bash
# transformers 5.24.0: a tokenizer that was called with `truncation=True, max_length=512` and is then saved has these 512 in
# its tokenizer.json, and the padding too. transformers does not show it, because it sets both anew for every call; whatever
# else reads the file cuts each text at that length without a word: the tokenizers library, and servers built on it. Loading
# the directory and saving it again keeps them. One call before the save is enough, as in a trainer that saves its tokenizer
# with each checkpoint.
#
# Seen on 2026-11-29, a text of six words, after one call with max_length=3: transformers 6 ids, tokenizers 3, and 3 after
# loading and saving again; without that call 6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'transformers==5.24.0' 'tokenizers==0.23.3'
cd "$folder"
env/bin/python - <<'PYTHON'
import tokenizers
import transformers

words = {word: index for index, word in enumerate(["<unk>", "<pad>", *"abcdef"])}
backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
text = "a b c d e f"


def lengths(place):
    by_tokenizers = tokenizers.Tokenizer.from_file(f"{place}/tokenizer.json").encode(text).ids
    return len(transformers.AutoTokenizer.from_pretrained(place)(text)["input_ids"]), len(by_tokenizers)


tokenizer.save_pretrained("before")
tokenizer([text, "a"], truncation=True, max_length=3, padding=True)
tokenizer.save_pretrained("after")
transformers.AutoTokenizer.from_pretrained("after").save_pretrained("again")
found = [lengths(place) for place in ("before", "after", "again")]
print(found)
assert found[0] == (6, 6)
assert found[1:] == [(6, 3), (6, 3)], "the length of a call is not saved: the finding is out of date"
PYTHON
