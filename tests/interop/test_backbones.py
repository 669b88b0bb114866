"""Mistral, Qwen 2 and Qwen 3, sliding windows, `yarn` and `longrope` against `transformers`, live."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

import rm
from rm.evaluation.scoring import score_sequences

from .test_transformers import BASE, assert_equal, randomise, rope, sequences

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 3.0, 5.0]} | YARN
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
CONFIGS = {
    "mistral": {"model_type": "mistral", "sliding_window": 6},
    "mistral, no window": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    "mistral, longrope": {
        "model_type": "mistral",
        "sliding_window": 12,
        **rope("longrope", **LONGROPE | {"factor": None}),
    },
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6},  # in no layer
    "qwen2, yarn, windows": {"model_type": "qwen2", **WINDOWS, **rope("yarn", 100.0, **YARN)},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True, "pad_token_id": None},
    "qwen3, longrope, biases, windows": {
        "model_type": "qwen3",
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention"] * 3,
        **rope("longrope", **LONGROPE),
    },
    "llama, yarn by mscale": {"model_type": "llama", **rope("yarn", 100.0, mscale=0.7, mscale_all_dim=0.3, **YARN)},
    "llama, yarn, not truncated": {
        "model_type": "llama",
        **rope("yarn", 100.0, truncate=False, beta_fast=2.0, beta_slow=0.3, attention_factor=0.8, **YARN),
    },
    "llama, longrope": {"model_type": "llama", **rope("longrope", **LONGROPE | {"attention_factor": 1.3})},
}
GATE = ("mistral", "qwen2, yarn, windows", "qwen3, longrope, biases, windows")  # between them, every switch
configs = pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name in GATE else pytest.mark.long)
        for name, changes in CONFIGS.items()
    ],
)


def make(changes: dict, kind=transformers.AutoModelForSequenceClassification, **more):
    torch.manual_seed(0)
    model = kind.from_config(transformers.AutoConfig.for_model(**BASE | changes | more)).eval()
    randomise(model)
    return model


@configs
def test_rewards_and_gradients_equal_those_of_transformers(changes, tmp_path):
    assert_equal(make(changes, num_labels=1), tmp_path / "model")


@configs
def test_a_causal_model_has_the_hidden_states_of_transformers(changes, tmp_path):
    """Of which a head of any weights then makes the same rewards."""
    theirs = make(changes, transformers.AutoModelForCausalLM)
    theirs.save_pretrained(tmp_path)
    ours = rm.load_reward_model(tmp_path, key=jax.random.key(0), head_std=0.3)
    with torch.no_grad():
        hidden = np.stack([theirs.model(torch.tensor([ids])).last_hidden_state[0, -1].numpy() for ids in sequences()])
    np.testing.assert_allclose(score_sequences(ours, sequences()), hidden @ np.asarray(ours.score[0]), atol=1e-4)
