#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: `merge_and_unload` of an adapter with `layer_replication` gives another model, without
# a warning. Copies of a layer share its weights and have low-rank matrices of their own; merging adds those of every copy to
# the one shared weight, so each copy computes with the sum. What `save_pretrained` then writes are these weights.
#
# Seen on 2026-11-29: without replication rewards agree to 1e-5 after merging; with the layers stacked twice they are off by
# more than 0.1, and both copies of the first layer hold one tensor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'peft==0.21.2' 'transformers==5.24.0' 'torch==2.13.0'
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import peft
import torch
import transformers

sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
config = transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=1, initializer_range=0.3)
tokens = torch.arange(3, 31).reshape(4, 7)


@torch.no_grad()
def rewards(model):
    return model.eval()(tokens).logits[:, 0]


def merged(stack):
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], layer_replication=stack
    )
    model = peft.get_peft_model(transformers.LlamaForSequenceClassification(config), settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    before = rewards(model)
    model = model.merge_and_unload()
    weights = [layer.self_attn.q_proj.weight for layer in model.model.layers]
    return (rewards(model) - before).abs().max().item(), weights[0] is weights[len(weights) // 2]


plain, replicated = merged(None), merged([(0, 2), (0, 2)])
print("plain", plain, "replicated", replicated)
assert plain[0] < 1e-5
assert replicated[0] > 0.1 and replicated[1], "merging keeps the rewards: the finding is out of date"
PYTHON
