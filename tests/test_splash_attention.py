"""Attention through the TPU's kernel is that of `shared_prefix_attention`, for the rows that it is given."""

import os
import subprocess
import sys
from functools import partial
from importlib.metadata import distributions, requires
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from packaging.requirements import Requirement

import rm
from rm.data.comparisons import flatten
from rm.devices.platform import compiling_for
from rm.model.attention import Marks, shared_prefix_attention, visible
from rm.model.attention_choice import Inputs, refuses
from rm.model.splash_attention import region_mask, splash_attention
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.packing.sequences import pack_sequences
from rm.planning.compiled import default_compilers

from .tiny import CONFIG

ROOT = Path(rm.__file__).parents[1]
COMPILERS = default_compilers()
LENGTHS = {1: [(0, 50), (0, 9), (0, 61)], 2: [(9, 17, 5), (40, 11, 30), (0, 3, 7)], 3: [(9, 17, 5, 8), (20, 1, 30, 2)]}


@pytest.fixture(autouse=True)
def lenient_kernel(strict_dtypes):
    """The kernel is JAX's own and mixes types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def packed(K: int, regions: tuple[int, ...], rows: int = 1) -> rm.PreferenceBatch:
    """Rows with several segments and padding; the last comparison has a response in common with the first."""
    rng, sequences = np.random.default_rng(0), []
    for prompt, *responses in LENGTHS[K]:
        ids = rng.integers(3, CONFIG.vocab_size, (K + 1, 64)).tolist()
        sequences.append([ids[0][:prompt] + ids[k + 1][:length] for k, length in enumerate(responses)])
    sequences.append([sequences[0][0], *([*sequences[0][0][:7], 1 + k] for k in range(K - 1))])
    comparisons = flatten(sequences, [0.0] * len(sequences), CONFIG, share_prefix=regions[0] > 0)
    (batch,) = pack(comparisons, range(len(sequences)), [RowShape(rows=rows, slots=5, regions=regions)])
    return batch


def marks_of(batch: rm.PreferenceBatch) -> Marks:
    places = np.broadcast_to(np.arange(batch.tokens.shape[1]), batch.tokens.shape)
    return Marks(*map(jnp.asarray, (batch.segments, batch.parts, places)))


def tensors(marks: Marks, heads: tuple[int, int], E: int) -> list[jax.Array]:
    """Random q, k and v, and the weight in a sum of every output, 0 at padding."""
    R, N = marks.segments.shape
    shapes = (R, N, *heads, E), (R, N, heads[0], E), (R, N, heads[0], E), (R, N, *heads, E)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return [3 * q, k, v, jnp.where((marks.segments > 0)[..., None, None, None], weight, 0)]


def outputs_and_gradients(attention, marks: Marks, tensors: list[jax.Array]) -> list[jax.Array]:
    """The outputs of all but padding, and the gradients of their weighted sum."""

    @jax.jit
    def both(*qkv):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, marks, marks), *qkv)
        return out, *pull(tensors[-1])

    out, *gradients = both(*tensors[:-1])
    return [jnp.where(tensors[-1] == 0, 0, out), *gradients]


def agree(batch: rm.PreferenceBatch, heads: tuple[int, int], E: int) -> None:
    marks = marks_of(batch)
    splash = partial(splash_attention, regions=batch.regions, interpret=True)
    plain = partial(shared_prefix_attention, regions=batch.regions)
    inputs = tensors(marks, heads, E)
    found, expected = (outputs_and_gradients(attention, marks, inputs) for attention in (splash, plain))
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(abs(b).max()), err_msg=name)


@pytest.mark.parametrize(
    ("K", "regions", "rows", "heads", "E"),
    [
        (2, (72, 60, 44), 2, (2, 3), 8),
        (2, (64, 200, 100), 1, (1, 2), 16),
        (3, (36, 30, 40, 20), 1, (2, 1), 16),
        (1, (0, 130), 2, (1, 4), 8),
    ],
    ids=["grouped queries, two blocks", "one block of 384", "short row", "no prefix"],
)
def test_the_kernel_gives_the_same_outputs_and_gradients(K, regions, rows, heads, E):
    """Else models would be trained on other rewards on a TPU than elsewhere, or with wrong or NaN gradients."""
    batch = packed(K, regions, rows)
    assert len(np.unique(batch.segments)) > 2  # several segments, and padding
    agree(batch, heads, E)


def test_a_row_of_nothing_but_padding_gives_no_nan():
    """Else one empty row of a micro-batch would make every gradient of it NaN."""
    batch = packed(2, (72, 60, 44), rows=4)
    assert (batch.segments == 0).all(axis=1).any()
    agree(batch, (1, 1), 8)


def test_devices_can_each_run_it_on_their_rows():
    """Else models on a mesh, whose forward runs in `shard_map`, could not use it."""
    batch, mesh = packed(2, (72, 60, 44), rows=2), rm.make_mesh(data=2, devices=jax.devices()[:2])
    splash = partial(splash_attention, regions=batch.regions, interpret=True)
    mapped = jax.shard_map(splash, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    inputs = tensors(marks_of(batch), (1, 2), 8)
    found, expected = (outputs_and_gradients(attention, marks_of(batch), inputs) for attention in (splash, mapped))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def expressed_and_visible(batch: rm.PreferenceBatch) -> tuple[np.ndarray, np.ndarray]:
    """What tokens see in the kernel, and what they should; padding sees nothing that matters."""
    same = batch.segments[:, :, None] == batch.segments[:, None]
    real = batch.segments[:, :, None] > 0
    return region_mask(batch.regions)[None] & same & real, visible(marks_of(batch), marks_of(batch)) & real


def refusal(batch: rm.PreferenceBatch) -> str | None:
    with compiling_for("tpu"):
        return refuses("splash", Inputs(batch.regions, 64, jnp.bfloat16))


@pytest.mark.parametrize(
    ("K", "regions"), [(1, (200, 90)), (2, (72, 60, 44)), (3, (36, 30, 40, 20)), (2, (0, 200, 200))]
)
def test_regions_and_segments_say_what_is_visible_in_packed_rows(K, regions):
    """Else a row that packing makes would be one that the kernel cannot express."""
    batch = packed(K, regions)
    np.testing.assert_array_equal(*expressed_and_visible(batch))
    assert refusal(batch) is None


def test_rows_of_whole_segments_are_refused():
    """Else responses that lie in one region, as in scoring, would see each other."""
    sequences = flatten([[[3, 4, 5, 6]], [[3, 4, 5, 7]]], [0.0] * 2, CONFIG, share_prefix=False)
    (batch,) = pack_sequences(sequences, CONFIG, batch_size=2)
    expressed, seen = expressed_and_visible(batch)
    assert (expressed != seen).any()
    assert refusal(batch) == f"takes rows of several regions, found {batch.regions}"


_COMPILE = """
import sys

sys.path.append(sys.argv[1])

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from rm.model.attention import Marks
from rm.model.splash_attention import splash_attention

device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]


def loss(q, k, v, segments):
    marks = Marks(segments, segments, segments)
    return splash_attention(q, k, v, marks, marks, (1024, 512, 512)).astype(jnp.float32).sum()


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))


keys = array(1, 2048, 2, 128)
inputs = array(1, 2048, 2, 4, 128), keys, keys, array(1, 2048, dtype=jnp.int32)
lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*inputs)
lowered.compile()
print("kernels:", lowered.as_text().count("tpu_custom_call"))
"""


def test_the_tpu_compiler_takes_the_kernel_and_its_gradient():
    """Else no TPU would run what passes here in the interpreter."""
    wanted = next(Requirement(text) for text in requires("jax") or () if text.startswith("libtpu"))
    found = [libtpu.version for libtpu in distributions(name="libtpu", path=[str(COMPILERS)])]
    if not any(wanted.specifier.contains(version) for version in found):
        pytest.skip(f"needs libtpu{wanted.specifier} in the folder {COMPILERS} (RM_COMPILERS), found {found}")
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _COMPILE, str(COMPILERS)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["kernels:", "3"]  # forward, dq, and dk with dv
