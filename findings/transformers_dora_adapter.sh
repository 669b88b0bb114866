#!/usr/bin/env bash
# transformers 5.24.0 with peft 0.21.2: `AutoModelForSequenceClassification.from_pretrained` and `load_adapter` of a directory
# with a DoRA adapter, as peft saves it, give other rewards than peft. The magnitudes are saved as `lora_magnitude_vector` and
# looked for as `lora_magnitude_vector.default.weight`, so those of the untrained base are used. The report of the loader
# lists them as unexpected and as missing; nothing is raised. LoRA adapters and heads are read right.
#
# Seen on 2026-11-29: LoRA by peft, by `load_adapter` and by the auto class equal to 1e-5; DoRA by peft equal, by both of the
# others off by more than 0.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'peft==0.21.2' 'transformers==5.24.0' 'torch==2.13.0'
cd "$folder"
HF_HUB_OFFLINE=1 env/bin/python -W ignore - <<'PYTHON'
import peft
import torch
import transformers
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
LlamaForSequenceClassification(transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=1)).save_pretrained("base")
tokens = torch.randint(3, 32, (4, 8))


@torch.no_grad()
def rewards(model):
    return model.eval()(tokens).logits[:, 0]


def differences(dora):
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], use_dora=dora)
    trained = peft.get_peft_model(LlamaForSequenceClassification.from_pretrained("base"), settings)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    trained.save_pretrained(place := f"adapter-{dora}")
    loaded = LlamaForSequenceClassification.from_pretrained("base")
    loaded.load_adapter(place)
    by_peft = peft.PeftModel.from_pretrained(LlamaForSequenceClassification.from_pretrained("base"), place)
    models = by_peft, loaded, AutoModelForSequenceClassification.from_pretrained(place, num_labels=1)
    return [(rewards(model) - rewards(trained)).abs().max().item() for model in models]


lora, dora = differences(False), differences(True)
print("LoRA", lora, "DoRA", dora)
assert max(lora) < 1e-5 and dora[0] < 1e-5
assert min(dora[1:]) > 0.1, "the magnitudes are read: the finding is out of date"
PYTHON
