"""Adapters against `peft`, live: its directories load here, ours load there, and training goes the same way in TRL."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")
peft = pytest.importorskip("peft", reason="needs the extra `interop`: peft")

import rm
from rm.__main__ import main
from rm.model.tensor_names import leaf_name

from .test_trl import BATCH, OPTIONS, STEPS, make_rows, train_trl

pytestmark = [pytest.mark.interop, pytest.mark.optax, pytest.mark.filterwarnings("default")]

TEXTS = ["The old house of rome.", "The big tree of oz. The red house of oz.", "The red tree"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(llama_directory, tmp_path_factory):
    """A reward model and its directory."""
    path = tmp_path_factory.mktemp("base") / "model"
    model = rm.load_reward_model(llama_directory, key=jax.random.key(3), head_std=0.5)
    rm.save_reward_model(path, model, rm.load_tokenizer(llama_directory))
    return path


def classifier(directory, **options):
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=1, dtype=options.pop("dtype", torch.float32), **options
    )


def their_scores(model, directory) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    model.eval().config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        return model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].float().numpy()


def our_scores(path) -> list[float]:
    model, tokenizer = rm.match_tokenizer(rm.load_reward_model(path), rm.load_tokenizer(path))
    return rm.score(model, tokenizer, TEXTS)


def randomise(model) -> None:
    """New values for all adapters and the head; `B` is zero at first."""
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)


KINDS = {
    "queries and values": {"target_modules": ["v_proj", "q_proj"]},
    "all by name": {"target_modules": LINEAR, "r": 3, "lora_alpha": 7},
    "all-linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*\.(q|up)_proj"},
    "rsLoRA": {"target_modules": LINEAR, "use_rslora": True, "r": 4},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, "model.layers.1.self_attn.v_proj": 5},
        "alpha_pattern": {"q_proj": 3, "^model.layers.0.mlp.up_proj": 11},
    },
    "some layers": {"target_modules": ["o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "a whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_of_peft_gives_the_scores_that_peft_gives(base, tmp_path, kind):
    model = peft.get_peft_model(classifier(base), peft.LoraConfig(task_type="SEQ_CLS", **KINDS[kind]))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    expected = their_scores(model, base)
    np.testing.assert_allclose(our_scores(tmp_path / "adapter"), expected, atol=1e-4)
    assert np.abs(expected - their_scores(classifier(base), base)).max() > 0.01


def test_a_head_in_bfloat16_and_added_tokens_are_read(base, tmp_path):
    """With a base in bfloat16 `peft` stores the head in it too; resized embeddings stand in the file whole."""
    rm.save_reward_model(tmp_path / "base", rm.load_reward_model(base), rm.load_tokenizer(base), dtype=jnp.bfloat16)
    model = classifier(tmp_path / "base", dtype=torch.bfloat16)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=LINEAR))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    loaded = rm.load_reward_model(tmp_path / "adapter")
    assert loaded.config.vocab_size == loaded.embed_tokens.shape[0] == model.config.vocab_size
    np.testing.assert_allclose(our_scores(tmp_path / "adapter"), their_scores(model.float(), base), atol=1e-3)


def adapted(model, seed=0):
    """Adapters with a `B` that is not zero."""
    model = rm.add_lora(model, 4, 6.0, ("q", "v", "o", "up", "down"), key=jax.random.key(seed), rslora=True)

    def draw(path, leaf):
        values = np.random.default_rng(leaf.size).normal(size=leaf.shape) * 0.05
        return jnp.asarray(values, jnp.float32) if leaf_name(path).endswith("lora.b") else leaf

    return jax.tree_util.tree_map_with_path(draw, model)


@pytest.mark.parametrize("frozen", [0, 1])
def test_peft_loads_our_adapters_with_equal_scores(base, tmp_path, frozen):
    tokenizer, model = rm.load_tokenizer(base), rm.load_reward_model(base)
    model = adapted(rm.freeze_layers(model, frozen) if frozen else model)
    rm.save_adapter(tmp_path / "adapter", model, tokenizer, base=base)
    rm.save_reward_model(tmp_path / "merged", model, tokenizer)
    found = their_scores(peft.PeftModel.from_pretrained(classifier(base), tmp_path / "adapter"), base)
    np.testing.assert_allclose(found, our_scores(tmp_path / "merged"), atol=1e-4)
    np.testing.assert_allclose(found, our_scores(tmp_path / "adapter"), atol=1e-4)
    np.testing.assert_allclose(found, their_scores(classifier(tmp_path / "merged"), tmp_path / "merged"), atol=1e-4)


def test_every_step_equals_peft_in_trl(base, tmp_path):
    rows = make_rows("chat", margin=True)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, start = rm.load_tokenizer(base), rm.load_reward_model(base)
    rm.save_adapter(tmp_path / "start", rm.add_lora(start, 4, 16, key=jax.random.key(0)), tokenizer, base=base)
    model = peft.PeftModel.from_pretrained(classifier(base), tmp_path / "start", is_trainable=True)
    theirs, their_model = train_trl(model, base, rows, tmp_path / "trl")

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    flags += ["--lora-rank=4", "--lora-alpha=16", f"--max-steps={STEPS}", "--log-every=1", "--no-shuffle"]
    paths = [f"--model={base}", f"--dataset={tmp_path / 'pairs.jsonl'}", f"--output={tmp_path / 'run'}"]
    assert main(["train", *paths, f"--batch-size={BATCH}", *flags]) == 0
    ours = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]

    assert len(ours) == len(theirs) == STEPS
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.01
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True), 1):
        for name in ("loss", "margin", "mean_reward"):
            assert our[name] == pytest.approx(float(their[name]), abs=1e-3), (step, name)
        assert our["grad_norm"] == pytest.approx(float(their["grad_norm"]), rel=2e-3), step
    expected = their_scores(their_model, base)
    np.testing.assert_allclose(our_scores(tmp_path / "run/adapter"), expected, atol=2e-3)
    np.testing.assert_allclose(our_scores(tmp_path / "run/model"), expected, atol=2e-3)
