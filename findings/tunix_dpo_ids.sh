#!/usr/bin/env bash
# google-tunix 0.1.7: `process_dpo_record`, which makes the token ids of a preference pair, tokenizes prompt and responses one
# by one and puts the begin-of-sequence token before each, so the sequence a model is trained on, the prompt followed by a
# response, has a second one in its middle; TRL and others tokenize a response as the continuation it is. No end of sequence
# is added. A prompt over `max_prompt_length` loses its end, the last turn that the responses answer, and not its begin.
#
# Seen on 2026-11-29: prompt "a b c d" with room for 3 and responses "e f" and "e": [<s> a b] with [<s> e f] and [<s> e].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'google-tunix==0.1.7' 'transformers==5.12.1' 'jax==0.10.2'
cd "$folder"
JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 env/bin/python -W ignore - <<'PYTHON'
import tokenizers
import transformers
from tunix.generate.tokenizer_adapter import TokenizerAdapter
from tunix.sft.dpo.dpo_trainer import process_dpo_record

words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdef"]
ids = {word: index for index, word in enumerate(words)}
backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
)
pair = {"prompts": "a b c d", "chosen_responses": "e f", "rejected_responses": "e"}
record = process_dpo_record(pair, TokenizerAdapter(tokenizer), max_prompt_length=3, max_response_length=4)
found = [
    [words[index] for index in array.tolist() if index] for array in (record.prompt_ids, record.chosen_ids, record.rejected_ids)
]
print(found)
assert found[0] == ["<s>", "a", "b"], "a long prompt keeps its end: the finding is out of date"
assert found[1:] == [["<s>", "e", "f"], ["<s>", "e"]], "responses begin without <s>: the finding is out of date"
PYTHON
