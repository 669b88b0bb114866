"""Heads of reward models: what they compute, the names they are read under, what exports and runs keep of them."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rm
from rm.commands.options import HeadOptions
from rm.commands.read import load
from rm.evaluation.scoring import score_sequences
from rm.model.heads import apply_head, weigh_labels
from rm.model.layers import Linear
from rm.model.published import HEADS
from rm.saving.calibration import require_calibration

from .tiny import CONFIG, NAMED, TEMPLATE, make_tokenizer

IDS = [[1, 3, 4], [1, 5, 3, 6, 2], [1, 7, 2]]
WIDTH = CONFIG.hidden_size


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def head_of(start: str, *, labels: int = 1, bias: bool = True, hidden: int = 0) -> dict[str, np.ndarray]:
    """The tensors of a head: linear, or with a hidden layer."""
    layers = {f"{start}.0": (hidden, WIDTH), f"{start}.2": (labels, hidden)} if hidden else {start: (labels, WIDTH)}
    tensors = {f"{name}.weight": normal(*shape, seed=i) for i, (name, shape) in enumerate(layers.items())}
    biases = {f"{name}.bias": normal(shape[0], seed=9 + i) for i, (name, shape) in enumerate(layers.items())}
    return tensors | (biases if bias else {})


def reward_of(features: np.ndarray, start: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """`[n, labels]` in float64."""
    x = features.astype(np.float64)
    hidden = f"{start}.0.weight" in tensors
    for name in (f"{start}.0", f"{start}.2") if hidden else (start,):
        x = x @ tensors[f"{name}.weight"].astype(np.float64).T + tensors.get(f"{name}.bias", np.zeros(1))
        x = np.maximum(x, 0) if name.endswith(".0") else x
    return x


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), NAMED | {"chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    """A reward model whose pad token no sequence here ends in."""
    path = tmp_path_factory.mktemp("base") / "model"
    config = dataclasses.replace(CONFIG, num_hidden_layers=2, pad_token_id=0, initializer_range=0.3)
    rm.save_reward_model(path, rm.init_reward_model(config, key=jax.random.key(0)), tokenizer)
    return path


@pytest.fixture(scope="module")
def features(base) -> np.ndarray:
    """The hidden states at the rewards of `IDS`, by a head that is one of the axes after the other."""
    model = rm.load_reward_model(base)
    axes = [dataclasses.replace(model, score=jnp.eye(WIDTH, dtype=jnp.float32)[i : i + 1]) for i in range(WIDTH)]
    return np.stack([score_sequences(each, IDS) for each in axes], axis=1)


@pytest.fixture
def published(base, tmp_path) -> Callable[..., Path]:
    """Writes the model as others would: other tensors for the head, other names, other keys of config.json."""

    def write(tensors: Mapping[str, np.ndarray], rename: Callable[[str], str] = str, **changes: object) -> Path:
        path = tmp_path / "published"
        path.mkdir()
        stored = {rename(name): value for name, value in load_file(base / "model.safetensors").items()}
        stored.pop(rename("score.weight"))
        save_file({**stored, **tensors}, path / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((base / "config.json").read_bytes()) | {"architectures": ["RewardModel"]} | changes
        for name in ("num_labels", "id2label", "label2id"):
            config.pop(name) if name not in changes else None
        (path / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).write_bytes((base / name).read_bytes())
        return path

    return write


# What heads compute.


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden", [0, 5])
def test_a_head_is_the_formula_in_float64(labels, bias, hidden):
    tensors, x = head_of("h", labels=labels, bias=bias, hidden=hidden), normal(2, 4, WIDTH, seed=7)
    last, first = ("h.2", Linear(tensors["h.0.weight"], tensors.get("h.0.bias"))) if hidden else ("h", None)
    arrays = jax.tree.map(jnp.asarray, (tensors[f"{last}.weight"], tensors.get(f"{last}.bias"), first))
    found = apply_head(jnp.asarray(x), *arrays)
    assert found.shape == (2, 4, labels)
    np.testing.assert_allclose(found, reward_of(x, "h", tensors), atol=1e-5)


def test_a_head_computes_in_float32_whatever_the_features_are():
    x, head = jnp.asarray(normal(3, WIDTH), jnp.bfloat16), jnp.asarray(normal(1, WIDTH, seed=1))
    found = apply_head(x, head)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.asarray(x, np.float64) @ np.asarray(head, np.float64).T, atol=1e-5)


def test_weighed_labels_are_one_reward(published, features):
    weights, tensors = [0.65, -0.8, 0.45], head_of("score", labels=3, hidden=5)
    path = published(tensors, num_labels=3)
    model = rm.load_reward_model(path, label_weights=weights)
    assert (model.score.shape, model.score_bias.shape, model.score.dtype) == ((1, 5), (1,), jnp.float32)
    expected = reward_of(features, "score", tensors) @ weights
    np.testing.assert_allclose(score_sequences(model, IDS), expected, atol=1e-5)
    with_flags, _ = load(str(path), head=HeadOptions(label_weights=tuple(weights)))
    np.testing.assert_array_equal(with_flags.score, model.score)
    for wrong in ([1.0], [1.0, 2.0, math.nan]):
        with pytest.raises(rm.ConfigError, match="expected 3 finite numbers, one for each label"):
            weigh_labels(rm.load_reward_model(path), wrong)


def test_several_labels_are_ratings_and_no_reward(published, features):
    tensors = head_of("score", labels=3, bias=False)
    model = rm.load_reward_model(published(tensors, architectures=["LlamaForSequenceClassification"], num_labels=3))
    ids = IDS[1]
    batch = rm.PreferenceBatch(
        tokens=jnp.array([ids]),
        segments=jnp.ones((1, 5), jnp.int32),
        parts=jnp.array([[0, 0, 0, 0, 1]]),
        positions=jnp.arange(5)[None],
        ends=jnp.array([[[4]]]),
        index=jnp.array([[0]]),
        margin=jnp.zeros((1, 1)),
        regions=(4, 1),
    )
    found = rm.ratings(model, batch)
    assert found.shape == (1, 1, 1, 3)
    np.testing.assert_allclose(found[0, 0, 0], reward_of(features[1], "score", tensors), atol=1e-5)
    with pytest.raises(rm.ConfigError, match=r"3 labels.*label_weights.*rm\.ratings"):
        rm.rewards(model, batch)


def test_the_loss_of_ratings_is_the_mean_over_those_that_are_given():
    predicted, ratings = normal(4, 3, seed=1), normal(4, 3, seed=2)
    ratings[0, 1] = ratings[2] = np.nan
    rows = [
        [(p - y) ** 2 for p, y in zip(*row, strict=True) if not math.isnan(y)]
        for row in zip(predicted, ratings, strict=True)
    ]
    expected = [sum(row) / len(row) if row else 0.0 for row in rows]
    np.testing.assert_allclose(rm.ratings_loss(predicted, ratings), expected, rtol=1e-6)
    gradient = jax.grad(lambda p: rm.ratings_loss(p, ratings).sum())(jnp.asarray(predicted))
    given = ~np.isnan(ratings)
    slope = np.where(given, 2 * (predicted - np.nan_to_num(ratings)) / np.maximum(given.sum(1, keepdims=True), 1), 0)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


# The names under which heads are read.


@pytest.mark.parametrize("hidden", [0, 5], ids=["linear", "hidden layer"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("start", HEADS)
def test_every_head_is_read_under_every_name(published, features, start, bias, hidden):
    tensors = head_of(start, bias=bias, hidden=hidden)
    model = rm.load_reward_model(published(tensors), key=jax.random.key(7))  # never drawn where there is one
    np.testing.assert_allclose(score_sequences(model, IDS), reward_of(features, start, tensors)[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("prefix", "lm_head"), [("", "lm_head"), ("transformer.", "lm_head"), ("model.model.", "model.lm_head")]
)
def test_a_backbone_is_read_under_the_prefixes_that_others_give_it(published, features, prefix, lm_head):
    tensors = head_of("v_head", bias=False) | {f"{lm_head}.weight": normal(10, WIDTH)}
    path = published(tensors, lambda name: name.replace("model.", prefix))
    model = rm.load_reward_model(path)
    np.testing.assert_allclose(score_sequences(model, IDS), reward_of(features, "v_head", tensors)[:, 0], atol=1e-5)


def test_an_error_names_the_tensor_as_the_file_does(published):
    tensors = {"v_head.weight": normal(1, WIDTH), "transformer.norm.weight": normal(9)}
    path = published(tensors, lambda name: name.replace("model.", "transformer."))
    with pytest.raises(rm.WeightsError, match=r"tensor 'transformer\.norm\.weight' has shape \[9\], expected \[8\]"):
        rm.load_reward_model(path)


def test_a_value_head_beside_the_model_is_its_head(published, features):
    path, tensors = published({"lm_head.weight": normal(10, WIDTH)}), head_of("v_head.summary")
    save_file(tensors, path / "value_head.safetensors")
    expected = reward_of(features, "v_head.summary", tensors)[:, 0]
    np.testing.assert_allclose(score_sequences(rm.load_reward_model(path), IDS), expected, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_row_of_lm_head_is_the_head_where_it_is_named(published, features, tied):
    lm_head = normal(10, WIDTH)
    path = published({} if tied else {"lm_head.weight": lm_head}, tie_word_embeddings=tied)
    lm_head = load_file(path / "model.safetensors")["model.embed_tokens.weight"] if tied else lm_head
    with_flags, _ = load(str(path), head=HeadOptions(head="lm_head:9"))
    np.testing.assert_array_equal(with_flags.score, lm_head[9:])
    for row in (0, 9):
        model = rm.load_reward_model(path, head=f"lm_head:{row}")
        np.testing.assert_array_equal(model.score, lm_head[row : row + 1])
        np.testing.assert_allclose(score_sequences(model, IDS), features @ lm_head[row], atol=1e-5)
    with pytest.raises(rm.WeightsError, match=r"lm_head:10: expected .* with more than 10 rows, found \[10, 8\]"):
        rm.load_reward_model(path, head="lm_head:10")
    with pytest.raises(rm.ConfigError, match="expected lm_head:ROW"):
        rm.load_reward_model(path, head="lm_head[0]")


def test_where_a_head_is_drawn_beside_lm_head_a_line_says_so(published, caplog):
    path = published({"lm_head.weight": normal(10, WIDTH)}, architectures=["LlamaForCausalLM"])
    model = rm.load_reward_model(path, key=jax.random.key(7), head_std=0.5, labels=2)
    np.testing.assert_array_equal(model.score, 0.5 * jax.random.normal(jax.random.key(7), (2, WIDTH)))
    (line,) = caplog.messages
    assert "a random one is drawn" in line
    assert "--head lm_head:0" in line


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"gating.layers.0.weight": (4, 8), "regression_layer.weight": (9, 8)}, {}, "'gating.layers.0.weight'.*ArmoRM"),
        ({"score.weight": (2, 8), "weights.fc.0.weight": (8, 8)}, {}, r"'weights\.fc\.0\.weight'.*URM"),
        ({"score.weight": (1, 8), "v_head.weight": (1, 8)}, {}, "two heads, 'score.weight' and 'v_head.weight'"),
        ({"reward_head.weight": (1, 8)}, {}, "'reward_head.weight'.*heads that are read are score, value_head"),
        ({"v_head.summary.2.weight": (1, 8)}, {}, "'v_head.summary.2.weight'.*heads that are read"),
        ({f"v_head.summary.{i}.weight": (4, 4) for i in (0, 2, 4)}, {}, "'v_head.summary.4.weight'.*heads that are"),
        ({"score.0.weight": (4, 8), "score.2.weight": (1, 5)}, {}, r"'score\.2\.weight' .*\[1, 5\], expected \[1, 4\]"),
        ({"score.weight": (8,)}, {}, r"'score\.weight' has shape \[8\], expected \[1, 8\]"),
        ({"score.weight": (1, 8), "score.bias": (1, 1)}, {}, r"'score\.bias' has shape \[1, 1\], expected \[1\]"),
        ({"score.weight": (1, 8)}, {"num_labels": 5}, r"\[1, 8\], expected \[5, 8\]"),
        ({"score.weight": (1, 8)}, {"num_labels": "1"}, "num_labels must be a whole number.*'1'"),
    ],
)  # fmt: skip
def test_a_head_that_is_not_computed_is_refused_in_a_line_with_a_tensor_of_the_file(
    published, tensors, config, message
):
    architecture = {"architectures": ["LlamaForSequenceClassification" if config else "LlamaForRewardModelWithGating"]}
    path = published({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, **architecture, **config)
    with pytest.raises(rm.RmError, match=f"^[^\n]*{message}[^\n]*$"):
        rm.load_reward_model(path)


def test_a_head_in_torchs_format_is_not_drawn_anew(published):
    path = published({})
    (path / "value_head.bin").write_bytes(b"x")
    with pytest.raises(rm.WeightsError, match=r"value_head\.bin: only safetensors"):
        rm.load_reward_model(path, key=jax.random.key(0))


def test_heads_are_on_every_device_of_a_mesh(published, features):
    tensors, weights = head_of("v_head.summary", labels=2, hidden=5), [1.0, -0.5]
    mesh = rm.make_mesh(fsdp=2, devices=jax.devices()[:2])
    model = rm.load_reward_model(published(tensors), label_weights=weights, mesh=mesh)
    assert all(leaf.sharding.is_fully_replicated for leaf in (model.score, model.score_bias, model.score_hidden.weight))
    expected = reward_of(features, "v_head.summary", tensors) @ weights
    np.testing.assert_allclose(score_sequences(model, IDS, batch_size=2), expected, atol=1e-5)


# The token that is appended, and read.

END = 8  # "user"


def test_the_token_where_a_model_is_read_is_appended_to_what_is_scored(published, tokenizer):
    model, tokenizer = rm.match_tokenizer(
        rm.load_reward_model(published(head_of("score"), reward_token_id=END)), tokenizer
    )
    expected = score_sequences(model, [[1, 3, 4, END], [1, 3, END]])
    np.testing.assert_array_equal(rm.score(model, tokenizer, ["a b", "a user"]), expected)
    np.testing.assert_array_equal(rm.score(model, tokenizer, ["a b c d", "a b"], max_length=3), expected[[1, 1]])
    assert abs(expected[0] - score_sequences(model, [[1, 3, 4]])[0]) > 1e-3


@pytest.mark.parametrize("truncation", ["drop", "truncate-right", "truncate-left-prompt"])
def test_the_token_where_a_model_is_read_ends_every_sequence_of_a_comparison(published, tokenizer, truncation):
    model, tokenizer = rm.match_tokenizer(
        rm.load_reward_model(published(head_of("score"), reward_token_id=END)), tokenizer
    )
    rows = [
        {"prompt": "a b ", "chosen": "c", "rejected": "d"},
        {"chosen_ids": [1, 3, END], "rejected_ids": [1, 4]},
        {"prompt": "a b c ", "chosen": "a", "rejected": "b d"},
    ]
    found, table = rm.tokenize_comparisons(rows, tokenizer, model.config, max_length=6, truncation=truncation)
    sides = [
        [found.tokens[[*range(a, b), *range(*found.offsets[i, k + 1 : k + 3])]].tolist() for k in range(2)]
        for i, (a, b) in enumerate(found.offsets[:, :2])
    ]
    last = {
        "drop": [],
        "truncate-right": [[[1, 3, 4, 5, 3, END], [1, 3, 4, 5, 4, END]]],
        "truncate-left-prompt": [[[1, 5, 3, 2, END], [1, 5, 4, 6, 2, END]]],
    }[truncation]
    assert sides == [[[1, 3, 4, 5, 2, END], [1, 3, 4, 6, 2, END]], [[1, 3, END], [1, 4, END]], *last]
    assert found.ends.tolist() == [[len(side) - 1 for side in both] for both in sides]
    assert table["kept"] == len(sides)


def test_athenes_token_is_known_by_its_class(published, tmp_path):
    """Its configuration does not say it."""
    path = published(head_of("v_head", bias=False), architectures=["AtheneForSequenceClassification"])
    assert rm.model.load_config(path).reward_token_id == 128003
    with pytest.raises(rm.TokenizerError, match="reward_token_id 128003, an id the tokenizer lacks"):
        rm.match_tokenizer(rm.load_reward_model(path), make_tokenizer(tmp_path / "t"))


def test_a_sequence_is_read_at_its_token_even_where_that_pads(published, tokenizer):
    path = published(
        head_of("score"), architectures=["LlamaForSequenceClassification"], pad_token_id=END, reward_token_id=END
    )
    model, _ = rm.match_tokenizer(rm.load_reward_model(path), tokenizer)
    assert model.config.pad_token_id not in (END, None)


# The scale that others state.


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"normalize_reward": True, "mean": 0.5, "std": 2.0}, (0.5, 2.0)),
        ({"do_normalize": True, "mean": [0.5], "var": [4.0]}, (0.5, 2.0)),
        ({"normalize_reward": False, "mean": 0.5, "std": 2.0}, (0.5, 2.0)),
        ({"normalize_reward": True}, None),
        ({"normalize_reward": True, "mean": "a", "std": 0}, None),
    ],
)
def test_the_scale_in_a_configuration_is_the_calibration_and_rewards_are_raw(published, caplog, config, expected):
    path = published(head_of("score"), **config)
    rm.load_reward_model(path)
    if expected is None:
        assert rm.load_calibration(path) is None
        with pytest.raises(rm.ConfigError, match="cannot be normalized"):
            require_calibration(path)
    else:
        assert rm.load_calibration(path) == rm.Calibration(mean=expected[0], std=expected[1])
    told = [line for line in caplog.messages if "rewards are given raw" in line and "(reward - 0.5) / 2" in line]
    assert len(told) == (expected is not None and config.get("normalize_reward", True))


# What exports and runs keep.


@pytest.mark.parametrize(
    ("options", "architecture", "names"),
    [
        ({"labels": 3, "bias": False}, "LlamaForSequenceClassification", {"score.weight"}),
        ({"bias": True}, "LlamaForTokenClassification", {"score.weight", "score.bias"}),
        ({"hidden": 5, "bias": False}, "INFORMForSequenceClassification", {"score.0.weight", "score.2.weight"}),
        (
            {"hidden": 5, "labels": 2},
            "INFORMForSequenceClassification",
            {f"score.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")},
        ),
    ],
    ids=["labels", "bias", "hidden layer", "all"],
)
def test_an_export_holds_the_whole_head_and_says_who_reads_it(
    published, tokenizer, tmp_path, caplog, options, architecture, names
):
    model = rm.load_reward_model(published(head_of("v_head.summary", **options), reward_token_id=END))
    model, tokenizer = rm.match_tokenizer(model, tokenizer)
    rm.save_reward_model(tmp_path / "out", model, tokenizer, dtype=jnp.bfloat16)
    stored, config = (
        load_file(tmp_path / "out/model.safetensors"),
        json.loads((tmp_path / "out/config.json").read_bytes()),
    )
    assert {name for name in stored if name.startswith("score")} == names
    assert {stored[name].dtype for name in names} == {np.dtype("float32")}
    assert (config["architectures"], config["num_labels"]) == ([architecture], options.get("labels", 1))
    assert len(config["id2label"]) == len(config["label2id"]) == options.get("labels", 1)
    again = rm.load_reward_model(tmp_path / "out", dtype=jnp.bfloat16)
    assert again.config == model.config
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dataclasses.replace(model, score_hidden=None))
    head = {name: getattr(model, name) for name in ("score", "score_bias", "score_hidden")}
    expected = dataclasses.replace(expected, **head)
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    card = (tmp_path / "out/README.md").read_text()
    assert "`user` follows every text" in card
    assert (f"import AutoModel{architecture.removeprefix('Llama')}," in card) == ("hidden" not in options)
    assert any("hidden layer" in line for line in caplog.messages) == ("hidden" in options)


def test_an_adapter_directory_holds_no_head_with_a_bias(published, tokenizer, tmp_path):
    """`peft` would load it without the bias."""
    model = rm.add_lora(rm.load_reward_model(published(head_of("score"))), 2, key=jax.random.key(0))
    with pytest.raises(rm.ConfigError, match=r"a bias or a hidden layer.*save_reward_model"):
        rm.save_adapter(tmp_path / "adapter", model, tokenizer, base=tmp_path)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.long
@pytest.mark.optax
@pytest.mark.parametrize("part", [[], ["--lora-rank", "2"], ["--train", "head"]], ids=" ".join)
def test_a_checkpoint_of_a_run_has_the_head_of_its_model(published, pairs_file, tmp_path, part):
    from rm.__main__ import main

    rows = [{"prompt": "a ", "chosen": word, "rejected": "d"} for word in "abc"]
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a ", "response": "b"}) + "\n")
    path, run = published(head_of("v_head.summary", hidden=5), reward_token_id=END), tmp_path / "run"
    argv = ["--model", str(path), "--dataset", str(pairs_file), "--learning-rate", "0.01", "--output", str(run)]
    assert main(["train", *argv, *part]) == 0
    assert not (run / "adapter").exists()
    found = []
    for model in (run / "model", run / "checkpoints/1"):
        output = tmp_path / f"{model.name}.jsonl"
        assert (
            main(["score", "--model", str(model), "--input", str(tmp_path / "rows.jsonl"), "--output", str(output)])
            == 0
        )
        found.append(json.loads(output.read_text())["reward"])
    assert found[0] == found[1]
    before = rm.load_reward_model(path)
    assert not np.array_equal(rm.load_reward_model(run / "model").score_hidden.weight, before.score_hidden.weight)
