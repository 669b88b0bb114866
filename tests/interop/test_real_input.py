"""Real weights, real preferences, the real command line, and `transformers` on what comes out."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

from ..conftest import shared

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


def command(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rm", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_train_score_and_transformers_on_hh_rlhf(tmp_path):
    model, data = shared("models/stories260K"), shared("data/hh-rlhf/harmless-base.raw.jsonl.gz")
    run, scores = tmp_path / "run", tmp_path / "scores.jsonl"
    command("train", "--model", model, "--dataset", data, "--output", run, "--max-steps", 20, "--log-every", 1)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, 21))
    assert all(np.isfinite(entry["loss"]) for entry in entries)
    table = json.loads((run / "run.json").read_text())["data"]["train"]
    assert table["read"] == 2312
    assert table["kept"] + sum(table["dropped"].values()) == 2312

    with gzip.open(data, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"] for line, _ in zip(file, range(16), strict=False)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command("score", "--model", run / "model", "--input", tmp_path / "texts.jsonl", "--output", scores)
    rewards = [json.loads(line)["reward"] for line in scores.read_text().splitlines()]

    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
    np.testing.assert_allclose(rewards, expected, atol=1e-5)

    assert (run / "model/tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    before, after = (json.loads((place / "tokenizer_config.json").read_text()) for place in (model, run / "model"))
    assert after == before | {"tokenizer_class": "PreTrainedTokenizerFast"}
