"""`config.json` of real Llama families, and the rotary frequencies of every type against the published formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rm
from rm.model.rotary import inverse_frequencies, rotary_table

COMMON = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "model_type": "llama", "use_cache": True}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_1 = COMMON | {  # no num_key_value_heads, no rope keys
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
LLAMA_2 = {name: value for name, value in LLAMA_1.items() if name not in ("pad_token_id", "max_sequence_length")} | {
    "max_position_embeddings": 4096,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
}
LLAMA_3 = LLAMA_2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_3_1 = LLAMA_3 | {
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": SCALING,
}
LLAMA_3_2 = LLAMA_3 | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_hidden_layers": 16,
    "rope_scaling": SCALING | {"factor": 32.0},
    "tie_word_embeddings": True,
}
TINY_LLAMA = LLAMA_2 | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "rope_theta": 10000.0,
}
SMOL_LM2 = COMMON | {
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
# As transformers 5 writes it: one object, `dtype`, null for what has its default.
NEWER = {name: value for name, value in LLAMA_3_2.items() if name not in ("rope_theta", "rope_scaling")} | {
    "dtype": "bfloat16",
    "pad_token_id": None,
    "rope_parameters": SCALING | {"factor": 32.0, "rope_theta": 500000.0},
}
NEWER_PLAIN = LLAMA_1 | {
    "head_dim": None,
    "num_key_value_heads": None,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
OLD_LINEAR = LLAMA_2 | {"rope_scaling": {"type": "linear", "factor": 4.0}}
OLD_DYNAMIC = LLAMA_2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}

LLAMA3_ROPE = rm.Rope(theta=5e5, type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
# kv heads, head size, positions, eps, tied, eos, pad, rope
FAMILIES = {
    "llama 1": (LLAMA_1, (32, 128, 2048, 1e-6, False, 2, 0, rm.Rope())),
    "llama 2": (LLAMA_2, (32, 128, 4096, 1e-5, False, 2, None, rm.Rope())),
    "llama 3": (LLAMA_3, (8, 128, 8192, 1e-5, False, 128001, None, rm.Rope(theta=5e5))),
    "llama 3.1": (LLAMA_3_1, (8, 128, 131072, 1e-5, False, (128001, 128008, 128009), None, LLAMA3_ROPE)),
    "llama 3.2": (
        LLAMA_3_2,
        (8, 64, 131072, 1e-5, True, 128001, None, dataclasses.replace(LLAMA3_ROPE, factor=32.0)),
    ),
    "tinyllama": (TINY_LLAMA, (4, 64, 2048, 1e-5, False, 2, None, rm.Rope())),
    "smollm2": (SMOL_LM2, (3, 64, 8192, 1e-5, True, 0, None, rm.Rope(theta=1e5))),
    "rope_parameters": (
        NEWER,
        (8, 64, 131072, 1e-5, True, 128001, None, dataclasses.replace(LLAMA3_ROPE, factor=32.0)),
    ),
    "rope_parameters, plain": (NEWER_PLAIN, (32, 128, 2048, 1e-6, False, 2, 0, rm.Rope())),
    "linear": (OLD_LINEAR, (32, 128, 4096, 1e-5, False, 2, None, rm.Rope(type="linear", factor=4.0))),
    "dynamic": (OLD_DYNAMIC, (32, 128, 4096, 1e-5, False, 2, None, rm.Rope(type="dynamic", factor=2.0))),
}
families = pytest.mark.parametrize(("hf", "expected"), FAMILIES.values(), ids=FAMILIES)
SAME_NAME = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SAME_NAME += ("initializer_range", "bos_token_id")


@families
def test_every_family_is_read(hf, expected):
    config = rm.LlamaConfig.from_hf(hf)
    found = (config.num_key_value_heads, config.head_dim, config.max_position_embeddings, config.rms_norm_eps)
    found += (config.tie_word_embeddings, config.eos_token_id, config.pad_token_id, config.rope)
    assert found == expected
    assert {name: getattr(config, name) for name in SAME_NAME} == {name: hf[name] for name in SAME_NAME}
    assert (config.attention_bias, config.mlp_bias) == (False, False)


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias"])
def test_biases_are_read(name):
    assert getattr(rm.LlamaConfig.from_hf(LLAMA_2 | {name: True}), name) is True


@families
def test_writing_and_reading_changes_nothing(hf, expected):
    config = rm.LlamaConfig.from_hf(hf)
    written = config.to_hf()
    assert rm.LlamaConfig.from_hf(written) == config
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    assert (written["num_labels"], written["model_type"], len(written["id2label"])) == (1, "llama", 1)


def test_the_newer_spelling_of_rope_wins_over_the_older():
    both = LLAMA_2 | {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 7e4, "rope_type": "linear", "factor": 2.0}}
    assert rm.LlamaConfig.from_hf(both).rope == rm.Rope(theta=7e4, type="linear", factor=2.0)


@pytest.mark.parametrize("name", ["rms_norm_eps", "initializer_range", "factor", "original_max_position_embeddings"])
def test_a_whole_number_of_more_than_32_bits_stands_for_a_float(name):
    """Found by an hour of fuzzing: JAX raised OverflowError where the weights were drawn."""
    config = rm.LlamaConfig.from_hf(
        COMMON
        | {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"rope_scaling": SCALING | {name: 2**64} if name in SCALING else None, name: 2**64}
    )
    model = rm.init_reward_model(config, key=jax.random.key(0))
    assert model.embed_tokens.shape == (8, 8)
    assert np.isfinite(inverse_frequencies(config, jnp.full((1, 1), 4, jnp.int32))).all()


def test_a_config_is_static_under_jit():
    """Equal configurations hash alike, so a second reading of the same file compiles nothing."""
    one, same = rm.LlamaConfig.from_hf(LLAMA_3_1), rm.LlamaConfig.from_hf(dict(LLAMA_3_1))
    assert one == same
    assert hash(one) == hash(same)
    traces = []

    def count(x, config):
        traces.append(config)
        return x * config.num_hidden_layers

    jitted = jax.jit(count, static_argnames="config")
    for config in (one, same):
        assert jitted(jnp.ones(1), config=config) == 32
    assert len(traces) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.vocab_size = 1


def plain(theta: float, size: int) -> np.ndarray:
    return theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)


def llama3(theta: float, size: int, factor: float) -> list[float]:
    """Llama 3.1's published scaling, frequency by frequency: keep short waves, stretch long ones, blend between."""
    out = []
    for frequency in plain(theta, size):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            out.append(frequency)
        elif wavelength > 8192 / 1.0:
            out.append(frequency / factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            out.append((1 - smooth) * frequency / factor + smooth * frequency)
    return out


def dynamic(length: int) -> np.ndarray:
    """NTK scaling of the base by the length, from the trained one (4096) on."""
    ratio = max(length, 4096) / 4096
    return plain(10000.0 * (2.0 * ratio - (2.0 - 1)) ** (128 / 126), 128)


@pytest.mark.parametrize(
    ("hf", "expected"),
    [
        pytest.param(LLAMA_1, plain(10000.0, 128), id="default"),
        pytest.param(SMOL_LM2, plain(100000.0, 64), id="default, another base"),
        pytest.param(OLD_LINEAR, plain(10000.0, 128) / 4, id="linear"),
        pytest.param(LLAMA_3_1, llama3(5e5, 128, 8.0), id="llama3"),
        pytest.param(LLAMA_3_2, llama3(5e5, 64, 32.0), id="llama3, small"),
        pytest.param(NEWER, llama3(5e5, 64, 32.0), id="llama3, newer spelling"),
        pytest.param(OLD_DYNAMIC, dynamic(12), id="dynamic, not stretched"),
    ],
)
def test_frequencies_equal_float64(hf, expected):
    found = inverse_frequencies(rm.LlamaConfig.from_hf(hf), jnp.full((1, 1), 12))
    np.testing.assert_allclose(found[0, 0], expected, rtol=3e-6)


def test_dynamic_frequencies_follow_each_sequences_length():
    lengths = [[1, 4096, 4097], [5000, 8192, 40000]]
    found = inverse_frequencies(rm.LlamaConfig.from_hf(OLD_DYNAMIC), jnp.array(lengths))
    expected = [[dynamic(length) for length in row] for row in lengths]
    np.testing.assert_allclose(found, expected, rtol=5e-6)


def test_the_rotary_table_holds_cosine_and_sine_of_position_times_frequency():
    positions = np.array([[0, 1, 2, 700], [5, 5, 0, 2047]])
    cos, sin = rotary_table(rm.LlamaConfig.from_hf(LLAMA_1), jnp.asarray(positions))
    angles = positions[..., None] * plain(10000.0, 128)
    np.testing.assert_allclose(cos, np.cos(angles), atol=3e-4)
    np.testing.assert_allclose(sin, np.sin(angles), atol=3e-4)
