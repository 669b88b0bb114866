#!/usr/bin/env bash
# TRL 1.16.0 with transformers 5.24.0: a `RewardTrainer` that is resumed with another `learning_rate` or `weight_decay` goes on
# with the old ones, which lie in the checkpoint, though its arguments, which it saves beside every later checkpoint, state
# the new ones. No warning. A new `max_steps` does count: the old peak then decays over the new length. The `num_tokens`
# of the log begins again at 0.
#
# Seen on 2026-11-29, eight updates resumed after four: with a rate of 0.1 for 0.001 and a decay of 0.5 for 0 the learning
# rates logged are 0.0005, 0.000375, 0.00025, 0.000125 as without a change, and the weights are equal to the bit; num_tokens
# 20, 40, 60, 80, then again 20, 40, 60, 80.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'trl==1.16.0' 'transformers==5.24.0' 'accelerate==1.15.0' 'datasets==5.2.0' \
  'pandas<4' 'torch==2.13.0'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python -W ignore - <<'PYTHON'
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
config = transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=1)
pairs = [{"chosen_ids": [3 + i, 4 + i, 2], "rejected_ids": [5 + i, 2]} for i in range(20)]
common = dict(per_device_train_batch_size=4, max_steps=8, save_steps=4, logging_steps=1, bf16=False, use_cpu=True)


def train(resume=None, **changed):
    torch.manual_seed(0)
    settings = trl.RewardConfig(output_dir="out", report_to=[], disable_tqdm=True, **common, **changed)
    trainer = trl.RewardTrainer(
        model=transformers.LlamaForSequenceClassification(config),
        args=settings,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    log = [line for line in trainer.state.log_history if "learning_rate" in line]
    rates, tokens = ([line[name] for line in log] for name in ("learning_rate", "num_tokens"))
    return rates, tokens, torch.cat([parameter.detach().ravel() for parameter in trainer.model.parameters()])


rates, tokens, weights = train(learning_rate=1e-3)
again, tokens_again, weights_again = train("out/checkpoint-4", learning_rate=0.1, weight_decay=0.5)
print(rates, again, tokens_again)
assert np.allclose(rates[4:], [5e-4, 3.75e-4, 2.5e-4, 1.25e-4]) and tokens == [20 * i for i in range(1, 9)]
assert again == rates and torch.equal(weights, weights_again), "new rates count: the finding is out of date"
assert tokens_again == [20, 40, 60, 80] * 2, "tokens go on: the finding is out of date"
PYTHON
