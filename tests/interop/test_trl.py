"""The training trajectory against TRL's `RewardTrainer`, live: same weights, same batches, every step."""

import json
import random

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
trl = pytest.importorskip("trl", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

import datasets

import rm
from rm.__main__ import main
from rm.saving.examples import make_pair

pytestmark = [pytest.mark.interop, pytest.mark.optax, pytest.mark.filterwarnings("default")]

STEPS, BATCH = 30, 8
OPTIONS = {"learning_rate": 1e-3, "max_grad_norm": 1.0, "center_rewards_coefficient": 0.01, "max_length": 1024}


class Trainer(trl.RewardTrainer):
    """TRL's trainer on the batches in the order of the file."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def make_rows(kind: str, *, margin: bool) -> list[dict]:
    rng = random.Random(0)
    rows = [make_pair(rng) for _ in range(STEPS * BATCH)]
    if kind == "text":
        rows = [
            {side: row["prompt"][0]["content"] + " " + row[side][0]["content"] for side in ("chosen", "rejected")}
            for row in rows
        ]
    return [row | {"margin": round(rng.uniform(0, 1), 2)} for row in rows] if margin else rows


def train_with_trl(directory, rows, output) -> tuple[list[dict], torch.nn.Module]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    return train_trl(model, directory, rows, output)


def train_trl(model, directory, rows, output) -> tuple[list[dict], torch.nn.Module]:
    """TRL's log and the trained model, from a model that may have adapters."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    config = trl.RewardConfig(
        output_dir=str(output),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        lr_scheduler_type="linear",
        logging_steps=1,
        logging_nan_inf_filter=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        disable_dropout=True,
        **OPTIONS,
    )
    trainer = Trainer(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], model.eval()


@pytest.mark.parametrize(("kind", "margin"), [pytest.param("text", False, marks=pytest.mark.long), ("chat", True)])
def test_every_step_equals_trl(tmp_path, llama_directory, kind, margin):
    start = rm.load_reward_model(llama_directory, key=jax.random.key(3), head_std=0.1)
    rm.save_reward_model(tmp_path / "start", start, rm.load_tokenizer(llama_directory))
    rows = make_rows(kind, margin=margin)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs, their_model = train_with_trl(tmp_path / "start", rows, tmp_path / "trl")

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    paths = [
        "--model",
        str(tmp_path / "start"),
        "--dataset",
        str(tmp_path / "pairs.jsonl"),
        "--output",
        str(tmp_path / "run"),
    ]
    counts = ["--batch-size", str(BATCH), "--max-steps", str(STEPS), "--log-every", "1", "--no-shuffle"]
    assert main(["train", *paths, *counts, *flags]) == 0
    ours = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]

    assert len(ours) == len(theirs) == STEPS
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.01  # a trajectory that goes nowhere would prove nothing
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True), 1):
        for name in ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "epoch"):
            assert our[name] == pytest.approx(float(their[name]), abs=1e-3), (step, name)
        assert our["grad_norm"] == pytest.approx(float(their["grad_norm"]), rel=2e-3), step
        assert our["num_tokens"] == their["num_tokens"], step

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "start")
    texts = [
        f"Tell me about {what}. I would say the {thing}." for what in ("a fruit", "a tool") for thing in ("plum", "saw")
    ]
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        expected = their_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
    trained = rm.load_reward_model(tmp_path / "run/model")
    np.testing.assert_allclose(rm.score(trained, rm.load_tokenizer(tmp_path / "run/model"), texts), expected, atol=2e-3)
