"""An export has the same reward wherever it is loaded: in transformers 5 here, in 4.57 in an environment of its own.

`.ci/run` makes that environment, `.venv-transformers4` in the checkout; `RM_TRANSFORMERS4` names another Python.
"""

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

import tokenizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import rm
from rm.model.config import Rope

from ..conftest import SHARED
from .use_export import use

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default"), pytest.mark.optax]

TEXTS = ["The RED House of rome.", "  Two  spaces, ÉTÉ\nand a line", "x", "2 + 2 = 4</s>", "a<|x|>b <|y|> c"]
CHATS = [
    [{"role": "user", "content": "Name a TREE "}, {"role": "assistant", "content": " The old one."}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "Z?"}],
]
SNIPPET = [  # what the card's own lines print the rewards of
    {"messages": [{"role": "user", "content": "2 + 2 = "}, {"role": "assistant", "content": "4"}]},
    {"prompt": "2 + 2 = ", "response": "4"},
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ date_string }} " + TEMPLATE
)
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
SCALED: dict[str, Any] = {"factor": 8.0, "original_max_position_embeddings": 16}
LONGROPE = Rope(  # for texts of more than four tokens, the long factors
    type="longrope",
    factor=8.0,
    original_max_position_embeddings=4,
    short_factor=(1.0, 1.1, 1.3, 1.7),
    long_factor=(1.0, 2.0, 3.0, 5.0),
)
BACKBONES: dict[str, dict[str, Any]] = {
    "llama3": {"rope": Rope(theta=500000.0, type="llama3", **SCALED)},
    "mistral": {"model_type": "mistral", "sliding_window": 2, "rope": Rope(theta=50.0, type="yarn", **SCALED)},
    "qwen2": {"model_type": "qwen2", "sliding_window": 2},
    "qwen3": {"model_type": "qwen3", "attention_bias": True, "rope": LONGROPE},
}


def pieces(directory: Path, normalizer: Any, **config: object) -> Path:
    """A tokenizer of pieces in the manner of Llama 2, with a normalizer of its own."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True))
    parts = [normalizer, tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    backend.normalizer = tokenizers.normalizers.Sequence(parts)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
    backend.train_from_iterator([text.lower() for text in TEXTS] + TEXTS, trainer)
    bos = [("<s>", 1)]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=bos)
    return written(directory, backend, NAMED | config)


def bytes_of_words(directory: Path, **config: object) -> Path:
    """A byte-level tokenizer that puts a space before a text, which its configuration does not repeat."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    return written(directory, backend, NAMED | {"unk_token": None} | config)


def pieces_of_qwen(directory: Path) -> Path:
    """A byte-level tokenizer that splits texts as Qwen 2's do."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer, pattern = PLAIN, tokenizers.Regex(PRETOKENIZE_REGEX)
    splits = (
        tokenizers.pre_tokenizers.Split(pattern, "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False),
    )
    backend.pre_tokenizer, backend.decoder = (
        tokenizers.pre_tokenizers.Sequence([*splits]),
        tokenizers.decoders.ByteLevel(),
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return written(directory, backend, config | {"tokenizer_class": "Qwen2Tokenizer"})


def written(directory: Path, backend: tokenizers.Tokenizer, config: dict[str, object]) -> Path:
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return directory


def saved_again(directory: Path, **more: object) -> Path:
    """The directory as transformers 5 saves the tokenizer that it reads there."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if more:
        tokenizer.add_special_tokens(more)
    shutil.rmtree(directory)
    tokenizer.save_pretrained(directory)
    return directory


def real(name: str) -> Callable[[Path], Path]:
    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(SHARED / name, directory))

    return copy


LOWER, PLAIN = tokenizers.normalizers.Lowercase(), tokenizers.normalizers.NFC()
CLASSES = ("LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2TokenizerFast")
OLD = {"from_slow": True, "tokenizer_file": None, "vocab_file": None, "auto_map": {"AutoTokenizer": ["x.Y", None]}}
UNSTATED = dict.fromkeys(("bos_token", "eos_token", "unk_token"), ...)  # those that the class implies

BASES: dict[str, Callable[[Path], Path]] = {
    **{name: lambda where, name=name: pieces(where, LOWER, tokenizer_class=name) for name in CLASSES},
    "no class": lambda where: pieces(where, LOWER),
    "Llama's flags": lambda where: pieces(
        where, LOWER, tokenizer_class="LlamaTokenizer", add_bos_token=False, add_eos_token=True, legacy=False
    ),
    "tokens that the class implies": lambda where: pieces(where, PLAIN, tokenizer_class="LlamaTokenizer", **UNSTATED),
    "keys of old versions": lambda where: pieces(where, LOWER, tokenizer_class="LlamaTokenizerFast", **OLD),
    "saved by transformers 5": lambda where: saved_again(
        pieces(where, LOWER, tokenizer_class="PreTrainedTokenizerFast")
    ),
    "saved by transformers 5, tokens listed": lambda where: saved_again(
        pieces(where, LOWER, tokenizer_class="PreTrainedTokenizerFast"), extra_special_tokens=["<|x|>", "<|y|>"]
    ),
    "tokens that only the configuration lists": lambda where: pieces(
        where, LOWER, extra_special_tokens=["<|x|>", "<|y|>"]
    ),
    "a token by another name": lambda where: pieces(
        where, LOWER, extra_special_tokens={"turn_token": "<|x|>"}, chat_template=TEMPLATE + "{{ turn_token }}"
    ),
    "space before a text": bytes_of_words,
    "space that the configuration contradicts": lambda where: bytes_of_words(where, add_prefix_space=False),
    "template that asks for the date": lambda where: pieces(where, LOWER, chat_template=DATED),
    "named templates": lambda where: pieces(
        where,
        LOWER,
        chat_template=[{"name": "default", "template": DATED}, {"name": "tool_use", "template": "{{ tools }}"}],
    ),
    "no template": lambda where: pieces(where, LOWER, chat_template=...),
    "bfloat16": lambda where: pieces(where, LOWER),
    **{name: lambda where: pieces(where, LOWER) for name in BACKBONES},
    "qwen2": pieces_of_qwen,
}
if SHARED.is_dir():
    REAL = ("models/stories260K", "tokenizers/minueza-32m-ultrachat", "tokenizers/smollm2-135m-instruct")
    BASES |= {name: real(name) for name in REAL}


@dataclasses.dataclass(frozen=True)
class Export:
    """An export, what it was made of, and the rewards that `rm` gives."""

    base: rm.Tokenizer
    job: dict[str, Any]
    expected: dict[str, Any]


def louder(path: tuple, leaf: jax.Array) -> jax.Array:
    """Larger weights, so that rewards differ."""
    return leaf if leaf.ndim == 1 or "_norm" in jax.tree_util.keystr(path) else leaf * 4


def make(name: str, place: Path) -> Export:
    base = rm.load_tokenizer(BASES[name](place / "base"), today=date(2025, 3, 4))
    shape = SHAPE | BACKBONES.get(name, {})
    config = rm.LlamaConfig(vocab_size=base.max_token_id + 1, num_key_value_heads=2, **shape)
    if (place / "base/model.safetensors").exists():
        model = rm.load_reward_model(place / "base", key=jax.random.key(0), head_std=0.3)
    else:
        model = rm.init_reward_model(config, key=jax.random.key(0), head_std=0.3)
        model = jax.tree_util.tree_map_with_path(louder, model)
    rm.save_reward_model(place / "model", model, base, dtype="bfloat16" if name == "bfloat16" else None)
    model, tokenizer = rm.load_reward_model(place / "model"), rm.load_tokenizer(place / "model")
    chats = CHATS if tokenizer.chat_template else []
    return Export(
        base,
        {"directory": str(place / "model"), "texts": TEXTS, "chats": chats},
        {
            "ids": [base.encode(text) for text in TEXTS],
            "rendered": [base.apply_chat_template(chat) for chat in chats],
            "texts": rm.score(model, tokenizer, TEXTS),
            "chats": rm.score(model, tokenizer, [{"messages": chat} for chat in chats]),
            "printed": rm.score(model, tokenizer, SNIPPET if chats else SNIPPET[1:]),
        },
    )


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Export]:
    with jax.numpy_dtype_promotion("standard"):
        return {name: make(name, tmp_path_factory.mktemp("export")) for name in BASES}


@pytest.fixture(scope="module")
def in_version_4(exports) -> dict[str, dict[str, Any]]:
    """What the other version makes of all of them, in one process."""
    python = os.environ.get("RM_TRANSFORMERS4") or Path(__file__).parents[2] / ".venv-transformers4/bin/python"
    if not Path(python).exists():
        pytest.skip("needs transformers 4.57 in an environment of its own, .venv-transformers4 (see .ci/run)")
    jobs = json.dumps([export.job for export in exports.values()])
    script = Path(__file__).with_name("use_export.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, script], input=jobs, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(exports, json.loads(done.stdout.splitlines()[-1]), strict=True))


def assert_same(found: dict[str, Any], export: Export) -> None:
    """Ours to 1e-5 of the same weights in float64; PyTorch's float32 is as far off, depending on the CPU."""
    expected = export.expected
    assert found["ids"] == expected["ids"]
    assert found["rendered"] == expected["rendered"]
    assert found["first"] == found["printed"], "the card's lines, as they stand"
    for what in ("texts", "chats", "printed"):
        np.testing.assert_allclose(expected[what], found["exact"][what], rtol=0, atol=1e-5, err_msg=what)
        np.testing.assert_allclose(found[what], found["exact"][what], rtol=0, atol=2e-5, err_msg=what)
    np.testing.assert_allclose(found["pipeline"], found["exact"]["texts"], rtol=0, atol=2e-5, err_msg="pipeline")


@pytest.mark.parametrize("name", BASES)
def test_an_export_has_the_rewards_of_rm_in_transformers_5(name, exports):
    """By the card's own lines, and by a pipeline, which would put a sigmoid over the reward."""
    found = use(exports[name].job)
    assert found["version"].startswith("5.")
    assert_same(found, exports[name])


@pytest.mark.parametrize("name", BASES)
def test_an_export_has_the_rewards_of_rm_in_transformers_4(name, exports, in_version_4):
    assert in_version_4[name]["version"].startswith("4.57.")
    assert_same(in_version_4[name], exports[name])


def test_the_rewards_compared_here_differ_from_one_another(exports):
    """Equal ones would show nothing."""
    for name, export in exports.items():
        assert np.ptp(export.expected["texts"]) > 0.1, name
    names = ("template that asks for the date", "LlamaTokenizerFast")
    one, other = (exports[name].expected["chats"] for name in names)
    assert np.abs(one - other).max() > 1e-3


def test_a_template_is_told_the_date_of_training_wherever_it_is_rendered(exports):
    """It would be another text, with another reward, every day."""
    export = exports["template that asks for the date"]
    assert export.expected["rendered"][0].startswith("04 Mar 2025 <s>user: Name a TREE ")
    card = Path(export.job["directory"], "README.md").read_text(encoding="utf-8")
    assert "told that today is 2025-03-04. That date is written in the" in card


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_what_was_meant(name, exports):
    """Read as a plain Llama, it would give other rewards."""
    export = exports[name]
    model, tokenizer = (load(export.job["directory"]) for load in (rm.load_reward_model, rm.load_tokenizer))
    plain = dataclasses.replace(model.config, sliding_window=None, rope=Rope(theta=model.config.rope.theta))
    found = rm.score(dataclasses.replace(model, config=plain), tokenizer, TEXTS)
    assert np.abs(found - export.expected["texts"]).max() > 1e-3
