"""Rewards, gradients, directories and token ids against `transformers`, live."""

import json
import shutil
from datetime import date

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

import rm
from rm.data.comparisons import flatten
from rm.evaluation.scoring import score_sequences
from rm.model.tensor_names import tensor_names
from rm.packing.fit_shapes import fit_row_shapes
from rm.packing.rows import pack

from ..conftest import shared
from .conftest import auto_tokenizer, fast_tokenizer

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

BASE = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def rope(kind: str, theta: float = 10000.0, **options) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


CONFIGS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "head_dim larger": {"head_dim": 16},
    "head_dim smaller": {"head_dim": 4},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "both biases, mqa": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1},
    "two layers": {"num_hidden_layers": 2},
    "llama 2": {"rms_norm_eps": 1e-5, "num_key_value_heads": 4},
    "llama 3": {**rope("default", 500000.0), "rms_norm_eps": 1e-5},
    "llama 3.1": rope("llama3", 500000.0, **LLAMA3),
    "llama 3.2": {**rope("llama3", 500000.0, **LLAMA3 | {"factor": 32.0}), "tie_word_embeddings": True, "head_dim": 16},
    "smollm": {**rope("default", 100000.0), "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48},
    "linear": rope("linear", factor=4.0),
    "dynamic, short": rope("dynamic", factor=2.0),
    "dynamic, stretched": {**rope("dynamic", factor=2.0), "max_position_embeddings": 8},
    "pad is eos": {"pad_token_id": 2},
    "no pad": {"pad_token_id": None},
}
GATE = ("both biases, mqa", "llama 3.2", "dynamic, stretched", "no pad")  # between them, every switch


def randomise(model) -> None:
    """Values that no default explains: norms away from 1, biases away from 0."""
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)


def make_classifier(changes: dict):
    config = transformers.LlamaConfig(**BASE | changes, num_labels=1)
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).eval()
    randomise(model)
    return model


def save_hf(model, directory) -> None:
    model.save_pretrained(directory)


def sequences(seed: int = 0, count: int = 8) -> list[list[int]]:
    """Ragged, some ending in the end-of-sequence token 2."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, BASE["vocab_size"], n).tolist() for n in rng.integers(3, 40, count)]
    return [[*s, 2] if i % 2 else s for i, s in enumerate(ids)]


def hf_rewards(model, ids: list[list[int]]):
    """One ragged right-padded batch, or one sequence at a time where `transformers` cannot pad or would rescale."""
    pad = model.config.pad_token_id
    if pad is None or model.config.rope_parameters["rope_type"] in ("dynamic", "longrope"):
        rewards = []
        for s in ids:
            rotary = model.model.rotary_emb
            model.model.rotary_emb = type(rotary)(model.config)  # the old one remembers the longest sequence it saw
            rewards.append(model(torch.tensor([s])).logits[0, 0])
        return torch.stack(rewards)
    width = max(map(len, ids))
    tokens = torch.tensor([s + [pad] * (width - len(s)) for s in ids])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in ids])
    return model(input_ids=tokens, attention_mask=mask).logits[:, 0]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name in GATE else pytest.mark.long)
        for name, changes in CONFIGS.items()
    ],
)
def test_rewards_and_gradients_equal_those_of_transformers(changes, tmp_path):
    assert_equal(make_classifier(changes), tmp_path / "model")


def assert_equal(theirs, directory) -> None:
    """The rewards, and the gradients of every tensor, of a model of `transformers` and of what we load of it."""
    save_hf(theirs, directory)
    ours = rm.load_reward_model(directory)
    ids = sequences()
    expected = hf_rewards(theirs, ids)
    np.testing.assert_allclose(score_sequences(ours, ids), expected.detach(), atol=1e-4)

    theirs.zero_grad()
    chosen, rejected = expected[:4], expected[4:]
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean()).backward()

    comparisons = flatten([[ids[i], ids[i + 4]] for i in range(4)], [0.0] * 4, ours.config)
    batches = pack(comparisons, range(4), fit_row_shapes(comparisons, 4))

    def loss(model):
        total = 0.0
        for batch in batches:
            r = rm.rewards(model, batch)
            total += rm.pairwise_loss(r[..., 0], r[..., 1]).sum(where=batch.mask)
        return total / 4

    gradients = dict(theirs.named_parameters())
    for path, ours_leaf in jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(ours))[0]:
        leaf = jax.tree_util.keystr(path, simple=True, separator=".")
        names = tensor_names(leaf, ours.config)
        layers = ours_leaf if leaf.startswith("blocks.") else [ours_leaf]
        for name, ours_gradient in zip(names, layers, strict=True):
            expected_gradient = gradients[name].grad.numpy()
            scale = np.abs(expected_gradient).max()
            np.testing.assert_allclose(ours_gradient, expected_gradient, atol=1e-4 * scale + 1e-9, err_msg=name)


def test_old_configuration_keys_mean_the_same(tmp_path):
    theirs = make_classifier(CONFIGS["llama 3.1"])
    save_hf(theirs, tmp_path)
    new = rm.load_reward_model(tmp_path).config
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert rm.load_reward_model(tmp_path).config == new


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_size", ["10GB", "40KB"])
def test_a_causal_lm_of_any_type_and_sharding_loads(tmp_path, dtype, max_shard_size):
    torch.manual_seed(0)
    lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE)).to(getattr(torch, dtype))
    lm.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "40KB")
    ours = rm.load_reward_model(tmp_path, key=jax.random.key(0))
    for path, leaf in jax.tree_util.tree_flatten_with_path(ours)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name == "score":
            continue
        layers = leaf if name.startswith("blocks.") else [leaf]
        for hf_name, values in zip(tensor_names(name, ours.config), layers, strict=True):
            np.testing.assert_array_equal(values, lm.state_dict()[hf_name].float().numpy(), err_msg=hf_name)


@pytest.mark.parametrize(("first", "then"), [("10GB", "40KB"), ("40KB", "10GB")], ids=["old file", "old index"])
def test_of_weights_saved_twice_those_are_read_that_transformers_reads(tmp_path, caplog, first, then):
    """It takes a single file wherever there is one, also an old one beside new shards."""
    for size, seed in ((first, 1), (then, 2)):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(**BASE, num_labels=1)
        transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / size, max_shard_size=size)
    shutil.copytree(tmp_path / then, tmp_path / first, dirs_exist_ok=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / first).eval()
    ids = sequences()
    with torch.no_grad():
        expected = hf_rewards(theirs, ids)
    np.testing.assert_allclose(score_sequences(rm.load_reward_model(tmp_path / first), ids), expected, atol=1e-5)
    both = "model.safetensors and model.safetensors.index.json are both there; model.safetensors is read"
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / first}: {both}")


@pytest.mark.parametrize("changes", [{}, CONFIGS["llama 3.2"], CONFIGS["both biases, mqa"]], ids=["gqa", "3.2", "bias"])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 40_000])
def test_transformers_loads_our_export_and_scores_the_same(tmp_path, llama_directory, changes, max_shard_bytes):
    tokenizer = rm.load_tokenizer(llama_directory)
    vocabulary = tokenizer.max_token_id + 1
    config = transformers.LlamaConfig(**BASE | changes | {"vocab_size": vocabulary})
    ours = rm.init_reward_model(rm.LlamaConfig.from_hf(config.to_dict()), key=jax.random.key(0), head_std=0.3)
    rm.save_reward_model(tmp_path / "model", ours, tokenizer, max_shard_bytes=max_shard_bytes)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert theirs.config.num_labels == 1
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = ["The red house of rome.", "The tree<|end|>", "x", "The big old tree of oz and all of its houses. " * 3]
    inputs = their_tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    assert [tokenizer.encode(text) for text in texts] == their_tokenizer(texts)["input_ids"]
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, 0]
    np.testing.assert_allclose(rm.score(ours, tokenizer, texts), expected, atol=1e-5)
    # and back: what `transformers` saves of it loads here
    theirs.save_pretrained(tmp_path / "again")
    again = rm.load_reward_model(tmp_path / "again")
    np.testing.assert_array_equal(rm.score(again, tokenizer, texts), rm.score(ours, tokenizer, texts))


TOKENIZERS = ["tokenizers/minueza-32m-ultrachat", "tokenizers/smollm2-135m-instruct", "models/stories260K"]


@pytest.mark.parametrize("load", [auto_tokenizer, fast_tokenizer])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_ids_and_chats_equal_those_of_transformers(name, load):
    directory = shared(name)
    ours, theirs = rm.load_tokenizer(directory), load(directory)
    rows = rm.load_comparisons(shared("data/hh-rlhf/pairs.jsonl.gz"), split="train[:200]")
    for row in rows:
        messages = [*row["prompt"], *row["chosen"]]
        text = "\n".join(message["content"] for message in messages) + " <s>\n<|im_end|> é漢🙂"
        assert ours.encode(text) == theirs(text)["input_ids"]
        rendered = ours.apply_chat_template(messages)
        assert rendered == theirs.apply_chat_template(messages, tokenize=False)
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert ours.encode(rendered, add_special_tokens=False) == ids


TEMPLATES = {
    "tools and tojson": "{% for t in tools %}{{ t | tojson }}{% endfor %}{{ tools | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation prompt": "{{ messages[0].content | trim }}{% if add_generation_prompt %}>>{% endif %}",
    "generation block": "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "strftime": "{{ strftime_now('%Y-%m-%d') }} {{ messages[0]['content'].split('l')[0] }}",
    "whitespace": "  {% if messages %}\n  {{ bos_token }}{{ messages | length }}\n  {% endif %}\n",
    "variables": "{{ enable_thinking }} {{ documents is none }} {{ missing is defined }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_render_as_in_transformers(llama_directory, template, tmp_path):
    directory = tmp_path / "tokenizer"
    shutil.copytree(llama_directory, directory)
    (directory / "chat_template.jinja").write_text(template)
    ours = rm.load_tokenizer(directory, today=date.today())
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    tools = [{"type": "function", "function": {"name": "f<é>", "parameters": {}}}]
    messages = [{"role": "user", "content": " hello & <b> "}, {"role": "assistant", "content": "yes"}]
    for options in ({}, {"add_generation_prompt": True}):
        expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False, enable_thinking=False, **options)
        assert ours.apply_chat_template(messages, tools=tools, enable_thinking=False, **options) == expected
