"""The model card of an exported reward model."""

from collections.abc import Mapping
from typing import Any

_TEMPLATE = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- reward-model
- rm-jax
{base}---

# {name}

A reward model: a Llama backbone with one scalar output, trained on preference pairs (Bradley–Terry) with
[`rm`](https://pypi.org/project/rm-jax/) {version}. A higher reward means a better response; only differences between
responses to the same prompt mean something.

{figures}## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_HUB_ID")
model = AutoModelForSequenceClassification.from_pretrained("PATH_OR_HUB_ID")
messages = [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}]
text = tokenizer.apply_chat_template(messages, tokenize=False)  # trained on plain texts: prompt + response + EOS
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")  # plain texts: leave add_special_tokens out
reward = model(**inputs).logits[0, 0]
```

The reward is read at the rightmost token whose id is not `pad_token_id` ({pad}). `rm.json` records where the
model comes from.
"""


def model_card(name: str, record: Mapping[str, Any]) -> str:
    """The text of `README.md`: what the model is, its figures where there are any, how to use it."""
    metrics = record.get("evaluation") or {}
    rows = [f"| {metric} | {value:.4g} |" for metric, value in metrics.items() if isinstance(value, int | float)]
    figures = "\n".join(["## Evaluation", "", "| metric | value |", "|---|---|", *rows, "", ""]) if rows else ""
    base = f"base_model: {record['base_model']}\n" if record.get("base_model_is_hub_id") else ""
    pad = record["pooling"]["pad_token_id"]
    return _TEMPLATE.format(name=name, version=record["rm_version"], figures=figures, base=base, pad=pad)
