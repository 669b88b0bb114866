#!/usr/bin/env bash
# TRL 1.16.0 with transformers 5.24.0 and accelerate 1.15.0: what `RewardTrainer` hands to `compute_metrics` and returns from
# `predict` lacks rejected rewards of the last batch, in one process too. A batch of n pairs gives 2n rewards, the chosen ones
# first; accelerate cuts the last batch to as many rows as there are pairs left in it. Nothing is said, and which rows are
# missing depends on the batch size. A metric that splits the rewards in two halves compares the wrong ones.
#
# Seen on 2026-11-29, five pairs, which have ten rewards: in batches of 4 nine of them (the last rejected one is missing), in
# batches of 8 five (all rejected ones are missing), in batches of 5 and 1 all ten.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'trl==1.16.0' 'transformers==5.24.0' 'accelerate==1.15.0' 'datasets==5.2.0' \
  'pandas<4' 'torch==2.13.0'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python - <<'PYTHON'
import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl

datasets.disable_progress_bars()
words = {word: index for index, word in enumerate(["<unk>", "<pad>", "</s>"])}
backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=1)).eval()
pairs = [{"chosen_ids": [3 + i, 4 + i, 2], "rejected_ids": [9 + i, 2]} for i in range(5)]
data = datasets.Dataset.from_list(pairs)
with torch.no_grad():
    both = [[model(torch.tensor([pair[side]])).logits.item() for side in ("chosen_ids", "rejected_ids")] for pair in pairs]
true = np.array(both)


def rewards_given(batch):
    given = []
    settings = trl.RewardConfig(
        output_dir="out", per_device_eval_batch_size=batch, bf16=False, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = trl.RewardTrainer(
        model=model,
        args=settings,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        compute_metrics=lambda evaluated: given.append(np.ravel(evaluated.predictions)) or {},
    )
    trainer.evaluate()
    predicted = np.ravel(trainer.predict(data).predictions)
    assert np.array_equal(given[0], predicted)
    return predicted


found = {batch: rewards_given(batch) for batch in (1, 4, 5, 8)}
counts = {batch: len(rewards) for batch, rewards in found.items()}
print(counts)
assert counts[1] == counts[5] == 10
assert np.allclose(found[4], [*true[:4, 0], *true[:4, 1], true[4, 0]], atol=1e-5), "other rows: the finding is out of date"
assert np.allclose(found[8], true[:, 0], atol=1e-5), "rejected rewards are there: the finding is out of date"
PYTHON
