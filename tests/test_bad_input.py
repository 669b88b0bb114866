"""Bad input: exit code 2, one line on stderr that names what is wrong, and the disk as it was.

bad_input.json is the table of what is wrong and the exact message. `RM_WRITE_MESSAGES=1 pytest tests/test_bad_input.py`
writes it anew; read the difference.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from rm.__main__ import main

EMBED = "model.embed_tokens.weight"
Q1, Q3 = "model.layers.1.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight"
GOOD = {"chosen": "yes", "rejected": "no way"}
CHAT = {side: [{"role": "user", "content": "a"}, {"role": "assistant", "content": side}] for side in GOOD}
INDEX, SHARDS = "model.safetensors.index.json", ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
UNREADABLE = Path("/proc/self/mem")  # a file that not even root can read from its beginning

MESSAGES = Path(__file__).with_name("bad_input.json")

Damage = Callable[[Path], object]


@pytest.fixture(scope="session")
def messages():
    """The exact message for each case."""
    known = json.loads(MESSAGES.read_text(encoding="utf-8")) if MESSAGES.exists() else {}
    yield known
    if os.environ.get("RM_WRITE_MESSAGES"):
        MESSAGES.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n", "utf-8")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("datasets_cache")


@pytest.fixture
def place(tmp_path, llama_directory, cache, monkeypatch) -> Path:
    """A directory with a good model in `llama/` and good data, `pairs.jsonl` for train and `rows.jsonl` for score."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shutil.copytree(llama_directory, tmp_path / "llama")
    for name in ("pairs.jsonl", "good.jsonl"):
        write_rows(name, GOOD, GOOD)(tmp_path)
    write_rows("rows.jsonl", {"text": "a"})(tmp_path)
    tensors({"score.weight": lambda none: np.ones((1, 128), np.float32)})(tmp_path)  # so that it can score
    return tmp_path


@pytest.fixture
def refused(place, capfd, caplog, messages, request) -> Callable[..., None]:
    """Runs a command and asserts everything that bad input must and must not do; `@` stands for the place."""

    def files() -> dict[str, tuple[int, int]]:
        return {str(path): ((stat := path.lstat()).st_size, stat.st_mtime_ns) for path in place.rglob("*")}

    def run(argv: list[str], *fragments: str) -> None:
        before = files()
        capfd.readouterr()
        code = main([argument.replace("@", f"{place}/") for argument in argv])
        err = capfd.readouterr().err
        assert (code, err[:4], err.count("\n")) == (2, "rm: ", 1), err
        assert [text for text in fragments if text not in err] == [], err
        assert caplog.messages == []  # logged lines go to stderr too, past pytest's
        assert files() == before
        case, found = f"{argv[0] if argv else ''} {request.node.name}".strip(), err.removeprefix("rm: ").strip()
        found = found.replace(str(place), "@")
        if os.environ.get("RM_WRITE_MESSAGES"):
            messages[case] = found
        assert messages.get(case) == found

    return run


TRAIN = ["train", "--model", "@llama", "--dataset", "@pairs.jsonl", "--output", "@run"]
SCORE = ["score", "--model", "@llama", "--input", "@rows.jsonl", "--output", "@scores.jsonl"]


# Ways to damage what lies at a place.


def write(name: str, content: bytes) -> Damage:
    return lambda place: (place / name).write_bytes(content)


def write_rows(name: str, *rows: object) -> Damage:
    return write(name, b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))


def cut(name: str, keep: float) -> Damage:
    return lambda place: write(name, (data := (place / name).read_bytes())[: int(keep * len(data))])(place)


def remove(name: str) -> Damage:
    return lambda place: (place / name).unlink()


def link(name: str, target: Path = UNREADABLE) -> Damage:
    def damage(place: Path) -> None:
        if not target.exists():
            pytest.skip(f"no {target} here")
        (place / name).unlink()
        (place / name).symlink_to(target)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda place: [damage(place) for damage in damages]


def edit(file: str, **changes: object) -> Damage:
    """Sets keys of a JSON file; `...` takes a key out."""

    def damage(place: Path) -> None:
        value = json.loads((place / file).read_bytes()) | changes
        write(file, json.dumps({k: v for k, v in value.items() if v is not ...}).encode())(place)

    return damage


def config(**changes: object) -> Damage:
    return edit("llama/config.json", **changes)


def classifier(**changes: object) -> Damage:
    return config(architectures=["LlamaForSequenceClassification"], **changes)


def tokenizer_config(**changes: object) -> Damage:
    return edit("llama/tokenizer_config.json", **changes)


def tensors(changes: dict[str, Callable]) -> Damage:
    """Replaces tensors of the model by a function of the old one (`None` where there is none); `None` takes it out."""

    def damage(place: Path) -> None:
        path = place / "llama/model.safetensors"
        stored = load_file(path)
        stored |= {name: change(stored.get(name)) for name, change in changes.items()}
        save_file({name: value for name, value in stored.items() if value is not None}, path)

    return damage


def shards(change: Callable[[dict, dict, dict], object]) -> Damage:
    """Splits the model in two files; `change` may edit the tensors of both and the index's map."""

    def damage(place: Path) -> None:
        stored = load_file(place / "llama/model.safetensors")
        parts = [{name: stored[name] for name in sorted(stored)[half::2]} for half in (0, 1)]
        where = {name: shard for shard, part in zip(SHARDS, parts, strict=True) for name in part}
        change(*parts, where)
        for shard, part in zip(SHARDS, parts, strict=True):
            save_file(part, place / "llama" / shard)
        (place / "llama/model.safetensors").unlink()
        write(f"llama/{INDEX}", json.dumps({"metadata": {}, "weight_map": where}).encode())(place)

    return damage


A, B = (f"base_model.model.{Q1}".replace("weight", f"lora_{factor}.weight") for factor in "AB")
FACTORS = {A: np.ones((2, 128), np.float32), B: np.ones((128, 2), np.float32)}


def adapter(changes: dict[str, object], tensors: dict[str, np.ndarray] = FACTORS) -> Damage:
    """An adapter in peft's form in place of the model, whose base is the model."""

    def damage(place: Path) -> None:
        (place / "llama").rename(place / "base")
        (place / "llama").mkdir()
        config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(place / "base"), "r": 2}
        (place / "llama/adapter_config.json").write_text(json.dumps(config | changes))
        if tensors:
            save_file(tensors, place / "llama/adapter_model.safetensors")

    return damage


def renamed(change: Callable[[str], str]) -> Damage:
    """Gives the tensors of the model other names."""

    def damage(place: Path) -> None:
        path = place / "llama/model.safetensors"
        save_file({change(name): value for name, value in load_file(path).items()}, path)

    return damage


def index_alone(content: bytes) -> Damage:
    """An index where no single file takes its place."""
    return both(remove("llama/model.safetensors"), write(f"llama/{INDEX}", content))


def one(old: None) -> np.ndarray:
    return np.ones((1, 128), np.float32)


def none(old: np.ndarray) -> None:
    return None


def nan(old: np.ndarray) -> np.ndarray:
    return np.where(np.arange(old.size).reshape(old.shape) == 7, np.float32(np.nan), old)


MODEL = {
    "no safetensors": (remove("llama/model.safetensors"), "model.safetensors", "no such file"),
    "truncated": (cut("llama/model.safetensors", 0.7), "model.safetensors", "truncated"),
    "empty safetensors": (write("llama/model.safetensors", b""), "model.safetensors"),
    "not safetensors": (write("llama/model.safetensors", b"PK\3\4" * 99), "model.safetensors"),
    "unreadable safetensors": (link("llama/model.safetensors"), "model.safetensors"),
    "missing tensor": (tensors({Q1: lambda old: None}), "missing", Q1),
    "missing norm": (tensors({"model.norm.weight": lambda old: None}), "missing", "model.norm.weight"),
    "extra tensor": (tensors({"model.extra": lambda old: np.ones(2, np.float32)}), "extra", "model.extra"),
    "extra layer": (config(num_hidden_layers=3), "extra", "model.layers.3."),
    "extra bias": (tensors({Q1[:-6] + "bias": lambda old: np.ones(128, np.float32)}), "extra", Q1[:-6] + "bias"),
    "duplicate": (tensors({Q1[6:]: lambda old: np.ones(2, np.float32)}), "model.safetensors", "duplicate", Q1),
    "wrong shape": (tensors({Q3: lambda old: old[:, 1:].copy()}), Q3, "[128, 127]", "[128, 128]"),
    "transposed embedding": (tensors({EMBED: lambda old: old.T.copy()}), EMBED, "[128, 512]"),
    "NaN": (tensors({Q1: nan}), Q1, "NaN"),
    "infinite": (tensors({Q3: lambda old: np.full_like(old, np.inf)}), Q3, "infinite"),
    "bfloat16 NaN": (tensors({Q1: lambda old: nan(old).astype(ml_dtypes.bfloat16)}), Q1, "NaN"),
    "I32": (tensors({Q1: lambda old: old.astype(np.int32)}), Q1, "I32"),
    "I8": (tensors({Q3: lambda old: old.astype(np.int8)}), Q3, "I8"),
    "head NaN": (both(classifier(pad_token_id=0), tensors({"score.weight": nan})), "score.weight", "NaN"),
    "head missing": (both(classifier(), tensors({"score.weight": lambda old: None})), "score.weight", "missing"),
    "head of two": (
        both(classifier(), tensors({"score.weight": lambda old: old.repeat(2, 0)})),
        "2 labels",
        "--label-weights",
    ),
    "duplicate in two shards": (shards(lambda a, b, where: b.update(a)), SHARDS[1], "duplicate", SHARDS[0]),
    "shard missing": (both(shards(lambda a, b, where: None), remove(f"llama/{SHARDS[1]}")), SHARDS[1], "no such file"),
    "shard cut": (both(shards(lambda a, b, where: None), cut(f"llama/{SHARDS[1]}", 0.5)), SHARDS[1], "truncated"),
    "shard lacks a tensor": (shards(lambda a, b, where: (a.pop(Q1, 0), b.pop(Q1, 0))), Q1, "missing"),
    "index leads outside": (shards(lambda a, b, where: where.update({Q1: "../x"})), INDEX, "'../x'"),
    "index names a directory": (shards(lambda a, b, where: where.update({Q1: ".."})), INDEX, "'..'"),
    "index without a map": (index_alone(b"{}"), INDEX, "weight_map"),
    "index without tensors": (index_alone(b'{"weight_map": {}}'), INDEX),
    "index not JSON": (index_alone(b'{"weight_map":\n {'), INDEX, "line 2"),
    "weights of torch": (
        both(remove("llama/model.safetensors"), write("llama/pytorch_model.bin", b"x")),
        "only safetensors",
        "pytorch_model.bin",
    ),
    "pointer of Git LFS": (
        write("llama/model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors",
        "git lfs pull",
    ),
    "prefix of DDP": (renamed(lambda name: f"module.{name}"), "'module.'", "DDP", "take it out"),
    "prefix of torch.compile": (
        renamed(lambda name: name.replace("model.", "model._orig_mod.")),
        "'_orig_mod.'",
        "compile",
    ),
    "prefix of FSDP": (
        renamed(lambda name: name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.")),
        "'_fsdp_wrapped_module.'",
    ),
    "prefix of nobody": (renamed(lambda name: f"llm.{name}"), "'llm.'", "take it out"),
    "backbone with a prefix": (renamed(lambda name: name.replace("model.", "encoder.")), "'encoder.'"),
    "adapter of LoRA": (
        tensors({f"base_model.model.{Q1}".replace("weight", "lora_A.weight"): one, Q1: none}),
        "LoRA",
        "merge",
    ),
    "adapter, no base": (
        adapter({"base_model_name_or_path": "/nowhere/base"}),
        "/nowhere/base",
        "base_model_name_or_path",
    ),
    "adapter of itself": (adapter({"base_model_name_or_path": "../llama"}), "is an adapter too", "merge that one"),
    "adapter, base not named": (adapter({"base_model_name_or_path": None}), "base_model_name_or_path"),
    "adapter, no weights": (adapter({}, {}), "adapter_model.safetensors", "no such file"),
    "adapter of another kind": (adapter({"peft_type": "IA3"}), "LORA", "'IA3'"),
    "adapter, DoRA": (adapter({"use_dora": True}), "DoRA is not computed", "merge"),
    "adapter with biases": (adapter({"bias": "lora_only"}), "bias 'lora_only' is not computed"),
    "adapter, odd pattern": (adapter({"alpha_pattern": {"q|k": 2}}), "the pattern 'q|k'", "names of modules"),
    "adapter, half": (adapter({}, {A: FACTORS[A]}), "only one of", A, B),
    "adapter, other sizes": (adapter({}, FACTORS | {B: np.ones((64, 2), np.float32)}), B, "[64, 2]", "[128, 2]"),
    "adapter, unknown key": (adapter({}, FACTORS | {"base_model.model.extra": np.ones(2, np.float32)}), "model.extra"),
    "adapter of the head": (
        adapter({}, {"base_model.model.score.lora_A.weight": np.ones((2, 128), np.float32)}),
        "the score head itself has an adapter",
        "SEQ_CLS",
    ),
    "head of another form": (tensors({"reward_head.weight": one}), "'reward_head.weight'", "v_head.summary"),
    "two heads": (tensors({"v_head.weight": one}), "two heads", "'score.weight'", "'v_head.weight'"),
    "gate": (tensors({"gating.layers.0.weight": one}), "'gating.layers.0.weight'", "ArmoRM"),
    "value head of torch": (
        both(tensors({"score.weight": none}), write("llama/value_head.bin", b"x")),
        "value_head.bin",
        "only safetensors",
    ),
    "no config": (remove("llama/config.json"), "config.json", "no such file"),
    "config not JSON": (write("llama/config.json", b'{\n "a" 1}'), "config.json", "line 2"),
    "config a list": (write("llama/config.json", b"[]"), "config.json", "list"),
    "config not UTF-8": (write("llama/config.json", b'{"a": "\xff"}'), "config.json"),
    "config unreadable": (link("llama/config.json"), "config.json"),
    "another family": (config(model_type="gemma2"), "config.json", "model_type", "'gemma2'"),
    "no model_type": (config(model_type=...), "config.json", "model_type"),
    "missing keys": (config(hidden_size=..., num_hidden_layers=...), "config.json", "hidden_size, num_hidden_layers"),
    "text for a number": (config(hidden_size="128"), "config.json", "hidden_size", "'128'"),
    "heads do not divide": (config(num_key_value_heads=3), "config.json", "num_key_value_heads"),
    "windows in some layers": (
        config(model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "config.json",
        "sliding window",
        "max_window_layers",
    ),
    "rope type": (config(rope_scaling={"rope_type": "ntk", "factor": 4.0}), "config.json", "rope type", "'ntk'"),
    "rope type, newer": (config(rope_parameters={"rope_type": "axial"}), "config.json", "rope type", "'axial'"),
    "rope factors": (config(rope_scaling={"rope_type": "longrope"}), "config.json", "'longrope'", "'short_factor'"),
    "rope factor": (config(rope_scaling={"rope_type": "linear"}), "config.json", "'linear'", "'factor'"),
    "rope not an object": (config(rope_scaling="linear"), "config.json", "rope_scaling"),
    "rope theta": (config(rope_theta="big"), "config.json", "rope_theta"),
    "quantized": (config(quantization_config={"bits": 4}), "config.json", "quantized"),
    "two labels": (classifier(num_labels=2), "score.weight", "[1, 128], expected [2, 128]"),
    "two names of labels": (classifier(id2label={"0": "a", "1": "b"}), "score.weight", "expected [2, 128]"),
    "labels a text": (classifier(num_labels="two"), "config.json", "num_labels", "'two'"),
    "reward token unknown": (config(reward_token_id=511), "config.json", "reward_token_id", "511"),
    "pad id unknown": (classifier(pad_token_id=9999), "config.json", "pad_token_id", "9999"),
    "pad id negative": (classifier(pad_token_id=-2), "config.json", "pad_token_id", "-2"),
    "pad id a text": (classifier(pad_token_id="<pad>"), "config.json", "pad_token_id", "'<pad>'"),
    "no tokenizer": (remove("llama/tokenizer.json"), "tokenizer.json", "no such file"),
    "tokenizer cut": (cut("llama/tokenizer.json", 0.5), "tokenizer.json", "cannot be read"),
    "tokenizer not UTF-8": (write("llama/tokenizer.json", b"\xff"), "tokenizer.json"),
    "tokenizer unreadable": (link("llama/tokenizer.json"), "tokenizer.json"),
    "tokenizer_config not JSON": (write("llama/tokenizer_config.json", b"{"), "tokenizer_config.json"),
    "tokenizer_config a list": (write("llama/tokenizer_config.json", b"[1]"), "tokenizer_config.json", "list"),
    "eos token a number": (tokenizer_config(eos_token=3), "tokenizer_config.json", "eos_token"),
    "unknown tokenizer class": (
        tokenizer_config(tokenizer_class="FancyTokenizer"),
        "tokenizer_config.json",
        "'FancyTokenizer'",
        "expected",
    ),
    "date of the template": (write("llama/rm.json", b'{"chat_template_date": "today"}'), "rm.json", "'today'"),
    "template not UTF-8": (write("llama/chat_template.jinja", b"\xff"), "chat_template.jinja"),
    "small embedding": (
        both(config(vocab_size=200), tensors({EMBED: lambda old: old[:200].copy()})),
        "tokenizer is larger than the embedding",
        "200",
    ),
}


def table(cases: dict[str, tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("damage", "fragments"), [pytest.param(damage, rest, id=name) for name, (damage, *rest) in cases.items()]
    )


@table(MODEL)
def test_model(place, refused, damage, fragments):
    damage(place)
    for argv in (TRAIN, SCORE):
        refused(argv, *fragments)


def test_an_adapter_of_a_causal_model(place, refused):
    both(tensors({"score.weight": none}), adapter({"task_type": "CAUSAL_LM"}))(place)
    refused(SCORE, "llama: no tensor 'score.weight'", "train it")


def data(*rows: object) -> Damage:
    return write_rows("pairs.jsonl", *rows)


ROLES = "{% if messages[0].role != 'user' %}{{ raise_exception('the user\n speaks first') }}{% endif %}"
ASSISTANT = {side: [{"role": "assistant", "content": side}] for side in GOOD}
LINES = "".join(json.dumps(GOOD) + "\n" for _ in range(200)).encode()
ZSTD = pa.compress(LINES, "zstd", asbytes=True)

# The file that train reads is pairs.jsonl.
DATA = {
    "no file": (remove("pairs.jsonl"), "pairs.jsonl", "no such file"),
    "empty": (data(), "pairs.jsonl", "empty"),
    "only blank lines": (data(b"\n\n"), "pairs.jsonl", "no rows"),
    "unreadable": (link("pairs.jsonl"), "pairs.jsonl"),
    "malformed line": (data(GOOD, GOOD, b'{"chosen": }\n', GOOD), "pairs.jsonl", "line 3"),
    "cut line": (data(GOOD, b'{"chosen": "a", "rej'), "pairs.jsonl", "line 2"),
    "two objects in a line": (data(GOOD, b'{"chosen": "a"} {"chosen": "b"}\n'), "pairs.jsonl", "line 2"),
    "not an object": (data(GOOD, 3), "pairs.jsonl", "line 2", "int"),
    "not UTF-8": (data(GOOD, b'{"chosen": "\xff", "rejected": "a"}\n'), "pairs.jsonl", "line 2", "UTF-8"),
    "unknown column": (data({"chosen": "a", "refused": "b"}), "pairs.jsonl", "'rejected'", "found chosen, refused"),
    "chosen null": (data(GOOD, {"chosen": None, "rejected": "a"}), "pairs.jsonl", "line 2", "'chosen'"),
    "rejected not there": (data(GOOD, {"chosen": "a"}), "pairs.jsonl", "line 2", "'rejected'"),
    "chosen a number": (data({"chosen": 1, "rejected": "a"}), "pairs.jsonl", "line 1", "'chosen'", "found int 1"),
    "margin NaN": (data(GOOD | {"margin": 1.0}, GOOD | {"margin": float("nan")}), "line 2", "'margin'", "nan"),
    "margin null": (
        data(GOOD | {"margin": 1.0}, GOOD | {"margin": None}),
        "pairs.jsonl",
        "line 2",
        "'margin'",
        "in some",
    ),
    "margin not there": (data(GOOD | {"margin": 1.0}, GOOD), "pairs.jsonl", "line 2", "'margin'", "in some"),
    "margin a text": (data(GOOD | {"margin": "1"}), "pairs.jsonl", "line 1", "'margin'", "'1'"),
    "text and messages": (data(GOOD | {"rejected": CHAT["rejected"]}), "pairs.jsonl", "line 1", "both"),
    "text prompt, messages": (data(CHAT | {"prompt": "b"}), "pairs.jsonl", "line 1", "prompt"),
    "one row of messages": (data(GOOD, GOOD | {"rejected": CHAT["rejected"]}), "pairs.jsonl", "line 2", "rejected"),
    "no role": (data({side: [{"content": "a"}] for side in GOOD}), "pairs.jsonl", "line 1", "'chosen'"),
    "no role in one message": (data(CHAT, CHAT | {"chosen": [{"content": "a"}]}), "line 2", "'chosen'"),
    "no messages": (data(CHAT, {"chosen": [], "rejected": []}), "pairs.jsonl", "line 2", "'chosen'"),
    "tools not JSON": (data(CHAT | {"tools": "[{"}), "pairs.jsonl", "line 1", "'tools'"),
    "template refuses": (both(data(CHAT, ASSISTANT), tokenizer_config(chat_template=ROLES)), "line 2", "speaks first"),
    "template fails": (both(data(CHAT), tokenizer_config(chat_template="{{ messages + 1 }}")), "line 1", "template"),
    "template not jinja": (
        both(data(CHAT), tokenizer_config(chat_template="{% if %}")),
        "line 1",
        "template",
        "line 1",
    ),
    "no template": (both(data(CHAT), tokenizer_config(chat_template=...)), "pairs.jsonl", "line 1", "chat template"),
    "all identical": (data({"chosen": "a", "rejected": "a"}), "pairs.jsonl", "identical: 1"),
    "a number in a later row": (
        data(GOOD, {"chosen": "b", "rejected": 3.5}),
        "line 2",
        "'rejected'",
        "found float 3.5",
    ),
    "a truth value": (data(GOOD, GOOD | {"prompt": True}), "pairs.jsonl", "line 2", "a prompt bool True"),
    "margin a text in one row": (data(GOOD | {"margin": 1.0}, GOOD | {"margin": "x"}), "line 2", "'margin'", "'x'"),
    "margin infinite": (data(GOOD | {"margin": 1e39}), "line 1", "'margin'", "1e+39"),
    "token id too large": (data({"chosen_ids": [1, 2], "rejected_ids": [1, 512]}), "line 1", "512", "below 512"),
    "token id negative": (data({"chosen_ids": [1, 2], "rejected_ids": [1, -1]}), "line 1", "'rejected_ids'", "-1"),
    "token ids as text": (data({"chosen_ids": "1 2", "rejected_ids": "1"}), "line 1", "'chosen_ids'", "'1 2'"),
    "no token ids": (data({"chosen_ids": [1], "rejected_ids": []}), "line 1", "'rejected_ids'", "[]"),
    "one side of token ids": (data({"chosen_ids": [1]}), "line 1", "'rejected_ids'", "found chosen_ids"),
    "mask too short": (
        data({"input_ids_chosen": [1, 2], "input_ids_rejected": [1], "attention_mask_chosen": [1]}),
        "line 1",
        "'attention_mask_chosen'",
        "expected 2",
    ),
    "mask without ones": (
        data({"input_ids_chosen": [1], "input_ids_rejected": [1], "attention_mask_chosen": [0]}),
        "line 1",
        "'attention_mask_chosen'",
    ),
    "responses without scores": (data({"responses": ["a", "b"]}), "line 1", "'responses'", "'scores'"),
    "one response": (data({"responses": ["a"], "scores": [1.0]}), "single response: 1"),
    "a score too few": (data({"responses": ["a", "b"], "scores": [1.0]}), "line 1", "'scores'", "expected 2"),
    "a score that is a text": (data({"responses": ["a", "b"], "scores": ["1", "2"]}), "line 1", "'scores'", "'1'"),
    "a rank null": (data({"responses": ["a", "b"], "ranks": [1, None]}), "line 1", "'ranks'", "None"),
    "a response null": (data({"responses": ["a", None], "scores": [1, 2]}), "line 1", "responses[1]", "None"),
    "margin of several": (data({"responses": ["a", "b"], "scores": [1, 2], "margin": 1.0}), "line 1", "'margin'"),
    "all tied": (data({"responses": ["a", "b"], "scores": [1, 1]}), "pairs.jsonl", "tied: 1"),
    "from without value": (data({side: [{"from": "human"}] for side in GOOD}), "line 1", "content"),
    "half a character": (data(GOOD, GOOD | {"chosen": "\ud83d"}), "pairs.jsonl"),
    "kwargs not an object": (data(CHAT | {"chat_template_kwargs": [1]}), "line 1", "'chat_template_kwargs'"),
    "kwargs with messages": (
        data(CHAT | {"chat_template_kwargs": {"messages": 1}}),
        "line 1",
        "'chat_template_kwargs'",
    ),
}


@table(DATA)
def test_data(place, refused, damage, fragments):
    damage(place)
    refused(TRAIN, *fragments)
    refused([*TRAIN, "--dataset", "@good.jsonl", "--eval-dataset", "@pairs.jsonl"], *fragments)


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        pytest.param("a.jsonl.gz", gzip.compress(LINES)[:-12], ["cut short"], id="gzip cut short"),
        pytest.param("a.jsonl.gz", LINES, ["gzip"], id="not gzip"),
        pytest.param("a.jsonl.gz", gzip.compress(LINES + b"{\n"), ["line 201"], id="malformed line in gzip"),
        pytest.param("a.jsonl.zst", ZSTD[:-12], ["cut short"], id="zstd cut short"),
        pytest.param("a.jsonl.zst", LINES, ["ZSTD"], id="not zstd"),
        pytest.param("a.json", b'{\n"train": [{}]}', ["'data'", "train"], id="object without rows"),
        pytest.param("a.json", b'[{"chosen": "a", "rejected": "b"},', [], id="document cut short"),
        pytest.param("a.csv", b"chosen,rejected\na,b\na,b,c\n", ["line 3"], id="csv with a field too many"),
        pytest.param("a.parquet", b"PAR1 but not really", [], id="not parquet"),
        pytest.param("a.txt", b"text", [".jsonl", "'.txt'"], id="another kind of file"),
    ],
)
def test_data_file(place, refused, name, content, fragments):
    write(name, content)(place)
    refused([*TRAIN, "--dataset", f"@{name}"], name, *fragments)


SCORED = {
    "no file": (remove("rows.jsonl"), "rows.jsonl", "no such file"),
    "empty": (write_rows("rows.jsonl"), "rows.jsonl", "empty"),
    "unreadable": (link("rows.jsonl"), "rows.jsonl", "cannot be read"),
    "malformed line": (write_rows("rows.jsonl", {"text": "a"}, b"{\n"), "rows.jsonl", "line 2"),
    "not an object": (write_rows("rows.jsonl", {"text": "a"}, ["a"]), "rows.jsonl", "line 2", "list"),
    "not UTF-8": (write_rows("rows.jsonl", {"text": "a"}, b'{"text": "\xff"}\n'), "rows.jsonl", "line 2", "UTF-8"),
    "none of the forms": (write_rows("rows.jsonl", {"text": "a"}, b"\n", {"txt": "a"}), "rows.jsonl", "line 3", "txt"),
    "text null": (write_rows("rows.jsonl", {"text": None}), "rows.jsonl", "line 1", "text"),
    "text empty": (write_rows("rows.jsonl", {"text": ""}), "rows.jsonl", "line 1", "text"),
    "response a number": (write_rows("rows.jsonl", {"prompt": "a", "response": 1}), "rows.jsonl", "line 1", "response"),
    "messages a text": (write_rows("rows.jsonl", {"messages": "a"}), "rows.jsonl", "line 1", "messages"),
    "no template": (
        both(write_rows("rows.jsonl", {"messages": CHAT["chosen"]}), tokenizer_config(chat_template=...)),
        "line 1",
        "chat template",
    ),
    "a causal LM": (tensors({"score.weight": none}), "llama", "score.weight", "train it", "--head"),
    "output exists": (write("scores.jsonl", b"precious"), "scores.jsonl", "exists"),
}


@table(SCORED)
def test_score(place, refused, damage, fragments):
    damage(place)
    refused(SCORE, *fragments)


def test_score_gzip_cut_short(place, refused):
    write("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9])(place)
    refused([*SCORE, "--input", "@a.jsonl.gz"], "a.jsonl.gz", "cut short")


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ([*TRAIN, "--bogus", "1"], ["--bogus"]),
        ([*SCORE, "--bogus"], ["--bogus"]),
        ([*TRAIN, "--batch-size", "ten"], ["--batch-size", "ten"]),
        ([*TRAIN, "--learning-rate", "x"], ["--learning-rate", "x"]),
        ([*TRAIN, "--batch-size", "0"], ["--batch-size", "found 0"]),
        ([*SCORE, "--batch-size", "0"], ["--batch-size", "found 0"]),
        ([*SCORE, "--max-length", "-1"], ["--max-length", "found -1"]),
        ([*TRAIN, "--learning-rate", "nan"], ["--learning-rate", "nan"]),
        ([*TRAIN, "--learning-rate", "inf"], ["--learning-rate", "inf"]),
        ([*TRAIN, "--epochs", "inf"], ["--epochs", "inf"]),
        ([*TRAIN, "--max-grad-norm", "-1"], ["--max-grad-norm", "-1"]),
        ([*TRAIN, "--center-rewards-coefficient", "nan"], ["--center-rewards-coefficient", "nan"]),
        ([*TRAIN, "--seed", "-1"], ["--seed", "-1"]),
        ([*TRAIN, "--warmup-ratio", "1.5"], ["--warmup-ratio", "1.5"]),
        ([*TRAIN, "--dtype", "float64"], ["--dtype", "float64"]),
        ([*TRAIN, "--optimizer", "sgd"], ["--optimizer", "sgd"]),
        ([*TRAIN, "--attention", "splash"], ["attention 'splash'", "for TPUs, found cpu"]),
        ([*TRAIN, "--attention", "cudnn"], ["attention 'cudnn'", "for GPUs, found cpu"]),
        ([*TRAIN, "--max-length", "2"], ["pairs.jsonl", "--max-length", "over 2 tokens: 2"]),
        ([*TRAIN, "--split", "test"], ["pairs.jsonl", "test"]),
        ([*TRAIN, "--split", "train[5:2]"], ["pairs.jsonl"]),
        ([*TRAIN, "--dataset", "@nowhere-*.jsonl"], ["nowhere-*.jsonl", "no file matches"]),
        ([*TRAIN, "--dataset", "@good.jsonl=0.5", "@pairs.jsonl"], ["--dataset", "a weight for every one"]),
        ([*TRAIN, "--dataset", "@good.jsonl=x"], ["good.jsonl=x", "weight", "'x'"]),
        ([*TRAIN, "--dataset", "@good.jsonl=0"], ["good.jsonl=0", "weight", "'0'"]),
        ([*TRAIN, "--dataset", "@good.jsonl=1", "@pairs.jsonl=0.001"], ["--dataset", "without comparisons"]),
        ([*TRAIN, "--dataset", "org/nowhere:english@v1"], ["org/nowhere"]),
        ([*TRAIN, "--streaming"], ["--streaming", "--max-steps"]),
        ([*TRAIN, "--chat-template", "@nowhere.jinja"], ["nowhere.jinja", "no such file"]),
        ([*TRAIN, "--chat-template-date", "today"], ["--chat-template-date", "today"]),
        ([*TRAIN, "--truncation", "left"], ["--truncation", "left"]),
        ([*TRAIN, "--num-proc", "0"], ["--num-proc", "found 0"]),
        ([*TRAIN, "--margin-from-scores"], ["pairs.jsonl", "line 1", "'score_chosen'"]),
        ([*TRAIN, "--min-score-margin", "1"], ["pairs.jsonl", "line 1", "'score_chosen'"]),
        ([*TRAIN, "--min-score-margin", "1", "--invalid", "drop"], ["pairs.jsonl", "missing column: 2"]),
        (["data", "--model", "@llama", "--dataset", "@*.jsonl"], ["rows.jsonl: line 1", "'chosen'", "found text"]),
        (["data", "--model", "@llama", "--dataset", "@good.jsonl", "--streaming"], ["--max-steps"]),
        ([*TRAIN, "--resume", "required"], ["run", "nothing to resume"]),
        ([*TRAIN, "--model", "@nowhere"], ["nowhere"]),
        ([*TRAIN, "--model", "@pairs.jsonl"], ["pairs.jsonl"]),
        ([*TRAIN, "--dataset", "@llama"], ["llama"]),
        ([*TRAIN, "--eval-dataset", "@nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        ([*TRAIN, "--output", "@pairs.jsonl"], ["pairs.jsonl", "is a file"]),
        ([*TRAIN, "--output", "@pairs.jsonl/run"], ["pairs.jsonl"]),
        ([*TRAIN, "--output", "@run[16]"], ["run[16]", "path with ["]),
        ([*SCORE, "--output", "@pairs.jsonl/scores.jsonl"], ["scores.jsonl"]),
        ([*SCORE, "--output", "@nowhere/scores.jsonl"], ["nowhere"]),
        ([*SCORE, "--input", "@llama"], ["llama", "cannot be read"]),
        (["demo", "--output", "@llama"], ["llama", "exists"]),
        (["demo", "--output", "@pairs.jsonl/demo"], ["pairs.jsonl/demo"]),
        (TRAIN[:5], ["--output"]),
        (["trian"], ["trian"]),
        ([], ["train"]),
        ([*TRAIN, "--time-limit", "3x"], ["--time-limit", "3h50m", "'3x'"]),
        ([*TRAIN, "--load-best"], ["--load-best", "--keep-best"]),
        ([*TRAIN, "--eval-on-start"], ["--eval-on-start", "--eval-dataset"]),
        ([*TRAIN, "--save-final-only", "--save-every", "2"], ["--save-final-only", "--save-every"]),
        ([*TRAIN, "--head", "lm_head"], ["--head", "lm_head:0", "'lm_head'"]),
        ([*TRAIN, "--head", "lm_head:0"], ["has a head", "'score.weight'"]),
        ([*SCORE, "--label-weights", "1", "2"], ["--label-weights", "expected 1 finite number,", "[1.0, 2.0]"]),
        ([*TRAIN, "--label-weights", "nan"], ["--label-weights", "nan"]),
        ([*TRAIN, "--adam-beta1", "1"], ["--adam-beta1", "less than 1, found 1.0"]),
        ([*TRAIN, "--adam-epsilon", "0"], ["--adam-epsilon", "greater than 0, found 0.0"]),
        ([*TRAIN, "--optimizer", "lion", "--adam-beta2", "0.95"], ["--adam-beta2 0.95", "no effect on lion"]),
        ([*TRAIN, "--warmup-steps", "-1"], ["--warmup-steps", "negative"]),
        ([*TRAIN, "--warmup-steps", "9", "--warmup-ratio", "0.1"], ["--warmup-steps", "--warmup-ratio"]),
    ],
    ids=lambda value: " ".join(value[7:] or value)[:60] if value and value[0] in ("train", "score") else None,
)
def test_arguments(refused, argv, fragments):
    refused(argv, *fragments)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "checkpoints/1/x", "model/config.json"])
def test_output_holds_a_run(place, refused, name):
    (place / "run" / name).parent.mkdir(parents=True)
    (place / "run" / name).write_text("precious")
    refused(TRAIN, "run", "holds a")


@pytest.mark.parametrize(
    ("extra", "fragments"), [((), ["pairs.jsonl", "line 2"]), (("--bogus", "1"), ["--bogus"])], ids=["data", "flag"]
)
def test_the_real_command(place, extra, fragments):
    data(GOOD, b'{"chosen": }\n')(place)
    argv = [argument.replace("@", f"{place}/") for argument in [*TRAIN, *extra]]
    done = subprocess.run([sys.executable, "-m", "rm", *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("rm: ")
    assert done.stderr.count("\n") == 1
    assert not [text for text in fragments if text not in done.stderr]
    assert {path.name for path in place.iterdir()} == {"llama", "pairs.jsonl", "good.jsonl", "rows.jsonl"}
