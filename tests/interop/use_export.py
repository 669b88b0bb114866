"""What another's program does with an export: the model card's own lines, and a pipeline.

It runs in any version of transformers and needs no `rm`: a list of jobs in JSON on stdin, their results on stdout.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any


def use(job: dict[str, Any]) -> dict[str, Any]:
    """What the card's lines print, the rewards of `texts` and of `chats`, and what a pipeline says of the texts."""
    import torch
    import transformers

    directory = Path(job["directory"])
    card = (directory / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)[0]
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(lines.replace("PATH_OR_HUB_ID", str(directory)), names)
    tokenizer, reward = names["tokenizer"], names["reward"]
    chats = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in job["chats"]]
    options = {"dtype": torch.float32, "device": "cpu"}
    classify = transformers.pipeline("text-classification", model=str(directory), tokenizer=str(directory), **options)

    def rewards() -> dict[str, list[float]]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("\n".join(line for line in lines.splitlines() if line.startswith("print(")), names)
        return {
            "printed": [float(line) for line in printed.getvalue().split()],
            "texts": [reward(text) for text in job["texts"]],
            "chats": [reward(chat, add_special_tokens=False) for chat in chats],
        }

    found = rewards()
    names["model"].double()
    return {
        "version": transformers.__version__,
        "ids": tokenizer(job["texts"])["input_ids"],
        "first": [float(line) for line in printed.getvalue().split()],
        "rendered": chats,
        **found,
        "exact": rewards(),
        "pipeline": [each["score"] for each in classify(job["texts"])],
    }


if __name__ == "__main__":
    print(json.dumps([use(job) for job in json.load(sys.stdin)]))
