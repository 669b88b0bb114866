#!/usr/bin/env bash
# TRL 1.16.0 with accelerate 1.15.0: the loss, accuracy and margin of an evaluation by `RewardTrainer` depend on the number of
# processes, where the pairs do not divide evenly. accelerate fills the last batches with pairs from the begin of the set, and
# the means of a batch, which TRL makes before they are gathered, count these again. In one process `eval_loss` is exact.
# The best checkpoint and early stopping follow these numbers.
#
# Seen on 2026-11-29, five pairs, of which one is wrong, the same model: one process, batches of 8, loss 0.387 and accuracy
# 0.8; two processes with batches of 4 each, loss 0.454 and accuracy 0.75; with batches of 2 each, 0.432 and 0.875.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'trl==1.16.0' 'transformers==5.24.0' 'accelerate==1.15.0' 'datasets==5.2.0' \
  'pandas<4' 'torch==2.13.0'
cd "$folder"
cat > evaluate.py <<'PYTHON'
import sys

import datasets
import tokenizers
import torch
import transformers
import trl

datasets.disable_progress_bars()
words = {word: index for index, word in enumerate(["<unk>", "<pad>", "</s>"])}
backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=1))
torch.nn.init.normal_(model.score.weight, std=2.0)
pairs = [{"chosen_ids": [3 + i, 4 + i, 2], "rejected_ids": [5 + i, 2]} for i in range(5)]
pairs[1] = {"chosen_ids": pairs[1]["rejected_ids"], "rejected_ids": pairs[1]["chosen_ids"]}
data = datasets.Dataset.from_list(pairs)
settings = trl.RewardConfig(
    output_dir="out", per_device_eval_batch_size=int(sys.argv[1]), bf16=False, use_cpu=True, report_to=[], disable_tqdm=True
)
trainer = trl.RewardTrainer(
    model=model, args=settings, train_dataset=data, eval_dataset=data, processing_class=tokenizer
)
found = trainer.evaluate()
if trainer.is_world_process_zero():
    with open("found.txt", "a") as file:
        file.write(f"{found['eval_loss']:.3f} {found['eval_accuracy']:.3f}\n")
trainer.end()
PYTHON
export HF_HOME="$folder/cache" OMP_NUM_THREADS=1
env/bin/python evaluate.py 8
env/bin/python -m torch.distributed.run --standalone --nproc-per-node 2 evaluate.py 4
env/bin/python -m torch.distributed.run --standalone --nproc-per-node 2 evaluate.py 2
cat found.txt
printf '%s\n' '0.387 0.800' '0.454 0.750' '0.432 0.875' > expected.txt
cmp found.txt expected.txt || { echo "the numbers have changed: the finding is out of date"; exit 1; }
