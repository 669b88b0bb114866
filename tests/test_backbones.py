"""Backbones other than Llama: what `config.json` says of them, and their rewards against a forward in float64 NumPy."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rm
from rm.data.comparisons import flatten
from rm.devices.platform import compiling_for
from rm.evaluation.scoring import score_sequences
from rm.model.attention import Marks, shared_prefix_attention, visible
from rm.model.attention_choice import Inputs, choose_attention
from rm.model.block_attention import block_attention, find_blocks
from rm.model.presets import PRESETS
from rm.model.rotary import inverse_frequencies, rotary_table
from rm.model.tensor_names import leaf_name, tensor_names
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.planning.flops import count_work
from rm.training.optimizers import decay_mask

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
YARN = rm.Rope(theta=100.0, type="yarn", factor=4.0, original_max_position_embeddings=4096)
LONGROPE = rm.Rope(
    type="longrope",
    factor=4.0,
    original_max_position_embeddings=12,
    short_factor=(1.0, 1.1, 1.3, 1.7),
    long_factor=(1.0, 2.0, 3.0, 4.0),
)
BACKBONES = {
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {"model_type": "qwen2", "rope": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True, "sliding_window": 7, "rope": LONGROPE},
}
backbones = pytest.mark.parametrize("name", BACKBONES)


def make(name: str, **changes) -> rm.RewardModel:
    """A model of a backbone with norms away from 1 and biases away from 0."""
    config = rm.LlamaConfig(**SIZES | BACKBONES[name] | changes)
    model = rm.init_reward_model(config, key=jax.random.key(0), head_std=0.5)
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        if "norm" in leaf_name(path) or "bias" in leaf_name(path)
        else leaf
        for key, (path, leaf) in zip(keys, leaves, strict=True)
    )


# A forward of one sequence in float64, by the tensors' names.


def frequencies(rope: rm.Rope, size: int, length: int) -> np.ndarray:
    """The papers' formulas, one frequency at a time."""
    out = []
    for i in range(size // 2):
        frequency = rope.theta ** (-2 * i / size)
        if rope.type == "longrope":
            longer = length > rope.original_max_position_embeddings
            frequency /= (rope.long_factor if longer else rope.short_factor)[i]
        if rope.type == "yarn":

            def index(turns):  # at which a frequency makes so many turns in the trained length
                length = rope.original_max_position_embeddings
                return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

            low, high = index(rope.beta_fast), index(rope.beta_slow)
            if rope.truncate:
                low, high = math.floor(low), math.ceil(high)
            divided = min(max((i - max(low, 0)) / (min(high, size - 1) - max(low, 0)), 0), 1)
            frequency = divided * frequency / rope.factor + (1 - divided) * frequency
        out.append(frequency)
    return np.array(out)


def amplitude(rope: rm.Rope) -> float:
    ratio = math.log(rope.factor)
    longrope = math.sqrt(1 + ratio / math.log(rope.original_max_position_embeddings))
    return {"yarn": 0.1 * ratio + 1, "longrope": longrope}.get(rope.type, 1.0)


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None) -> np.ndarray:
    """Of one head: `[tokens, size]` each."""
    scores, (i, j) = q @ k.T / math.sqrt(q.shape[1]), np.indices((len(q), len(k)))
    scores[(j > i) | (i - j >= (window or len(q)))] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


def reward(model: rm.RewardModel, ids: list[int]) -> float:
    config, t = model.config, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        name = leaf_name(path)
        layers = leaf if name.startswith("blocks.") else [leaf]
        t |= dict(zip(tensor_names(name, config), np.asarray(layers, np.float64), strict=True))
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    angles = np.arange(len(ids))[:, None] * frequencies(config.rope, size, len(ids))
    turn = amplitude(config.rope) * np.exp(1j * angles)

    def rotated(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        x = x if weight is None else norm(x, weight)
        z = (x[:, : size // 2] + 1j * x[:, size // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=1)

    x = t["model.embed_tokens.weight"][ids]
    for n in range(config.num_hidden_layers):
        own = {name.removeprefix(f"model.layers.{n}."): value for name, value in t.items()}

        def linear(name: str, x: np.ndarray, own=own) -> np.ndarray:
            return x @ own[f"{name}.weight"].T + own.get(f"{name}.bias", 0.0)

        h = norm(x, own["input_layernorm.weight"])
        q, k, v = (linear(f"self_attn.{name}_proj", h).reshape(len(ids), -1, size) for name in "qkv")
        q_norm, k_norm = (own.get(f"self_attn.{name}_norm.weight") for name in "qk")
        out = [
            attention(rotated(q[:, i], q_norm), rotated(k[:, j], k_norm), v[:, j], config.sliding_window)
            for i in range(heads)
            for j in [i * groups // heads]
        ]
        x = x + linear("self_attn.o_proj", np.concatenate(out, axis=1))
        h = norm(x, own["post_attention_layernorm.weight"])
        gate = linear("mlp.gate_proj", h)
        x = x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", h))
    return float(norm(x[-1], t["model.norm.weight"]) @ t["score.weight"][0])


def sequences() -> list[list[int]]:
    """Pairs with a common prompt, within and beyond every window and trained length."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> list[int]:
        return rng.integers(1, SIZES["vocab_size"], n).tolist()

    prompts = [ids(n) for n in (6, 15, 3, 0)]
    return [
        prompt + ids(n) for prompt, pair in zip(prompts, ((4, 2), (9, 1), (5, 30), (1, 20)), strict=True) for n in pair
    ]


@backbones
def test_packed_rewards_equal_those_of_each_sequence_in_float64(name):
    """A bias, a norm, a window or a rotation of another model would be taken, or a neighbour in the row be seen."""
    model, ids = make(name), sequences()
    expected = [reward(model, each) for each in ids]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(score_sequences(model, ids), expected, atol=2e-5)


def test_every_switch_changes_the_reward():
    """Else the comparison above would hold for a model that ignores it."""
    model, (ids, *_) = make("qwen3"), [sequences()[5]]
    plain = {"sliding_window": None, "rope": rm.Rope()}
    for name, value in plain.items():
        other = dataclasses.replace(model, config=dataclasses.replace(model.config, **{name: value}))
        assert abs(reward(other, ids) - reward(model, ids)) > 1e-3, name
    yarn = make("qwen2")
    other = dataclasses.replace(yarn, config=dataclasses.replace(yarn.config, rope=rm.Rope()))
    assert abs(reward(other, ids) - reward(yarn, ids)) > 1e-3


# Sliding windows.


def rows(layout: tuple[int, ...]) -> rm.PreferenceBatch:
    comparisons = flatten([sequences()[i : i + 2] for i in (0, 2, 4, 6)], [0.0] * 4, rm.LlamaConfig(**SIZES))
    (batch,) = pack(comparisons, range(4), [RowShape(rows=1, slots=4, regions=layout)])
    return batch


@pytest.mark.parametrize("layout", [(128,), (32, 64, 64)], ids=["whole", "regions"])
@pytest.mark.parametrize("window", [1, 4, 11, None])
def test_a_window_counts_positions_within_a_sequence(layout, window):
    """Counted along the row, a response would lose the end of its prompt, which stands far before it."""
    batch = rows(layout)
    mark = Marks(*map(jnp.asarray, (batch.segments, batch.parts, batch.positions)))
    seen = np.asarray(visible(mark, mark, window))[0]
    for i in np.flatnonzero(batch.segments[0]):
        segment, part, position = (each[0, i] for each in (batch.segments, batch.parts, batch.positions))
        of_sequence = (batch.segments[0] == segment) & np.isin(batch.parts[0], (0, part))
        wanted = range(max(0, position + 1 - (window or 99)), position + 1)  # one key at each of these positions
        assert sorted(batch.positions[0][seen[i]]) == list(wanted)
        assert of_sequence[seen[i]].all()


@pytest.mark.parametrize("window", [1, 5, 70])
def test_attention_in_blocks_has_the_windows_outputs_and_gradients(window):
    """Blocks are skipped, and a query that sees nothing of a block must not take anything from it."""
    rng = np.random.default_rng(1)
    lengths, starts = (90, 40, 30, 20, 60, 16), (0, 90, 90, 0, 20, 0)
    segments, parts = (np.repeat(of, lengths)[None] for of in ((1, 1, 1, 2, 2, 0), (0, 1, 2, 0, 1, 0)))
    positions = np.concatenate([start + np.arange(n) for start, n in zip(starts, lengths, strict=True)])[None]
    marks = Marks(*(jnp.asarray(each, jnp.int32) for each in (segments, parts, positions)))
    q, k, v, weight = (
        jnp.asarray(rng.normal(size=(1, 256, *heads, 8)), jnp.float32) for heads in [(2, 2), (2,), (2,), (2, 2)]
    )
    real = jnp.asarray(segments > 0)[..., None, None, None]

    def both(form):
        loss = lambda q, k, v: (jnp.where(real, form(q, k, v), 0) * weight).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    blocks = find_blocks(marks, marks, window)
    found = both(lambda q, k, v: block_attention(q, k, v, blocks))
    expected = both(lambda q, k, v: shared_prefix_attention(q, k, v, marks, marks, (256,), window))
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), found, expected)


def test_the_cost_of_blocks_follows_the_window():
    """Blocks outside the window would be computed and thrown away, and long rows cost what they do without one."""
    length, (B, C) = 1024, (16, 64)
    marks = Marks(
        *(jnp.asarray(each, jnp.int32)[None] for each in (np.ones(length), np.zeros(length), np.arange(length)))
    )
    without, with_window = (np.asarray(find_blocks(marks, marks, window).counts) for window in (None, C + 1))
    assert without.tolist() == list(range(1, B + 1))
    assert with_window.tolist() == [1] + [2] * (B - 1)  # a block of 64 and the 64 tokens before each of its queries


def test_the_kernel_for_tpus_is_refused_where_a_window_would_matter():
    """It would compute attention without the window; where no sequence is longer it is exact, and fast."""
    with compiling_for("tpu"):
        for window, regions in ((32, (16, 8, 16)), (100, (64, 32, 36))):
            assert choose_attention("splash", Inputs(regions, 64, jnp.bfloat16, window=window)) == "splash"
            with pytest.raises(rm.ConfigError, match=f"no sliding window.* the model's of {window - 1}; use 'auto' or"):
                choose_attention("splash", Inputs(regions, 64, jnp.bfloat16, window=window - 1))
        assert choose_attention("auto", Inputs((16, 8, 16), 64, jnp.bfloat16, window=8)) == "xla"


def test_work_counts_the_pairs_within_the_window():
    lengths, window, pairs, at_ends = np.array([[5, 3, 9], [0, 4, 2]]), 4, 0, 0
    for prefix, *own in lengths.tolist():
        pairs += sum(min(p + 1, window) for p in range(prefix))
        pairs += sum(min(p + 1, window) for n in own for p in range(prefix, prefix + n))
        at_ends += sum(min(prefix + n, window) for n in own)
    work = count_work(lengths, window)
    assert (work.pairs, work.reward_pairs) == (pairs, at_ends)
    assert count_work(lengths, 99) == count_work(lengths)


# On a mesh, in training, in plans.


def loss(model, batch, mesh=None):
    rewards = rm.rewards(model, batch, rm.Compute(mesh=mesh))
    return rm.pairwise_loss(rewards[..., 0], rewards[..., 1]), rewards


@pytest.mark.optax
@pytest.mark.long
@pytest.mark.parametrize(
    "sizes", [pytest.param({"fsdp": 2, "tensor": 2}, marks=pytest.mark.gate), {"context": 4}], ids=str
)
def test_a_mesh_of_four_changes_no_gradient(sizes):
    """A head's norm is on every device, whose heads each give a part of its gradient."""
    model, ids = make("qwen3"), sequences()
    comparisons = flatten([ids[i : i + 2] for i in (0, 2, 4, 6)], [0.0] * 4, model.config)
    (batch,) = pack(comparisons, range(4), [RowShape(rows=4, slots=1, regions=(64,))])
    expected = jax.jit(partial(rm.accumulate, None, objective=loss))(model, batch)
    mesh = rm.make_mesh(**sizes, devices=jax.devices()[:4])
    on_mesh = jax.jit(partial(rm.accumulate, None, objective=partial(loss, mesh=mesh)))
    found = on_mesh(rm.place_model(model, mesh), rm.place_batch(batch, mesh))
    for (path, each), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = np.linalg.norm(other)
        assert np.linalg.norm(np.asarray(each) - other) <= 1e-5 * scale + 1e-7, leaf_name(path)


def test_norms_and_biases_are_kept_whole_and_do_not_decay():
    """A decayed norm shrinks to nothing; a split one would scale other elements of a head."""
    model, mesh = make("qwen3"), rm.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    decays, specs = decay_mask(model).blocks, rm.partition_specs(model, mesh).blocks
    assert (decays.q_norm, decays.k_norm, decays.q_proj.bias, decays.q_proj.weight) == (False, False, False, True)
    assert (specs.q_norm, specs.k_norm) == (P(), P())
    assert specs.k_proj.bias == P(None, ("tensor",))
    assert (make("qwen2").blocks.o_proj.bias, make("mistral").blocks.q_proj.bias) == (None, None)


# config.json.

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LONG = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
QWEN2 = {name: value for name, value in QWEN3.items() if name not in ("head_dim", "attention_bias")} | {
    "hidden_size": 3584,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
}
MISTRAL = {
    name: QWEN3[name] for name in ("hidden_act", "hidden_size", "num_attention_heads", "num_key_value_heads")
} | {
    "model_type": "mistral",
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "vocab_size": 32000,
}


def read(hf: dict, **changes) -> rm.LlamaConfig:
    return rm.LlamaConfig.from_hf({name: value for name, value in (hf | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("hf", "expected"),
    [
        pytest.param(QWEN3, PRESETS["qwen3-8b"], id="qwen3"),
        pytest.param(
            QWEN2 | {"rope_scaling": LONG},
            {"head_dim": 128, "attention_bias": False, "sliding_window": None}
            | {"rope": rm.Rope(theta=1e6, type="yarn", factor=4.0, original_max_position_embeddings=32768)},
            id="qwen2, yarn",
        ),
        pytest.param(MISTRAL, PRESETS["mistral-7b"], id="mistral"),
        pytest.param(MISTRAL | {"sliding_window": None}, {"sliding_window": None}, id="mistral without a window"),
        pytest.param(MISTRAL | {"sliding_window": ...}, {"sliding_window": 4096}, id="mistral's default"),
        pytest.param(
            MISTRAL | {"num_key_value_heads": ..., "max_position_embeddings": ..., "attention_bias": True},
            {"num_key_value_heads": 8, "max_position_embeddings": 131072, "attention_bias": False},
            id="mistral's defaults",
        ),
        pytest.param(QWEN3 | {"head_dim": ...}, {"head_dim": 128}, id="qwen3's head_dim"),
        pytest.param(
            QWEN2 | {"use_sliding_window": True, "max_window_layers": 0}, {"sliding_window": 131072}, id="all layers"
        ),
        pytest.param(QWEN2 | {"use_sliding_window": True}, {"sliding_window": None}, id="no layer"),
        pytest.param(
            QWEN3 | {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention"] * 36},
            {"sliding_window": 9},
            id="layer_types",
        ),
    ],
)
def test_every_family_is_read_and_written(hf, expected):
    config = read(hf)
    wanted = expected if isinstance(expected, dict) else dataclasses.asdict(expected) | {"rope": expected.rope}
    tokens = ("bos_token_id", "eos_token_id")
    assert {name: getattr(config, name) for name in wanted if name not in tokens} == {
        name: value for name, value in wanted.items() if name not in tokens
    }
    written = config.to_hf()
    assert rm.LlamaConfig.from_hf(written) == config
    assert written["architectures"] == [f"{hf['model_type'].capitalize()}ForSequenceClassification"]


SOME = ["full_attention"] * 30 + ["sliding_attention"] * 6
SCALED = {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


@pytest.mark.parametrize(
    ("hf", "expected"),
    [
        (QWEN3 | {"model_type": "gemma2"}, "model_type must be one of llama, mistral, qwen2, qwen3; found 'gemma2'"),
        (
            QWEN3 | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 30},
            "a sliding window must hold in all layers or in none, found 6 of 36 (layer_types, max_window_layers)",
        ),
        (QWEN3 | {"use_sliding_window": True, "sliding_window": 64, "layer_types": SOME}, "found 6 of 36"),
        (QWEN3 | {"layer_types": ["sliding_attention"] * 36}, "layer_types contradict"),
        (MISTRAL | {"layer_types": ["full_attention"] * 32}, "layer_types contradict"),
        (QWEN3 | {"layer_types": ["chunked_attention"] * 36}, "layer_types must list 36 of"),
        (QWEN3 | {"layer_types": ["full_attention"]}, "layer_types must list 36 of"),
        (QWEN3 | {"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window must be at least 1 token, found 0"),
        (MISTRAL | {"sliding_window": "4096"}, "sliding_window must be a whole number"),
        (
            QWEN3 | {"rope_scaling": {"rope_type": "yarn", "factor": -4}},
            "the number 'factor', greater than 0; found -4",
        ),
        (
            QWEN3 | {"rope_scaling": LONG | {"beta_fast": 0}},
            "'yarn' needs the number 'beta_fast', greater than 0; found 0",
        ),
        (QWEN3 | {"rope_scaling": LONG | {"truncate": 1}}, "'yarn' needs true or false for 'truncate'; found 1"),
        (QWEN3 | {"rope_scaling": LONG | {"original_max_position_embeddings": 0.5}}, "of at least 1, found 0"),
        (QWEN3 | {"rope_scaling": LONG, "rope_theta": 1}, "'yarn' needs another rope_theta than 1"),
        (
            QWEN3 | {"rope_scaling": SCALED | {"short_factor": [1.0]}},
            "short_factor must have head_dim / 2 = 64 numbers, found 1",
        ),
        (
            QWEN3 | {"rope_scaling": SCALED | {"long_factor": "1"}},
            "needs the list 'long_factor' of numbers greater than 0",
        ),
        (QWEN3 | {"rope_scaling": SCALED, "original_max_position_embeddings": 1}, "of at least 2"),
        (
            QWEN3 | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "same for all layers, found some for 'full_att",
        ),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(hf, expected):
    with pytest.raises(rm.ConfigError) as caught:
        rm.LlamaConfig.from_hf(hf, source="x/config.json")
    assert str(caught.value).startswith("x/config.json: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"sliding_window": 4}, {"model_type": "qwen2", "attention_bias": True}, {"model_type": "t5"}]
)
def test_a_field_of_another_family_is_refused(changes):
    """It would be in the forward, and not in the export."""
    with pytest.raises(rm.ConfigError, match=r"(sliding_window|attention_bias) is not|model_type must be"):
        rm.LlamaConfig(**SIZES | changes)


# Rotary embeddings.


@pytest.mark.parametrize("changes", [{}, {"truncate": False}, {"beta_slow": 2.0, "beta_fast": 2.5}], ids=str)
def test_yarn_frequencies_equal_float64(changes):
    rope = rm.Rope(theta=1e6, type="yarn", factor=4.0, original_max_position_embeddings=32768, **changes)
    config = dataclasses.replace(PRESETS["qwen3-8b"], rope=rope)
    found = inverse_frequencies(config, jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(found[0, 0], frequencies(rope, 128, 0), rtol=5e-6)
    kept, divided = found[0, 0, 0], found[0, 0, -1]
    np.testing.assert_allclose([kept, divided], [1.0, 1e6 ** (-126 / 128) / 4], rtol=5e-6)


def test_longrope_takes_the_long_factors_in_sequences_longer_than_the_trained_length():
    config = rm.LlamaConfig(**SIZES | {"rope": LONGROPE})
    lengths = np.array([[1, 12], [13, 40]])
    expected = [[frequencies(LONGROPE, 8, length) for length in row] for row in lengths]
    np.testing.assert_allclose(inverse_frequencies(config, jnp.asarray(lengths)), expected, rtol=2e-6)
    cos, sin = rotary_table(config, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32))
    np.testing.assert_allclose(cos, np.full((1, 1, 4), math.sqrt(1 + math.log(4) / math.log(12))), rtol=1e-6)
    assert not sin.any()


@pytest.mark.parametrize(
    ("scaling", "beside", "expected"),
    [  # worked by hand; max_position_embeddings is 40960
        (LONG, {}, (4.0, 32768, 0.1 * math.log(4) + 1)),
        (LONG | {"attention_factor": 0.7}, {}, (4.0, 32768, 0.7)),
        (
            LONG | {"mscale": 2.0, "mscale_all_dim": 1.0},
            {},
            (4.0, 32768, (1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4))),
        ),
        (LONG | {"factor": None}, {}, (1.25, 32768, 0.1 * math.log(1.25) + 1)),
        ({"rope_type": "yarn", "factor": 2.0}, {}, (2.0, 40960, 0.1 * math.log(2) + 1)),
        (LONG, {"original_max_position_embeddings": 4096}, (4.0, 4096, 0.1 * math.log(4) + 1)),
        (
            SCALED,
            {"original_max_position_embeddings": 4096},
            (10.0, 4096, math.sqrt(1 + math.log(10) / math.log(4096))),
        ),
        (SCALED | {"factor": 0.5}, {}, (0.5, 40960, 1.0)),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_missing_factors_are_inferred_as_in_transformers(scaling, beside, expected, key):
    config = read(QWEN3, **{key: scaling}, **beside)
    rope = config.rope
    assert (rope.factor, rope.original_max_position_embeddings, rope.theta) == (*expected[:2], 1e6)
    assert rope.amplitude == pytest.approx(expected[2], rel=1e-12)
    assert rm.LlamaConfig.from_hf(config.to_hf()) == config


CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
MISTRALS = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"),
        (MISTRALS, "{bos} [INST] Hi [/INST] Hello{eos}"),
    ],
    ids=["chatml", "mistral"],
)
def test_the_families_forms_of_chat_templates_render(loaded, template, expected):
    tokenizer = loaded[1]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    found = tokenizer.apply_chat_template(chat, chat_template=template)
    assert found == expected.format(bos=tokenizer.bos_token or "", eos=tokenizer.eos_token)
    if template is MISTRALS:
        with pytest.raises(rm.TokenizerError, match="roles must alternate"):
            tokenizer.apply_chat_template(chat[1:], chat_template=template)


@pytest.mark.parametrize(("name", "lines"), [("qwen2", 1), ("mistral", 0)])
def test_an_export_of_which_transformers_would_make_other_tokens_says_so(loaded, tmp_path, caplog, name, lines):
    """Its rewards there would be those of other texts."""
    model = make(name, vocab_size=loaded[0].config.vocab_size)
    rm.save_reward_model(tmp_path / "model", model, loaded[1])
    assert len([line for line in caplog.messages if "takes Qwen2Tokenizer for every qwen2 model" in line]) == lines
