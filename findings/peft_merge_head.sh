#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: `merge_and_unload(adapter_names=["second"])` of a reward model with two adapters merges
# the low-rank matrices of "second", but keeps the head of the adapter that happens to be active: heads (`modules_to_save`,
# which peft adds for sequence classification by itself) do not follow the names. The merged model is neither of the two and
# is saved as such, without a warning. With `set_adapter("second")` before it the merged model is right.
#
# Seen on 2026-11-29: with "first" active the head is that of "first" and rewards are off by more than 0.1; after
# `set_adapter` they agree to 1e-5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'peft==0.21.2' 'transformers==5.24.0' 'torch==2.13.0'
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import copy

import peft
import torch
import transformers

torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=1))
settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
model = peft.get_peft_model(model, settings, adapter_name="first")
model.add_adapter("second", settings)
for name, parameter in model.named_parameters():
    if "first" in name or "second" in name:
        torch.nn.init.normal_(parameter, std=0.5)
tokens = torch.randint(3, 32, (4, 8))


@torch.no_grad()
def rewards(of):
    return of.eval()(tokens).logits[:, 0]


model.set_adapter("second")
wanted = rewards(model)
right = copy.deepcopy(model).merge_and_unload(adapter_names=["second"])
model.set_adapter("first")
heads = {name: head.weight.detach() for name, head in model.base_model.model.score.modules_to_save.items()}
wrong = copy.deepcopy(model).merge_and_unload(adapter_names=["second"])
print("wanted", wanted, "second active", rewards(right), "first active", rewards(wrong))
assert torch.allclose(rewards(right), wanted, atol=1e-5) and torch.equal(right.score.weight, heads["second"])
assert torch.equal(wrong.score.weight, heads["first"]), "the head follows the name: the finding is out of date"
assert (rewards(wrong) - wanted).abs().max() > 0.1
PYTHON
