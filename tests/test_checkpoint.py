"""Checkpoints: whole, of exactly what was saved, and never silently another model."""

import copy
import dataclasses
import math
import shutil
import struct
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rm
from rm.files.checksum import checksums, key_data
from rm.saving.checkpoints import abstract
from rm.training.rounding import keep_moments

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("unraised")]

CONFIG = rm.LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)
NOTES = {"num_tokens": 12345, "window": [{"loss": 0.1 + 0.2}]}
CASES = 150  # of damage, of each kind


def new_state(seed: int = 0) -> rm.TrainState:
    model = rm.init_reward_model(CONFIG, key=jax.random.key(seed), head_std=0.5)
    return rm.init_state(model, rm.adamw(1e-3))


def same(one, other) -> bool:
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(key_data(a), key_data(b)) for a, b in pairs)


@pytest.fixture(scope="module")
def state() -> rm.TrainState:
    return new_state()


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory) -> Path:
    """A directory with the checkpoints of updates 3 and 6, whose states are those of two seeds."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with rm.Checkpoints(directory) as checkpoints:
        checkpoints.save(3, new_state(1), NOTES)
        checkpoints.save(6, state, NOTES)
    return directory


def test_a_checksum_is_that_of_the_formula():
    """Written out with Python's integers, which have no width."""
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)

    def mix(h: int) -> int:
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        return h ^ (h >> 16)

    expected = ""
    for seed in (0x9E3779B9, 0x7F4A7C15):
        bits = [struct.unpack("<I", struct.pack("<f", value))[0] for value in values.reshape(-1)]
        expected += f"{sum(mix(b ^ mix((i + seed) % 2**32)) for i, b in enumerate(bits)) % 2**32:08x}"
    assert checksums({"x": jnp.asarray(values)}) == {"x": expected}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.bool, jnp.float64, jnp.uint64])
def test_a_checksum_sees_every_bit_and_every_place(dtype):
    """Damage would go unnoticed, or a whole checkpoint be refused on another mesh."""
    with jax.enable_x64(jnp.dtype(dtype).itemsize == 8):
        check_checksum(np.arange(1, 65).reshape(8, 8) % (2 if dtype == jnp.bool else 65), dtype)


def check_checksum(values: np.ndarray, dtype) -> None:
    x = values.astype(dtype)
    known = checksums([x])
    flipped = x.copy()
    flipped.view(np.uint8)[3, 5] ^= 1
    swapped = x[:, ::-1]
    mesh = rm.make_mesh(data=2, fsdp=4)
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "data")))
    assert checksums([flipped]) != known
    assert checksums([swapped]) != known
    assert checksums([spread]) == known


KEYS = {"typed": jax.random.key(3), "rbg": jax.random.key(3, impl="rbg"), "raw": jax.random.PRNGKey(3)}
STATES = {
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adamw(lambda _: 1e-3), 3),
    "skip_not_finite": lambda: optax.MultiSteps(optax.sgd(0.1), 2, should_skip_update_fn=optax.skip_not_finite),
    "MultiSteps": lambda: optax.MultiSteps(optax.adamw(1e-3), 3),
    "add_noise": lambda: keep_moments(optax.chain(optax.add_noise(0.1, 0.5, KEYS["typed"]), optax.adam(0.1))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(lambda _: 1e-3),
    "masked": lambda: optax.masked(optax.adam(1e-3), {"w": True, "b": False}),
    "keys": lambda: keeping((KEYS, None, (), optax.EmptyState(), jnp.zeros((0, 3)))),
}


def keeping(state) -> optax.GradientTransformation:
    """A transformation that keeps this state, whatever it is."""
    return optax.GradientTransformation(lambda _: state, lambda updates, state, _: (updates, state))  # pyright: ignore


@pytest.mark.parametrize("name", STATES)
def test_any_state_of_optax_is_saved(tmp_path, name):
    """Bools and keys: a run with them could not be saved, in an error of the checksum."""
    model = {"w": jnp.linspace(0.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
    found = STATES[name]()
    optimizer = found.gradient_transformation() if isinstance(found, optax.MultiSteps) else found
    state = rm.init_state(model, optimizer)
    _, moments = optimizer.update(jax.tree.map(jnp.ones_like, model), state.opt_state, model)
    check_saved(tmp_path, rm.TrainState(state.step + 1, model, moments))


def test_numbers_of_eight_bytes_are_saved(tmp_path):
    with jax.enable_x64(True):
        kept = {"count": jnp.array(2**40), "mean": jnp.array([1 / 3, 1e300])}
        state = check_saved(tmp_path, rm.init_state({"w": jnp.ones(3)}, keeping(kept)))
        assert {name: leaf.dtype.name for name, leaf in state.opt_state.items()} == {
            "count": "int64",
            "mean": "float64",
        }


def check_saved(directory: Path, state: rm.TrainState) -> rm.TrainState:
    with rm.Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state, NOTES)
    with rm.Checkpoints(directory) as checkpoints:
        step, restored, notes = checkpoints.restore_newest(abstract(state), print)
    assert (step, notes) == (1, NOTES)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert same(restored, state)
    return restored


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_moments_move_to_the_host_and_back(tmp_path, name):
    """`--offload` may change when a run is resumed: its state is another tree, with the same arrays."""
    model = {"embed_tokens": jnp.ones((4, 8)), "norm": jnp.ones(3), "q_proj": {"weight": jnp.ones((8, 4))}}
    mesh = rm.make_mesh(fsdp=2, devices=jax.devices()[:2])
    schedule = rm.learning_rate_schedule("linear", peak=1e-3, steps=9)
    optimizers = [rm.make_optimizer(name, schedule, moments="bfloat16", offload=offload) for offload in (False, True)]
    states = [jax.tree.map(fill, rm.init_state(model, optimizer)) for optimizer in optimizers]
    on_mesh = rm.init_state(rm.place_model(model, mesh), optimizers[1])
    for number, (saved, other) in enumerate([states, states[::-1], (states[0], on_mesh)]):
        expected = states[1] if other is on_mesh else other
        with rm.Checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.save(1, saved, NOTES)
            restored, _ = checkpoints.restore(1, abstract(other))
        assert same(restored, expected)
        assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [
            leaf.sharding for leaf in jax.tree.leaves(other)
        ]
        buffers = [leaf.addressable_data(0).unsafe_buffer_pointer() for leaf in jax.tree.leaves(restored)]
        assert len(buffers) == len(set(buffers)), "updates could not donate the state"


def fill(leaf: jax.Array) -> jax.Array:
    """The leaf with values that its shape and sum tell, the same wherever it stands in a state."""
    values = jnp.arange(leaf.size).reshape(leaf.shape) + jnp.int32(7)
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)


WIDE = dataclasses.replace(CONFIG, vocab_size=33)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (
            lambda: rm.init_state(new_state().model, rm.make_optimizer("lion", 1e-3)),
            "only the checkpoint has opt_state.1.0.nu.",
        ),
        (
            lambda: rm.init_state(new_state().model, rm.adamw(lambda _: 1e-3)),
            "only the state asked for has opt_state.1.2.count (int32[])",
        ),
        (
            lambda: rm.init_state(
                rm.init_reward_model(CONFIG, key=jax.random.key(0), dtype=jnp.bfloat16), rm.adamw(1e-3)
            ),
            "model.embed_tokens was saved as float32[32, 16] and is asked for as bfloat16[32, 16]",
        ),
        (
            lambda: rm.init_state(rm.init_reward_model(WIDE, key=jax.random.key(0)), rm.adamw(1e-3)),
            "model.embed_tokens was saved as float32[32, 16] and is asked for as float32[33, 16]",
        ),
    ],
    ids=["optimizer", "schedule", "type", "shape"],
)
def test_another_state_is_no_damage(saved, other, difference):
    """Whole checkpoints were renamed to damaged-3 and damaged-6, and the run began again over its own log."""
    with rm.Checkpoints(saved) as checkpoints:
        like = abstract(other())
        for restore in (lambda: checkpoints.restore(6, like), lambda: checkpoints.restore_newest(like, pytest.fail)):
            with pytest.raises(rm.CheckpointError) as found:
                restore()
            assert f"{saved}/6: is whole, but of another state: {difference}" in str(found.value)
        if "model." in difference:
            with pytest.raises(rm.CheckpointError) as found:
                checkpoints.restore_model(6, like.model)
            assert difference in str(found.value)
        assert (checkpoints.steps, checkpoints.set_aside) == ([3, 6], [])


def test_what_is_restored_is_what_was_saved(saved, state):
    with rm.Checkpoints(saved) as checkpoints:
        assert checkpoints.steps == [3, 6]
        step, restored, notes = checkpoints.restore_newest(abstract(state), print)
    assert (step, notes) == (6, NOTES)
    assert same(restored, state)


def test_a_checkpoint_can_be_restored_on_a_mesh(saved, state):
    """A run could not go on with other devices, or its checksums would be those of one placement."""
    mesh = rm.make_mesh(fsdp=4, tensor=2)
    placed = rm.init_state(rm.place_model(new_state().model, mesh), rm.adamw(1e-3))
    with rm.Checkpoints(saved) as checkpoints:
        restored, _ = checkpoints.restore(6, abstract(placed))
    assert same(restored, state)
    assert restored.model.embed_tokens.sharding == placed.model.embed_tokens.sharding


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.long
@pytest.mark.parametrize("kind", [pytest.param("flipped", marks=pytest.mark.gate), "cut short"])
def test_damage_is_found_or_harmless(saved, state, tmp_path, kind):
    """A run would go on from rubbish. Each case damages one place in one file of the newest checkpoint.

    Every file has its turn, and every other case takes any byte, for how many small files there are is Orbax's affair.
    """
    rng, found, harmless = np.random.default_rng([0, len(kind)]), 0, 0
    like, files = abstract(state), files_of(saved / "6")
    sizes = np.array([path.stat().st_size for path in files])
    with rm.Checkpoints(shutil.copytree(saved, tmp_path / "copy")) as checkpoints:
        for case in range(CASES):
            original = files[case // 2 % len(files) if case % 2 else rng.choice(len(files), p=sizes / sizes.sum())]
            path, content = tmp_path / "copy" / original.relative_to(saved), bytearray(original.read_bytes())
            at = int(rng.integers(len(content)))
            if kind == "flipped":
                content[at] ^= 1 << int(rng.integers(8))
            else:
                del content[at:]
            path.write_bytes(content)
            try:
                restored, notes = checkpoints.restore(6, like)
                assert same(restored, state), (original, at, "another model")
                assert notes == NOTES, (original, at, "other notes")
                harmless += 1
            except rm.CheckpointError:
                found += 1
            finally:
                path.write_bytes(original.read_bytes())
    print(f"{kind}: {found} found, {harmless} harmless")
    assert found > CASES / 4, "the damage does not reach what is read"


def test_the_one_before_is_taken_where_the_newest_is_damaged(saved, state, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "copy")
    largest = max(files_of(directory / "6"), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"\0" * largest.stat().st_size)
    said: list[str] = []
    with rm.Checkpoints(directory) as checkpoints:
        step, restored, notes = checkpoints.restore_newest(abstract(state), said.append)
        assert (step, notes) == (3, NOTES)
        assert same(restored, new_state(1))
        assert len(said) == 1
        assert said[0].endswith("; it is now damaged-6")
        checkpoints.save(6, state, NOTES)  # its place is free
        checkpoints.wait()
        assert checkpoints.steps == [3, 6]
        (directory / "6/notes/metadata").write_text("{}")  # the same again, whose name is taken
        checkpoints.restore_newest(abstract(state), said.append)
        assert said[1].endswith("; it is now damaged-6-2")
        assert checkpoints.set_aside == ["damaged-6", "damaged-6-2"]


def test_where_all_are_damaged_nothing_is_taken(saved, state, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "copy")
    for path in files_of(directory):
        path.write_bytes(b"\0")
    expected = (
        r"no checkpoint that can be restored \(those damaged are set aside as damaged-3, damaged-6\); begin again"
    )
    with rm.Checkpoints(directory) as checkpoints:
        for _ in range(2):  # also where they have been set aside before
            with pytest.raises(rm.CheckpointError, match=expected):
                checkpoints.restore_newest(abstract(state), print)


def test_another_step_is_no_excuse(saved, state, tmp_path):
    """A checkpoint that was renamed would put the data at another place than the parameters."""
    directory = shutil.copytree(saved, tmp_path / "copy")
    (directory / "6").rename(directory / "9")
    with rm.Checkpoints(directory) as checkpoints, pytest.raises(rm.CheckpointError, match="notes have changed"):
        checkpoints.restore(9, abstract(state))


def test_the_newest_and_the_best_stay(state, tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.7}
    with rm.Checkpoints(tmp_path / "kept", keep=2, best="eval_a_loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state, NOTES, {"eval_a_loss": loss})
        checkpoints.save(6, state, NOTES)  # was not evaluated
        checkpoints.wait()
        assert checkpoints.steps == [2, 5, 6]
    with rm.Checkpoints(tmp_path / "other", keep=1, best="eval_a_accuracy") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state, NOTES, {"eval_a_accuracy": loss})
        checkpoints.wait()
        assert checkpoints.steps == [1, 5]


def test_the_best_stays_when_a_run_goes_on(state, tmp_path):
    """A run that was resumed forgot which checkpoint was the best, and deleted it."""
    values = {"eval_a_loss": [0.2, 0.5, 0.4, 0.6], "eval_a_accuracy": [0.5, 0.7, 0.7, 0.6]}
    for step in range(1, 5):
        with rm.Checkpoints(tmp_path, keep=1, best="eval_a_loss") as checkpoints:
            checkpoints.save(step, state, NOTES, {name: numbers[step - 1] for name, numbers in values.items()})
    with rm.Checkpoints(tmp_path, keep=1, best="eval_a_loss") as checkpoints:
        assert (checkpoints.steps, checkpoints.best_step) == ([1, 4], 1)
    with rm.Checkpoints(tmp_path, keep=1, best="eval_a_accuracy") as checkpoints:
        assert checkpoints.best_step == 4
        checkpoints.save(5, state, NOTES, {"eval_a_accuracy": math.nan})
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best_step) == ([4, 5], 4)
    with rm.Checkpoints(tmp_path, best="eval_b_loss") as checkpoints:
        assert checkpoints.best_step is None


def test_the_state_may_go_on_while_it_is_being_saved(tmp_path, state):
    """The next update donates the arrays that are being written."""
    advance = jax.jit(partial(jax.tree.map, lambda x: x + jnp.ones((), x.dtype)), donate_argnums=0)
    before = new_state(2)
    expected = jax.tree.map(np.asarray, before)
    with rm.Checkpoints(tmp_path / "kept") as checkpoints:
        checkpoints.save(1, before, NOTES)
        advance(before)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, abstract(state))
    assert same(restored, expected)


@pytest.mark.long
@pytest.mark.gate
def test_the_notes_may_go_on_while_they_are_being_saved(tmp_path, state):
    """A run that logs on while its checkpoint is being written would find it damaged. Ten times: it is a race."""
    notes, expected = {"window": [{"loss": 0.0}]}, {}
    with rm.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in range(1, 11):
            expected[step] = copy.deepcopy(notes)
            checkpoints.save(step, state, notes)
            notes["window"].append({"loss": step / 4})
            notes["window"][0]["loss"] -= 1
        checkpoints.wait()
        assert {step: checkpoints.restore(step, abstract(state))[1] for step in checkpoints.steps} == expected


@pytest.mark.long
@pytest.mark.gate
def test_an_exported_model_that_is_damaged_is_never_silently_another(tmp_path, loaded):
    """What is scored with would be something that nobody trained."""
    model, tokenizer = loaded
    rm.save_reward_model(tmp_path / "model", model, tokenizer)
    whole = {path: path.read_bytes() for path in files_of(tmp_path / "model")}
    rng, found, config = np.random.default_rng(1), 0, dataclasses.asdict(model.config)
    for case in range(2 * CASES):
        path = list(whole)[case % len(whole)]
        content = bytearray(whole[path])
        at = int(rng.integers(len(content)))
        content = (
            content[:at]
            if case % 2
            else content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
        )
        path.write_bytes(content)
        try:
            other = rm.load_reward_model(tmp_path / "model")
            assert same(other, model), (path.name, at)
            assert dataclasses.asdict(other.config) == config, (path.name, at)
            assert rm.load_tokenizer(tmp_path / "model").files == tokenizer.files, (path.name, at)
        except rm.RmError:
            found += 1
        finally:
            path.write_bytes(whole[path])
    assert found > CASES, "the damage does not reach what is read"


def test_a_path_that_cannot_be_read_again_is_refused(tmp_path):
    """Orbax saved there, and the good checkpoint was called damaged by the run that was to go on."""
    with pytest.raises(rm.OutputError, match=r"run\[16\]: Orbax cannot read checkpoints from a path with \["):
        rm.Checkpoints(tmp_path / "run[16]")
    assert not (tmp_path / "run[16]").exists()


@pytest.mark.parametrize(
    ("step", "seed", "found"),
    [
        (3, 0, "step 3 cannot be saved, checkpoint 6 is there already"),
        (4, 1, "step 4 cannot be saved, checkpoint 6 is there already"),
        (6, 1, "step 6 cannot be saved, another state of this step is there already"),
    ],
)
def test_a_run_that_went_back_is_not_told_that_it_is_saved(saved, tmp_path, step, seed, found):
    """Orbax saves nothing before the newest step, without a word, and a later start takes the old run up."""
    directory = shutil.copytree(saved, tmp_path / "copy")
    with rm.Checkpoints(directory) as checkpoints:
        checkpoints.restore(3, abstract(new_state(1)))
        with pytest.raises(rm.OutputError, match=f"{found}; to go on from an earlier step, save to another directory"):
            checkpoints.save(step, new_state(seed), NOTES)


def test_a_state_may_be_saved_twice(saved, state, tmp_path):
    """The last update of a loop is often one of those that are saved anyway."""
    directory = shutil.copytree(saved, tmp_path / "copy")
    with rm.Checkpoints(directory) as checkpoints:
        checkpoints.save(6, state, NOTES)
        checkpoints.save(9, state, NOTES)
        checkpoints.save(9, state, NOTES)
        checkpoints.wait()
        assert checkpoints.steps == [3, 6, 9]
