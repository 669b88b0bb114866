"""Published reward models: a tiny random directory of each kind, and its rewards by PyTorch."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

import rm

from ..tiny import NAMED, SPECIAL, WORDS, write_tokenizer

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

EOS, CLS, CLS_ID = 2, "<|reserved_special_token_1|>", 128003
TEXTS = ["a b c", "d", "a b ab </s>", "b </s>"]
IDS = [[1, 3, 4, 5], [1, 6], [1, 3, 4, 7, EOS], [1, 4, EOS]]
BASE: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A form in which reward models are published."""

    head: torch.nn.Module
    name: str  # of the head's tensors
    architecture: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = "model."  # of the backbone's tensors
    more: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    beside: bool = False  # whether the head has a file of its own
    appended: int | None = None
    before_eos: bool = False  # whether the reward is read there
    family: str = "Llama"


def linear(labels: int = 1, *, bias: bool = False) -> torch.nn.Linear:
    return torch.nn.Linear(16, labels, bias=bias)


def mlp(width: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))


PADS_WITH_EOS = {"pad_token_id": EOS}
OPENRLHF = {"value_head_prefix": "score", "normalize_reward": True, "mean": 0.25, "std": 1.5, **PADS_WITH_EOS}
STATISTICS = {"normalizer.mean": torch.zeros(1), "normalizer.var": torch.ones(1), "normalizer.count": torch.ones(1)}
LM_HEAD = {"lm_head.weight": torch.randn(12, 16, generator=torch.Generator().manual_seed(3))}
ATHENE = {"vocab_size": CLS_ID + 1, "num_hidden_layers": 1}

KINDS = {
    "OpenRLHF": Kind(linear(), "score", "RewardModel", OPENRLHF),
    "OpenRLHF, older": Kind(linear(), "value_head", "RewardModel", PADS_WITH_EOS),
    "INF-ORM": Kind(mlp(16), "score", "INFORMForSequenceClassification", {"num_labels": 1}),
    "GRM": Kind(mlp(8), "v_head.summary", "LlamaForCausalLM", PADS_WITH_EOS, more=LM_HEAD),
    "LLaMA-Factory": Kind(linear(bias=True), "v_head.summary", "LlamaForCausalLM", more=LM_HEAD, beside=True),
    "Athene": Kind(linear(), "v_head", "AtheneForSequenceClassification", ATHENE, appended=CLS_ID),
    "a token of its own": Kind(linear(), "v_head", "RewardModel", {"reward_token_id": 9}, appended=9),
    "Starling": Kind(linear(), "v_head", "LlamaForSequenceClassification", prefix="transformer."),
    "UltraRM": Kind(linear(), "regression_head", "LlamaRewardModel"),
    "Eurus": Kind(linear(), "regression_head", "EurusRewardModel", family="Mistral"),
    "Skywork-V2": Kind(linear(), "score", "Qwen3ForSequenceClassification", {"num_labels": 1}, family="Qwen3"),
    "Beaver": Kind(linear(bias=True), "score_head", "LlamaModelForScore", {"do_normalize": False}, more=STATISTICS),
    "a classifier": Kind(linear(), "score", "LlamaForSequenceClassification", PADS_WITH_EOS, before_eos=True),
}


def write(path: Path, kind: Kind, backbone: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    if kind.appended == CLS_ID:
        write_tokenizer(path, words={**{word: i for i, word in enumerate(WORDS)}, CLS: CLS_ID}, special=(*SPECIAL, CLS))
    else:
        write_tokenizer(path, NAMED | ({"pad_token": "</s>"} if kind.config.get("pad_token_id") == EOS else {}))
    head = {f"{kind.name}.{name}": value for name, value in kind.head.state_dict().items()}
    tensors = {kind.prefix + name: value for name, value in backbone.state_dict().items()} | kind.more
    if kind.beside:
        save_file(head, path / "value_head.safetensors")
    save_file(tensors | ({} if kind.beside else head), path / "model.safetensors", metadata={"format": "pt"})
    config = backbone.config.to_diff_dict() | {"architectures": [kind.architecture]} | kind.config
    (path / "config.json").write_text(json.dumps(config))


def expected_rewards(kind: Kind, backbone: torch.nn.Module) -> np.ndarray:
    """The head by hand on the last hidden states of `transformers`' own backbone."""
    rewards = []
    for ids in IDS:
        ids = ids if kind.appended is None else [*ids, kind.appended]
        place = -1 - (kind.before_eos and ids[-1] == EOS)
        with torch.no_grad():
            rewards.append(kind.head(backbone(torch.tensor([ids])).last_hidden_state[0, place]).numpy())
    return np.stack(rewards)


def make_backbone(family: str = "Llama", **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**BASE | changes)
    return getattr(transformers, f"{family}Model")(config).eval()


@pytest.mark.parametrize("name", KINDS)
def test_rewards_are_those_of_pytorch(name, tmp_path):
    kind = KINDS[name]
    sizes = {key: value for key, value in kind.config.items() if key in BASE}
    backbone = make_backbone(kind.family, **sizes)
    write(tmp_path, kind, backbone)
    model, tokenizer = rm.match_tokenizer(rm.load_reward_model(tmp_path), rm.load_tokenizer(tmp_path))
    expected = expected_rewards(kind, backbone)[:, 0]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(rm.score(model, tokenizer, TEXTS), expected, atol=1e-5)
    if name == "OpenRLHF":
        scaled = rm.normalize(rm.score(model, tokenizer, TEXTS), rm.load_calibration(tmp_path))
        np.testing.assert_allclose(scaled, (expected - 0.25) / 1.5, atol=1e-5)


def test_the_first_logit_of_the_next_token_is_the_reward_where_that_is_asked_for(tmp_path):
    """Nemotron-70B-Reward-HF."""
    torch.manual_seed(0)
    lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE)).eval()
    lm.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    model = rm.load_reward_model(tmp_path, head="lm_head:0")
    with torch.no_grad():
        expected = [lm(torch.tensor([ids])).logits[0, -1, 0].item() for ids in IDS]
    found = rm.score(*rm.match_tokenizer(model, rm.load_tokenizer(tmp_path)), TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_several_labels_are_weighed(tmp_path):
    """HelpSteer's attributes."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**BASE, num_labels=5)
    theirs = transformers.LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    weights = [0.65, 0.8, 0.45, 0.55, -0.4]
    model = rm.load_reward_model(tmp_path, label_weights=weights)
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits[0].numpy() @ weights for ids in IDS]
    found = rm.score(*rm.match_tokenizer(model, rm.load_tokenizer(tmp_path)), TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_token_classifier_of_one_label_is_read_at_the_last_token(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.LlamaForTokenClassification(transformers.LlamaConfig(**BASE, num_labels=1)).eval()
    torch.nn.init.constant_(theirs.score.bias, 0.7)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits[0, -1, 0].item() for ids in IDS]
    found = rm.score(*rm.match_tokenizer(rm.load_reward_model(tmp_path), rm.load_tokenizer(tmp_path)), TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("form", ["bias", "labels"])
def test_the_card_of_an_export_with_another_head_gives_the_rewards_of_rm(form, tmp_path):
    """Its own lines, in `transformers`."""
    head = linear(bias=True) if form == "bias" else linear(3)
    kind = Kind(head, "score", "RewardModel", {"reward_token_id": 9})
    write(tmp_path / "in", kind, make_backbone())
    model, tokenizer = rm.match_tokenizer(rm.load_reward_model(tmp_path / "in"), rm.load_tokenizer(tmp_path / "in"))
    rm.save_reward_model(tmp_path / "out", model, tokenizer)
    code = (tmp_path / "out/README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code.replace("PATH_OR_HUB_ID", str(tmp_path / "out")), names)
    found = np.array([names["reward"](text + " ") for text in TEXTS]).reshape(4, -1)
    np.testing.assert_allclose(
        found, expected_rewards(dataclasses.replace(kind, appended=9), make_backbone()), atol=1e-5
    )
