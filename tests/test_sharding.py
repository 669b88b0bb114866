"""A model on a mesh of devices: what it computes, what each device keeps, and what is refused."""

import contextlib
import dataclasses
import importlib
import itertools
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rm
from rm.commands.options import choose_mesh
from rm.data.comparisons import flatten
from rm.devices.mesh import AXES, parse_mesh
from rm.evaluation.scoring import METRICS
from rm.model.sharding import place_batch, place_model
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack

pytestmark = pytest.mark.optax

CONFIG = rm.LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=16,
    num_key_value_heads=8,
    attention_bias=True,
    mlp_bias=True,
    initializer_range=0.2,
)
SHAPES = {"whole": RowShape(rows=8, slots=2, regions=(96,)), "regions": RowShape(rows=8, slots=2, regions=(32, 32, 32))}
GATE = {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}  # the mesh on which every change is tested
MESHES = [
    dict(zip(AXES, sizes, strict=True)) for sizes in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(sizes) == 8
]


def name_of(sizes: dict[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)


@pytest.fixture(scope="module")
def model():
    return rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.5)


@pytest.fixture(scope="module")
def comparisons():
    rng = np.random.default_rng(0)
    ids = [[rng.integers(1, 61, n).tolist() for n in rng.integers(2, 12, 2)] for _ in range(16)]
    return flatten(ids, rng.normal(size=16).tolist(), CONFIG)


def one_batch(comparisons, layout: str) -> rm.PreferenceBatch:
    (batch,) = pack(comparisons, range(16), [SHAPES[layout]])
    return batch


def objective(model, batch, **options):
    rewards = rm.rewards(model, batch, rm.Compute(**options))
    chosen, rejected = rewards[..., 0], rewards[..., 1]
    return rm.pairwise_loss(chosen, rejected, batch.margin) + 0.1 * rm.centering_penalty(chosen, rejected), rewards


def assert_close(tree, reference, relative: float) -> None:
    """Every leaf, in its own norm."""
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True
    ):
        difference = np.linalg.norm(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
        assert difference <= relative * np.linalg.norm(np.asarray(expected, np.float64)), path


def twenty_updates(model, batch, traces: list, mesh=None) -> rm.TrainState:
    def traced(model, batch):
        traces.append(1)
        return objective(model, batch, mesh=mesh)

    optimizer = rm.adamw(rm.learning_rate_schedule("linear", peak=1e-3, steps=20), weight_decay=0.1)
    state, step = rm.init_state(model, optimizer), rm.jit_update(traced, optimizer)
    for _ in range(20):
        state, _ = jax.block_until_ready(step(state, [batch]))  # no queue of updates on devices that share a core
    return state


@pytest.fixture(scope="module")
def alone(model, comparisons):
    """The state after twenty updates on one device."""
    return twenty_updates(jax.tree.map(jnp.copy, model), one_batch(comparisons, "whole"), [])


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes", [pytest.param(m, marks=[pytest.mark.gate] * (m == GATE), id=name_of(m)) for m in MESHES]
)
def test_twenty_updates_on_a_mesh_equal_those_on_one_device(model, comparisons, alone, sizes):
    """A collective that is missing, doubled or transposed wrongly changes a gradient; a second trace costs minutes."""
    mesh, traces = rm.make_mesh(**sizes), []
    placed = rm.place_model(jax.tree.map(jnp.copy, model), mesh)
    before = jax.tree.map(lambda leaf: leaf.sharding, placed)
    state = twenty_updates(placed, rm.place_batch(one_batch(comparisons, "whole"), mesh), traces, mesh)
    assert len(traces) == 1
    assert_close(state, alone, 1e-4)
    kept = [state.model, *(part for part in jax.tree.leaves(state.opt_state, is_leaf=is_model) if is_model(part))]
    assert len(kept) == 3, "the model and two moments"
    for part in kept:
        for leaf, sharding in zip(jax.tree.leaves(part), jax.tree.leaves(before), strict=True):
            assert leaf.sharding == sharding


@pytest.mark.long
@pytest.mark.parametrize("sizes", [None, {"fsdp": 8}], ids=["alone", "fsdp=8"])
def test_moments_kept_on_the_host_change_no_step_and_stay_there(comparisons, sizes):
    """They would come back to the device with the first update, or be left out of the computation."""
    # without biases: they start at zero, so that three steps of Adam leave of them little but the gradient's rounding
    config = dataclasses.replace(CONFIG, attention_bias=False, mlp_bias=False)
    model = rm.init_reward_model(config, key=jax.random.key(0), head_std=0.5)
    mesh = None if sizes is None else rm.make_mesh(**sizes)
    batch, states = one_batch(comparisons, "whole"), []
    for offload in (False, True):
        own = jax.tree.map(jnp.copy, model)
        optimizer = rm.make_optimizer("adamw", 1e-3, weight_decay=0.1, offload=offload)
        state = rm.init_state(own if mesh is None else rm.place_model(own, mesh), optimizer)
        step = rm.jit_update(partial(objective, mesh=mesh), optimizer)
        for _ in range(3):
            state, _ = step(state, [batch if mesh is None else rm.place_batch(batch, mesh)])
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        assert {leaf.sharding.memory_kind for leaf in moments} == {"pinned_host" if offload else "device"}
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.model)} == {"device"}
        states.append(state.model)
    assert_close(*states, 1e-6)


def is_model(part) -> bool:
    return isinstance(part, rm.RewardModel)


@pytest.mark.parametrize("remat", ["full", *(pytest.param(r, marks=pytest.mark.long) for r in ("none", "dots"))])
@pytest.mark.parametrize("attention", [pytest.param("xla", marks=pytest.mark.long), "block"])
def test_every_form_of_the_forward_works_on_a_mesh(model, comparisons, attention, remat):
    """Regions cut into parts of each region, recomputed gathers, either attention: the gradient stays the same."""
    batch, mesh = one_batch(comparisons, "regions"), rm.make_mesh(fsdp=2, tensor=2, context=2)
    plain = jax.jit(partial(rm.accumulate, None, objective=objective))
    form = partial(objective, mesh=mesh, attention=attention, remat=remat)
    on_mesh = partial(rm.accumulate, None, objective=form)
    found = jax.jit(on_mesh)(rm.place_model(model, mesh), rm.place_batch(batch, mesh))
    assert_close(found, plain(model, batch), 1e-5)


def test_a_stretched_rope_sees_whole_sequences(comparisons):
    """`dynamic` depends on the length of a sequence, of which `context` leaves each device a part."""
    rope = rm.Rope(type="dynamic", factor=4.0)
    config = dataclasses.replace(CONFIG, rope=rope, max_position_embeddings=8, num_attention_heads=8, head_dim=4)
    model = rm.init_reward_model(config, key=jax.random.key(0), head_std=0.5)
    batch, mesh = one_batch(comparisons, "regions"), rm.make_mesh(data=2, context=4)
    found = jax.jit(partial(rm.rewards, compute=rm.Compute(mesh=mesh)))(rm.place_model(model, mesh), batch)
    np.testing.assert_allclose(found, jax.jit(rm.rewards)(model, batch), atol=1e-5)


# What each device keeps and sends.


def compiled_gradients(model, comparisons, **sizes):
    mesh = rm.make_mesh(**sizes)
    gradients = partial(rm.accumulate, None, objective=partial(objective, mesh=mesh, attention="xla"))
    placed = rm.place_model(model, mesh), rm.place_batch(one_batch(comparisons, "regions"), mesh)
    return jax.jit(gradients).lower(*placed).compile()


def summed_sizes(program: str, operation: str) -> list[int]:
    """Elements of each result of a collective operation in a compiled program."""
    shapes = re.findall(rf"= \(?(.*?)\)? {operation}\(", program)
    return [
        int(np.prod([int(n) for n in dims.split(",") if n])) for s in shapes for dims in re.findall(r"\[([\d,]*)\]", s)
    ]


@pytest.mark.long
@pytest.mark.gate
def test_gradients_are_never_whole_on_a_device(model, comparisons):
    """Else fully sharded training needs the memory of one device for all gradients, which it is there to save."""
    matrix = CONFIG.intermediate_size * CONFIG.hidden_size
    program = compiled_gradients(model, comparisons, fsdp=8)
    for leaf, sharding in zip(jax.tree.leaves(model), jax.tree.leaves(program.output_shardings.gradients), strict=True):
        parts = 8 if leaf.size >= matrix // 3 else 1  # norms, biases and the head stay whole
        assert np.prod(sharding.shard_shape(leaf.shape)) * parts == leaf.size
    assert max(summed_sizes(program.as_text(), "all-reduce"), default=0) < matrix // 3
    assert max(summed_sizes(program.as_text(), "reduce-scatter")) == matrix // 8
    whole = compiled_gradients(model, comparisons, data=8).as_text()
    assert max(summed_sizes(whole, "all-reduce")) >= matrix, "the measure does not see whole gradients"


def test_the_table_of_placements(model):
    """As it is written in the docstring, by hand."""
    specs = rm.partition_specs(model, rm.make_mesh(fsdp=2, tensor=2, context=2))
    assert specs.embed_tokens == P(None, ("tensor", "fsdp"))
    assert specs.blocks.q_proj.weight == P(None, ("tensor", "fsdp"), None)
    assert specs.blocks.o_proj.weight == P(None, ("fsdp",), ("tensor",))
    assert specs.last_block.down_proj.weight == P(("fsdp",), ("tensor",))
    assert specs.blocks.up_proj.bias == P(None, ("tensor",))
    assert specs.last_block.o_proj.bias == specs.norm == specs.score == P()
    odd = dataclasses.replace(CONFIG, intermediate_size=44)
    odd_model = jax.eval_shape(lambda: rm.init_reward_model(odd, key=jax.random.key(0)))
    specs = rm.partition_specs(odd_model, rm.make_mesh(fsdp=8))
    assert specs.last_block.gate_proj.weight == P(("tensor",), ("fsdp",)), (
        "44 rows are no multiple of 8, 32 columns are"
    )


# Files.


@pytest.fixture
def saved(tmp_path, llama_directory):
    model, tokenizer = rm.load_reward_model(llama_directory, key=jax.random.key(1)), rm.load_tokenizer(llama_directory)
    rm.save_reward_model(tmp_path / "plain", model, tokenizer, dtype=jnp.bfloat16)
    return tmp_path / "plain"


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=name_of)
def test_loading_and_saving_on_a_mesh(tmp_path, saved, sizes):
    """Every device gets its own part of the tensors, and the file written from them is the same, byte for byte."""
    mesh, plain = rm.make_mesh(**sizes), rm.load_reward_model(saved)
    loaded = rm.load_reward_model(saved, mesh=mesh)
    for leaf, expected, spec in zip(
        *map(jax.tree.leaves, (loaded, plain, rm.partition_specs(plain, mesh))), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.sharding.spec == spec
    rm.save_reward_model(tmp_path / "again", loaded, rm.load_tokenizer(saved), dtype=jnp.bfloat16)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


@pytest.mark.long
def test_a_checkpoint_moves_to_another_mesh(tmp_path, model):
    """A run goes on with the devices there are."""
    optimizer = rm.adamw(1e-3)
    state = rm.init_state(rm.place_model(model, rm.make_mesh(fsdp=8)), optimizer)
    with rm.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    for other in (rm.place_model(model, rm.make_mesh(tensor=4, context=2)), model):
        like = rm.init_state(jax.tree.map(jnp.zeros_like, other), optimizer)
        with rm.Checkpoints(tmp_path) as checkpoints:
            restored, _ = checkpoints.restore(1, like)
        for leaf, expected, place in zip(*map(jax.tree.leaves, (restored, state, like)), strict=True):
            np.testing.assert_array_equal(leaf, expected)
            assert leaf.sharding == place.sharding


@pytest.mark.long
@pytest.mark.gate
def test_scores_and_metrics_on_a_mesh(loaded, comparisons):
    """A model that lies on a mesh is used as any other."""
    model, tokenizer = loaded
    placed = rm.place_model(model, rm.make_mesh(data=2, fsdp=4))
    texts = [f"the {word} house" for word in ("red", "old", "big", "red old", "big red")]
    np.testing.assert_allclose(rm.score(placed, tokenizer, texts), rm.score(model, tokenizer, texts), atol=1e-5)
    plain = rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.5)
    on_mesh, alone = (
        {name: rm.evaluate(model, comparisons)[name] for name in METRICS}
        for model in (rm.place_model(plain, rm.make_mesh(fsdp=4, tensor=2)), plain)
    )
    assert on_mesh == pytest.approx(alone, rel=1e-4)


# What is refused.


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, r"^mesh fsdp=3 takes 3 devices, found 8$"),
        ({"data": 0, "fsdp": 8}, r"^mesh data=0,fsdp=8: data must be at least 1, found 0$"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make(sizes, message):
    with pytest.raises(rm.ConfigError, match=message):
        rm.make_mesh(**sizes)


@pytest.mark.parametrize("text", ["fsdp", "fsdp=8,fsdp=1", "pipeline=2", "data=-1", "", "data=2;fsdp=4"])
def test_a_mesh_that_is_not_written_as_one(text):
    with pytest.raises(rm.ConfigError, match=r"expected such as data=2,fsdp=4 \(of data, fsdp, context, tensor\)"):
        parse_mesh(text)


def test_a_mesh_that_does_not_divide_the_model_or_the_batch(comparisons):
    batch = one_batch(comparisons, "whole")

    def trace(mesh, batch=batch, **changes):
        model = jax.eval_shape(
            lambda: rm.init_reward_model(dataclasses.replace(CONFIG, **changes), key=jax.random.key(0))
        )
        jax.eval_shape(partial(rm.rewards, compute=rm.Compute(mesh=mesh)), model, batch)

    with pytest.raises(rm.ConfigError, match=r"^mesh tensor=8: must divide num_key_value_heads, found 4; use fsdp"):
        trace(rm.make_mesh(tensor=8), num_key_value_heads=4)
    with pytest.raises(rm.ConfigError, match=r"gate_proj\.weight: size 46 does not divide into tensor = 8"):
        trace(rm.make_mesh(tensor=8), intermediate_size=46)
    six = jax.tree.map(lambda x: x[:6], batch)
    for refuse in (partial(trace, rm.make_mesh(data=8), six), partial(rm.place_batch, six, rm.make_mesh(fsdp=8))):
        with pytest.raises(rm.ConfigError, match=r"^6 rows do not divide over data·fsdp = 8; plan_batches\(…, rows=8"):
            refuse()
    (odd,) = pack(comparisons, range(16), [RowShape(rows=8, slots=2, regions=(36, 36, 36))])
    with pytest.raises(rm.ConfigError, match=r"^mesh context=8: a region of 36 tokens does not divide into 8 parts"):
        trace(rm.make_mesh(context=8), odd)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("axes", [("fsdp",), ("tensor", "data"), ("context", "fsdp", "data")])
def test_a_mesh_of_jax_is_the_mesh_with_all_axes(explicit, axes):
    """Every device has the place that the caller's mesh gives it, whatever the order of the axes."""
    kinds = ((AxisType.Explicit if explicit else AxisType.Auto),) * len(axes)
    mesh = jax.make_mesh((2, 2, 2)[: len(axes)], axes, kinds, devices=jax.devices()[: 2 ** len(axes)])
    whole = rm.Compute(mesh=mesh).mesh
    assert whole.axis_names == AXES
    assert set(whole.axis_types) == {AxisType.Auto}
    for place in itertools.product((0, 1), repeat=len(axes)):
        at = dict(zip(axes, place, strict=True))
        assert whole.devices[tuple(at.get(axis, 0) for axis in AXES)] == mesh.devices[place]


@pytest.mark.long
@pytest.mark.parametrize("ambient", [False, True])
def test_updates_on_a_mesh_of_jax_equal_those_on_one_device(model, comparisons, ambient):
    batch, optimizer = one_batch(comparisons, "whole"), optax.sgd(0.1)
    mesh = jax.make_mesh((4,), ("fsdp",), (AxisType.Auto,), devices=jax.devices()[:4])

    def objective(model, batch, mesh):
        reward = rm.rewards(model, batch, rm.Compute(mesh=mesh))
        return rm.pairwise_loss(reward[..., 0], reward[..., 1]), reward

    def losses(mesh):
        own = jax.tree.map(jnp.copy, model)  # updates donate it
        placed = own if mesh is None else place_model(own, mesh)
        step = rm.jit_update(partial(objective, mesh=mesh), optimizer)
        _, first = step(rm.init_state(placed, optimizer), [batch if mesh is None else place_batch(batch, mesh)])
        return float(first["loss"]), float(first["grad_norm"])

    expected = losses(None)
    with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
        assert losses(mesh) == pytest.approx(expected, rel=1e-5)


def test_meshes_whose_meaning_is_unclear_are_refused(model):
    with pytest.raises(rm.ConfigError, match="mesh with the axis 'x': expected axes of data, fsdp, context, tensor"):
        rm.Compute(mesh=jax.make_mesh((8,), ("x",), (AxisType.Auto,)))
    mesh, explicit = rm.make_mesh(fsdp=8), jax.make_mesh((8,), ("fsdp",), (AxisType.Explicit,))
    message = r"^jax.set_mesh: expected Auto axes .* found fsdp=8 Explicit; leave it out"
    with jax.set_mesh(explicit), pytest.raises(rm.ConfigError, match=message):
        rm.Compute(mesh=mesh)


def test_a_command_may_take_fewer_devices_than_there_are():
    assert choose_mesh("data=1").devices.size == 1
    assert list(choose_mesh("fsdp=2,tensor=2").devices.flat) == jax.devices()[:4]
    with pytest.raises(rm.ConfigError, match="takes 16 devices, found 8"):
        choose_mesh("fsdp=16")


@pytest.mark.long
@pytest.mark.gate
def test_a_cell_of_the_matrix_is_held_to_its_bounds(monkeypatch):
    """The short form of benchmarks/matrix.py: differences would go unseen, or those of rounding be reported."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    matrix = importlib.import_module("matrix")
    ((text, good),) = matrix.run_row("adamw", "float32", ["fsdp=4"], 0)
    assert good, text
    assert re.fullmatch(r"\S+ \S+; \d+ → data=1: \S+ \S+", text)
    run, start = matrix.Result([0.5, 0.25], [np.array([1.0, 3.0])]), [np.array([1.0, 1.0])]
    other = matrix.Result([0.3], [np.array([1.0, 2.5])])
    np.testing.assert_allclose(matrix.compare(other, run, start), (0.05, 0.25))
