"""Reward models as Hugging Face directories: exact, whole or not at all, and readable by others."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import rm

from .tiny import CONFIG, NAMED, SPECIAL, TEMPLATE, WORDS, make_tokenizer, write_tokenizer

PAD = {"pad_token": "<unk>"}
INDEX = "model.safetensors.index.json"
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
PER_LAYER = ["input_layernorm.weight", "post_attention_layernorm.weight"]
PER_LAYER += [f"{name}.{kind}" for name in LINEAR for kind in ("weight", "bias")]


def names(layers: int) -> set[str]:
    """The tensors of a `LlamaForSequenceClassification` with every bias."""
    inner = {f"model.layers.{layer}.{name}" for layer in range(layers) for name in PER_LAYER}
    return inner | {"model.embed_tokens.weight", "model.norm.weight", "score.weight"}


def make_model(layers: int = 3, dtype=jnp.float32, **changes) -> rm.RewardModel:
    """A model in which no two numbers are equal, biases and norms included."""
    config = dataclasses.replace(CONFIG, **{"num_hidden_layers": layers, "pad_token_id": 0} | changes)
    model = rm.init_reward_model(config, key=jax.random.key(0), dtype=dtype)
    leaves, structure = jax.tree.flatten(model)
    rng = np.random.default_rng(0)
    return structure.unflatten([jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


@pytest.fixture
def tokenizer(tmp_path) -> rm.Tokenizer:
    directory = tmp_path / "tokenizer"
    return make_tokenizer(directory, NAMED | PAD | {"chat_template": TEMPLATE}, files={"special_tokens_map.json": PAD})


@pytest.fixture
def export(tmp_path, tokenizer) -> Path:
    rm.save_reward_model(tmp_path / "export", make_model(), tokenizer)
    return tmp_path / "export"


def assert_equal(one: rm.RewardModel, other: rm.RewardModel) -> None:
    assert one.config == other.config
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def dtypes(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dict)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 500], ids=["one file", "shards"])
def test_saving_and_loading_is_exact(tmp_path, tokenizer, layers, dtype, shard_bytes):
    model = make_model(layers, dtype)
    rm.save_reward_model(tmp_path / "export", model, tokenizer, max_shard_bytes=shard_bytes)
    assert_equal(rm.load_reward_model(tmp_path / "export", dtype=dtype), model)
    assert (tmp_path / "export" / INDEX).exists() == (shard_bytes == 500)


def test_one_file_holds_every_tensor_under_its_hugging_face_name_and_way_up(export):
    stored, model = load_file(export / "model.safetensors"), make_model()
    assert set(stored) == names(3)
    expected = {
        "score.weight": model.score,
        "model.embed_tokens.weight": model.embed_tokens,
        "model.layers.0.self_attn.k_proj.weight": model.blocks.k_proj.weight[0],
        "model.layers.1.mlp.gate_proj.bias": model.blocks.gate_proj.bias[1],
        "model.layers.2.mlp.down_proj.weight": model.last_block.down_proj.weight,
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value)
    shapes = [stored[name].shape for name in expected]
    assert shapes == [(1, 8), (10, 8), (4, 8), (12,), (8, 12)]  # [out, in]
    with safe_open(export / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}  # `transformers` refuses files without it


def test_the_index_names_every_tensor_once_and_shards_keep_to_their_size(tmp_path, tokenizer):
    rm.save_reward_model(tmp_path / "export", make_model(), tokenizer, max_shard_bytes=2000)
    index = json.loads((tmp_path / "export" / INDEX).read_bytes())
    files = sorted((tmp_path / "export").glob("*.safetensors"))
    count = len(files)
    assert count > 1
    assert [file.name for file in files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    found = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == found
    assert set(found) == names(3)
    sizes = [sum(value.nbytes for value in load_file(file).values()) for file in files]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert max(sizes) <= 2000


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_on_disk_rounds_everything_but_the_head(tmp_path, tokenizer, dtype):
    model = make_model()
    rm.save_reward_model(tmp_path / "export", model, tokenizer, dtype=dtype)
    kinds = dtypes(tmp_path / "export/model.safetensors")
    assert kinds.pop("score.weight") == "F32"
    assert set(kinds.values()) == {{"bfloat16": "BF16", "float16": "F16"}[dtype]}
    assert json.loads((tmp_path / "export/config.json").read_bytes())["dtype"] == dtype
    numpy_dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    rounded = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(numpy_dtype).astype(np.float32)), model)
    assert_equal(rm.load_reward_model(tmp_path / "export"), dataclasses.replace(rounded, score=model.score))


def test_loading_in_low_precision_keeps_the_head_in_float32(export):
    loaded, model = rm.load_reward_model(export, dtype=jnp.bfloat16), make_model()
    np.testing.assert_array_equal(loaded.score, model.score)
    assert loaded.score.dtype == jnp.float32
    assert loaded.norm.dtype == loaded.blocks.q_proj.weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded.embed_tokens, np.asarray(model.embed_tokens).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_tensors_are_read_whole_in_however_many_pieces(tmp_path, tokenizer, monkeypatch, stored, dtype):
    monkeypatch.setattr(rm.files.weights, "_PIECE", 7)
    model = make_model()
    rm.save_reward_model(tmp_path / "export", model, tokenizer, dtype=stored)
    expected = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(stored).astype(dtype)), model)
    expected = dataclasses.replace(expected, score=model.score)
    assert_equal(rm.load_reward_model(tmp_path / "export", dtype=dtype), expected)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (-np.inf, "float32"), (np.nan, "bfloat16"), (1e6, "float16")]
)
@pytest.mark.parametrize("place", [0, -1])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(export, monkeypatch, value, dtype, place):
    """One million is infinite as float16."""
    monkeypatch.setattr(rm.files.weights, "_PIECE", 7)
    stored, name = load_file(export / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    stored[name].flat[place] = value
    save_file(stored, export / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(rm.WeightsError, match=rf"{name}.*as {dtype}"):
        rm.load_reward_model(export, dtype=dtype)


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_file_that_changes_after_its_header_was_read_is_named(export, damage):
    """Else a torn download would leave arbitrary numbers in the model."""
    files, path = rm.files.weights.TensorFiles(export), export / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    leaf = jax.eval_shape(make_model).score  # the last tensor of the file
    with pytest.raises(rm.WeightsError, match=r"model\.safetensors: (truncated while|cannot be read)"):
        files.read(["score.weight"], leaf, [((0, 1), (0, leaf.shape[1]))], stacked=False)


def test_the_fingerprint_of_weights_changes_with_each_tensor_and_not_with_their_files(export, tmp_path, monkeypatch):
    """Of a tensor larger than the pieces that are read, each piece counts, the first and the last bytes among them."""
    monkeypatch.setattr(rm.files.weights, "_SAMPLE", 8)
    monkeypatch.setattr(rm.files.weights, "_SAMPLES", 3)

    def fingerprint_of(tensors: dict[str, dict[str, np.ndarray]]) -> str:
        directory = tmp_path / "again"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for file, part in tensors.items():
            save_file(part, directory / file, metadata={"format": "pt"})
        if len(tensors) > 1:
            index = {"weight_map": {name: file for file, part in tensors.items() for name in part}}
            (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return rm.files.weights.TensorFiles(directory).fingerprint()

    stored = load_file(export / "model.safetensors")
    whole = fingerprint_of({"model.safetensors": stored})
    names = list(stored)
    halves = [{name: stored[name] for name in part} for part in (names[:5], names[5:])]
    assert fingerprint_of({"a.safetensors": halves[0], "b.safetensors": halves[1]}) == whole
    found = {whole}
    for name in names:
        for place in (0, -1):
            changed = stored[name].copy()
            changed.flat[place] = np.nextafter(changed.flat[place], np.float32(9))
            found.add(fingerprint_of({"model.safetensors": {**stored, name: changed}}))
    assert len(found) == 1 + 2 * len(names) - sum(stored[name].size == 1 for name in names)


def test_a_loaded_model_may_be_donated(export):
    """On a CPU its arrays are the memory into which the files were read."""
    double = jax.jit(lambda model: jax.tree.map(lambda leaf: leaf + leaf, model), donate_argnums=0)
    four = double(double(rm.load_reward_model(export)))
    assert_equal(four, jax.tree.map(lambda leaf: 4 * leaf, make_model()))


def test_the_export_holds_what_others_need_and_nothing_else(tmp_path, export):
    """The tokenizer as it came but for its class, weights, configuration, card and record, all readable by everyone."""
    before = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    after = {path.name: path.read_bytes() for path in export.iterdir()}
    portable = json.loads(before["tokenizer_config.json"]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert json.loads(after["tokenizer_config.json"]) == portable
    same = before.keys() - {"tokenizer_config.json"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert set(after) - set(before) == {"config.json", "model.safetensors", "rm.json", "README.md"}
    assert {path.name: path.stat().st_mode & 0o444 for path in export.iterdir()} == dict.fromkeys(after, 0o444)
    assert export.stat().st_mode & 0o555 == 0o555
    config = json.loads(after["config.json"])
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["num_labels"], config["pad_token_id"], config["dtype"]) == (1, 0, "float32")
    assert config["problem_type"] == "regression", "else pipelines and servers put a sigmoid over rewards"


def test_the_record_states_version_pooling_rule_and_provenance(tmp_path, tokenizer):
    rm.save_reward_model(tmp_path / "export", make_model(), tokenizer, provenance={"data": "pairs", "seed": 3})
    record = json.loads((tmp_path / "export/rm.json").read_bytes())
    assert record.pop("chat_template_date", None) == (tokenizer.chat_template and "2024-07-26")
    reads = "the rightmost token that is not pad_token_id"
    pooling = {"reads": reads, "pad_token_id": 0}
    files, tensors = record.pop("sha256"), record.pop("tensors")
    assert record == {"rm_version": rm.__version__, "pooling": pooling, "data": "pairs", "seed": 3}
    content = {name: (tmp_path / "export" / name).read_bytes() for name in files}
    assert files == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert files.keys() == {"config.json", *tokenizer.files}
    assert tensors.keys() == load_file(tmp_path / "export/model.safetensors").keys()
    card = (tmp_path / "export/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# export" in card


@pytest.mark.parametrize("name", ["write_tensors", "write_json", "model_card"])
@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_nothing_behind(tmp_path, tokenizer, monkeypatch, name, error):
    original = getattr(rm.saving.export, name)

    def fail(*args, **options):
        if name != "model_card":
            original(*args, **options)  # so that files are there
        raise error

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(rm.saving.export, name, fail)
    with pytest.raises(rm.OutputError if isinstance(error, OSError) else type(error)):
        rm.save_reward_model(tmp_path / "export", make_model(), tokenizer)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_stands_at_the_path_until_all_of_it_is_written(tmp_path, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(
        rm.saving.export, "model_card", lambda *_: seen.append((tmp_path / "export").exists()) or "card"
    )
    rm.save_reward_model(tmp_path / "export", make_model(), tokenizer)
    assert seen == [False]
    assert (tmp_path / "export/README.md").read_text() == "card"


@pytest.mark.parametrize("kind", ["directory", "empty directory", "file", "link to nothing"])
def test_what_stands_at_the_path_already_is_refused_and_kept(tmp_path, tokenizer, kind):
    path = tmp_path / "export"
    if "directory" in kind:
        path.mkdir()
    if kind == "directory":
        (path / "precious").write_text("x")
    if kind == "file":
        path.write_text("x")
    if kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(rm.OutputError, match="export: "):
        rm.save_reward_model(path, make_model(), tokenizer)
    assert sorted(tmp_path.rglob("*")) == before


# Which token pads.

MORE = (*WORDS, "[PAD]", "<pad>")  # the ids are 10 and 11
ENDS_IN_PAD = "{% for m in messages %}{{ m.role }} {{ m.content }} <pad>{% endfor %}"


@pytest.mark.parametrize(
    ("words", "special", "config", "expected"),
    [
        pytest.param(MORE, SPECIAL, {"pad_token": "[PAD]"}, ("[PAD]", 10), id="its own"),
        pytest.param(MORE, SPECIAL, {"pad_token": "</s>"}, ("<pad>", 11), id="its own is EOS"),
        pytest.param(MORE, SPECIAL, {"pad_token": "<s>"}, ("<pad>", 11), id="its own is BOS"),
        pytest.param(MORE, SPECIAL, {}, ("<pad>", 11), id="none: a known one"),
        pytest.param(MORE[:-1], SPECIAL, {}, ("[PAD]", 10), id="none: another known one"),
        pytest.param(WORDS, SPECIAL, {}, ("<unk>", 0), id="unk"),
        pytest.param(WORDS, SPECIAL, {"pad_token": "</s>", "unk_token": None}, ("<|pad|>", 10), id="a new one"),
        pytest.param(WORDS, SPECIAL, {"unk_token": "</s>"}, ("<|pad|>", 10), id="unk is EOS"),
        pytest.param(
            MORE,
            (*SPECIAL, "<pad>"),
            {"pad_token": "<pad>", "chat_template": ENDS_IN_PAD},
            ("[PAD]", 10),
            id="chat end",
        ),
        pytest.param(
            MORE, (*SPECIAL, "<pad>"), {"chat_template": "{{ raise_exception('no') }}"}, ("<pad>", 11), id="no chat"
        ),
    ],
)
def test_a_model_without_a_pooling_rule_gets_a_pad_token_that_no_sequence_ends_in(
    tmp_path, words, special, config, expected
):
    """`transformers` reads a reward at the rightmost token that is not padding."""
    tokenizer = make_tokenizer(tmp_path / "in", NAMED | config, words=words, special=special)
    model = make_model(pad_token_id=None, vocab_size=len(words))
    texts = ["a b</s>", "<s>zebra"]
    ids = [tokenizer.encode(text) for text in texts]
    matched, tokenizer = rm.match_tokenizer(model, tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == expected
    assert matched.config.pad_token_id == expected[1]
    grown = expected[0] == "<|pad|>"
    assert matched.config.vocab_size == len(matched.embed_tokens) == len(words) + grown
    np.testing.assert_array_equal(matched.embed_tokens[: len(words)], model.embed_tokens)
    np.testing.assert_array_equal(matched.embed_tokens[len(words) :], np.zeros((int(grown), 8)))

    again, same = rm.match_tokenizer(matched, tokenizer)
    assert_equal(again, matched)
    assert same is tokenizer

    rm.save_reward_model(tmp_path / "out", matched, tokenizer)
    reloaded = rm.load_tokenizer(tmp_path / "out")
    assert (reloaded.pad_token, reloaded.pad_token_id) == expected
    assert [reloaded.encode(text) for text in texts] == ids
    assert_equal(rm.match_tokenizer(rm.load_reward_model(tmp_path / "out"), reloaded)[0], matched)
    stated = json.loads((tmp_path / "out/tokenizer.json").read_bytes())["added_tokens"]
    assert [token["id"] for token in stated if token["content"] == "<|pad|>"] == [expected[1]] * grown
    unchanged = (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "in/tokenizer.json").read_bytes()
    assert unchanged != grown


def test_a_new_pad_token_takes_a_spare_row_of_the_embedding(tmp_path):
    """Embeddings are often padded to a round number; they grow only where they must."""
    tokenizer = make_tokenizer(tmp_path, NAMED | {"unk_token": None})
    model, tokenizer = rm.match_tokenizer(make_model(pad_token_id=None, vocab_size=16), tokenizer)
    assert (tokenizer.pad_token_id, model.config.pad_token_id, model.config.vocab_size) == (10, 10, 16)
    assert model.embed_tokens.shape == (16, 8)


@pytest.mark.parametrize("where", ["added_tokens_decoder", "special_tokens_map.json"])
def test_a_new_pad_token_moves_no_token_that_only_the_config_lists(tmp_path, where):
    """Tokens that `tokenizer.json` does not list are counted on from its end when it is read."""
    config, files = NAMED | {"unk_token": None}, {}
    if where == "added_tokens_decoder":
        config[where] = {"10": {"content": "<|end|>", "special": True}}
    else:
        config, files = {}, {where: config | {"eos_token": "<|end|>"}}
    tokenizer = make_tokenizer(tmp_path / "in", config, files=files)
    ids = tokenizer.encode("a<|end|>")
    assert ids == [1, 3, 10]
    model, tokenizer = rm.match_tokenizer(make_model(pad_token_id=None, vocab_size=11), tokenizer)
    rm.save_reward_model(tmp_path / "out", model, tokenizer)
    for one in (tokenizer, rm.load_tokenizer(tmp_path / "out")):
        assert one.encode("a<|end|>") == ids
        assert one.pad_token_id == model.config.pad_token_id == 11


def test_a_new_pad_token_never_takes_the_id_of_a_word(tmp_path):
    """The library counts on from the vocabulary's size, which is a word's id where the vocabulary has gaps."""
    words = {word: i + (i > 8) for i, word in enumerate(WORDS)}  # nothing has the id 9, so the size is the last id
    tokenizer = make_tokenizer(tmp_path, NAMED | {"unk_token": None}, words=words)
    with pytest.raises(rm.TokenizerError, match=r"^[^\n]*pad_token[^\n]*$"):
        rm.match_tokenizer(make_model(pad_token_id=None, vocab_size=11), tokenizer)


@pytest.mark.parametrize(("pad", "name"), [(2, "</s>"), (3, "a"), (0, "<unk>")])
def test_a_reward_models_own_pooling_rule_is_kept_even_when_it_pads_with_eos(tmp_path, pad, name):
    """Else its scores are not those that `transformers` gives."""
    config = NAMED | {"pad_token": "<unk>", "added_tokens_decoder": {}}
    tokenizer = make_tokenizer(tmp_path / "in", config, files={"special_tokens_map.json": NAMED})
    rm.save_reward_model(tmp_path / "out", make_model(pad_token_id=pad), tokenizer)
    model, tokenizer = rm.load_reward_model(tmp_path / "out"), rm.load_tokenizer(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id == pad
    for file in ("tokenizer_config.json", "special_tokens_map.json") if pad else ("tokenizer_config.json",):
        assert json.loads((tmp_path / "out" / file).read_bytes())["pad_token"] == name
    kept = json.loads((tmp_path / "out/tokenizer_config.json").read_bytes())
    portable = {"added_tokens_decoder": {}, "tokenizer_class": "PreTrainedTokenizerFast"}
    assert {key: value for key, value in kept.items() if key != "pad_token"} == NAMED | portable


# Directories that others wrote.


@pytest.fixture
def rewrite(export) -> Callable[..., Path]:
    """Writes the tensors of the export anew under other names, and keys of its configuration."""

    def write(rename: Callable[[str], str | None], more=None, **config) -> Path:
        stored = load_file(export / "model.safetensors")
        stored = {rename(name): value for name, value in stored.items() if rename(name)} | (more or {})
        save_file(stored, export / "model.safetensors", metadata={"format": "pt"})
        value = json.loads((export / "config.json").read_bytes()) | config
        (export / "config.json").write_text(json.dumps(value))
        (export / "rm.json").unlink()  # it knows the files as they were
        return export

    return write


CAUSAL = {"architectures": ["LlamaForCausalLM"]}
TABLES = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(1, np.float32) for layer in range(3)}
OLD = {"lm_head.weight": np.ones((10, 8), np.float32), **TABLES}
BACKBONE = {"architectures": ["LlamaModel"]}


@pytest.mark.parametrize(
    ("rename", "more", "config"),
    [
        pytest.param(str, {}, CAUSAL, id="causal LM"),
        pytest.param(str, OLD, CAUSAL, id="lm_head and rotary tables"),
        pytest.param(str, {"model.rotary_emb.inv_freq": np.ones(1, np.float32)}, CAUSAL, id="one rotary table"),
        pytest.param(lambda name: name.removeprefix("model."), {}, BACKBONE, id="backbone"),
        pytest.param(
            lambda name: name.removeprefix("model."),
            {name.removeprefix("model."): value for name, value in TABLES.items()},
            BACKBONE,
            id="backbone with rotary tables",
        ),
    ],
)
def test_a_directory_without_a_head_gets_one_from_the_key_and_no_pooling_rule(rewrite, rename, more, config):
    directory = rewrite(lambda name: None if name == "score.weight" else rename(name), more, **config)
    expected = make_model(pad_token_id=None)
    key = jax.random.key(7)
    for std, scale in ((None, 0.02), (0.5, 0.5)):
        head = scale * jax.random.normal(key, (1, 8))
        loaded = rm.load_reward_model(directory, key=key, head_std=std)
        assert_equal(loaded, dataclasses.replace(expected, score=head))
    with pytest.raises(rm.WeightsError, match=r"score\.weight.*key"):
        rm.load_reward_model(directory)


def test_a_head_is_read_and_never_drawn_where_there_is_one(rewrite):
    directory = rewrite(str, OLD)
    assert_equal(rm.load_reward_model(directory, key=jax.random.key(7)), make_model())


@pytest.mark.parametrize("architectures", [["RewardModel"], ["LlamaForCausalLM"], None])
def test_the_pad_token_is_a_pooling_rule_of_classifiers_alone(rewrite, architectures):
    """One reader of the configuration would see another rule than the other, and rewards would be read elsewhere."""
    directory = rewrite(str, architectures=architectures, value_head_prefix="score", num_labels=2)
    assert (
        rm.model.load_config(directory)
        == rm.load_reward_model(directory).config
        == make_model(pad_token_id=None).config
    )


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", None])
def test_what_problem_others_named_changes_nothing(rewrite, problem_type):
    assert_equal(rm.load_reward_model(rewrite(str, problem_type=problem_type)), make_model())


def test_a_pad_token_of_minus_one_is_none(rewrite):
    """`transformers` compares ids with it, and no id is -1."""
    assert_equal(rm.load_reward_model(rewrite(str, pad_token_id=-1)), make_model(pad_token_id=None))


def test_a_number_that_is_too_large_for_float16_is_not_called_damage(rewrite):
    directory = rewrite(str, {"score.weight": np.ones((1, 8), np.float32), "model.norm.weight": np.full(8, 1e6, "f")})
    with pytest.raises(rm.WeightsError, match=r"norm\.weight.*\(as float16\); load it as float32$"):
        rm.load_reward_model(directory, dtype=jnp.float16)


def test_a_directory_of_links_loads(tmp_path, export):
    """As the hub's cache has them."""
    links = tmp_path / "snapshots" / "rev"
    links.mkdir(parents=True)
    shutil.move(export, tmp_path / "blobs")
    for path in (tmp_path / "blobs").iterdir():
        (links / path.name).symlink_to(os.path.relpath(path, links))
    assert_equal(rm.load_reward_model(links), make_model())
    assert rm.load_tokenizer(links).encode("a b") == [1, 3, 4]


def test_loading_and_scoring_need_neither_torch_nor_transformers(tmp_path):
    write_tokenizer(tmp_path / "in", NAMED | PAD)
    rm.save_reward_model(tmp_path / "model", make_model(1), rm.load_tokenizer(tmp_path / "in"))
    code = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "trl"])  # importing one of them raises
import rm
model, tokenizer = rm.load_reward_model(sys.argv[1]), rm.load_tokenizer(sys.argv[1])
rewards = rm.score(model, tokenizer, ["a b", "c"])
rm.save_reward_model(sys.argv[1] + "2", model, tokenizer)
print(rewards.shape, rewards.dtype)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    root = Path(rm.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert (done.returncode, done.stdout) == (0, "(2,) float32\n"), done.stderr
