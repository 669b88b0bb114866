"""Attention over gathered sequences is that of `shared_prefix_attention`, for all rows of several regions."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rm
from rm.data.comparisons import flatten
from rm.model.attention import Marks, shared_prefix_attention
from rm.model.cudnn_attention import collect, cudnn_attention, find_places
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.planning.chips import parse_topology
from rm.planning.compiled import compiler_flags, default_compilers, missing_compiler

from .tiny import CONFIG

ROOT = Path(rm.__file__).parents[1]


def marks_of(regions: tuple[int, ...], lengths: list[tuple[int, ...]]) -> Marks:
    """Rows of one segment each, with so many tokens in each region."""
    part, place = np.repeat(np.arange(len(regions)), regions), np.concatenate([np.arange(n) for n in regions])
    segments = np.stack([place < np.array(row)[part] for row in lengths]).astype(np.int32)
    positions = np.stack([place + row[0] * (part > 0) for row in lengths]) * segments
    return Marks(*(jnp.asarray(mark, jnp.int32) for mark in (segments, part * segments, positions)))


def tensors(marks: Marks, heads: tuple[int, int], E: int) -> list[jax.Array]:
    """Random q, k and v, and the gradient of every output, which padding has too."""
    R, N = marks.segments.shape
    shapes = (R, N, *heads, E), (R, N, heads[0], E), (R, N, heads[0], E), (R, N, *heads, E)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d_out = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return [3 * q, k, v, d_out]


def outputs_and_gradients(attention, marks: Marks, tensors: list[jax.Array]) -> list[jax.Array]:
    """The outputs and gradients of real tokens; those of padding mean nothing, but may not spread."""

    @jax.jit
    def both(q, k, v, d_out):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, marks, marks), q, k, v)
        return out, *pull(d_out)

    found, real = both(*tensors), marks.segments > 0
    assert all(bool(jnp.isfinite(x).all()) for x in found)
    return [jnp.where(real[(..., *(None,) * (x.ndim - 2))], x, 0) for x in found]


def agree(attention, regions: tuple[int, ...], marks: Marks, inputs: list[jax.Array], window=None) -> None:
    plain = partial(shared_prefix_attention, regions=regions, window=window)
    found, expected = (outputs_and_gradients(each, marks, inputs) for each in (attention, plain))
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(abs(b).max()), err_msg=name)


def gathered(regions: tuple[int, ...], slots: int = 1, longest: int | None = None, window=None, implementation="xla"):
    """The form for GPUs, as `shared_prefix_attention` is called."""

    def attention(q, k, v, queries, keys):
        places = find_places(queries, regions, slots, longest)
        return collect(cudnn_attention(q, k, v, places, window, implementation), places).reshape(q.shape)

    return attention


CASES = {
    "unequal regions, grouped queries": ((12, 9, 20), [(12, 9, 20), (5, 3, 17)], (2, 3)),
    "four responses": ((7, 3, 8, 5, 4), [(6, 3, 1, 4, 2)], (1, 2)),
    "empty responses": ((8, 6, 6), [(8, 0, 6), (3, 5, 0), (4, 0, 0)], (2, 1)),
    "no real token in the prefix": ((8, 6, 5), [(0, 6, 4), (5, 2, 3)], (1, 2)),
    "no prefix region": ((0, 9, 14), [(0, 9, 11), (0, 2, 14)], (2, 2)),
    "no responses region": ((8, 0, 6), [(8, 0, 6)], (1, 1)),
    "a row of padding": ((8, 6, 5), [(0, 0, 0), (8, 6, 5)], (1, 2)),
}


@pytest.mark.parametrize(("regions", "lengths", "heads"), CASES.values(), ids=CASES.keys())
def test_gathered_sequences_give_the_same_outputs_and_gradients(regions, lengths, heads):
    """Else models would be trained on other rewards on a GPU than elsewhere, or with wrong gradients."""
    marks = marks_of(regions, lengths)
    agree(gathered(regions), regions, marks, tensors(marks, heads, 8))


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_rows_of_several_segments_of_any_lengths(K, window):
    """Else a segment would see another's tokens, or lose some of its own."""
    rng = np.random.default_rng(K)
    prompts = [rng.integers(3, CONFIG.vocab_size, n).tolist() for n in (1, 9, 4, 6, 2)]
    sequences = [[[*p, k + 3, *rng.integers(3, 9, rng.integers(0, 8)).tolist()] for k in range(K)] for p in prompts]
    sequences.append(sequences[1][::-1] if K > 1 else [[5]])  # the same responses once more
    comparisons = flatten(sequences, [0.0] * len(sequences), CONFIG)
    longest = int((comparisons.lengths[:, 0] + comparisons.lengths[:, 1:].max(1)).max())
    shape = RowShape(rows=2, slots=4, regions=(16 if K > 1 else 48, *[24] * K), longest=longest)
    (batch,) = pack(comparisons, range(len(sequences)), [shape])
    assert batch.segments.max() > 2
    assert batch.longest == longest < 40
    marks = Marks(*map(jnp.asarray, (batch.segments, batch.parts, batch.positions)))
    attention = gathered(batch.regions, 4, batch.longest, window)
    agree(attention, batch.regions, marks, tensors(marks, (2, 2), 8), window)


def test_large_scores_of_padding_do_no_harm():
    """Else the weights of padding, which overflow when they are computed again, would make gradients NaN."""
    regions, marks = (8, 6, 5), marks_of((8, 6, 5), [(4, 0, 3), (0, 2, 0)])
    q, k, v, d_out = tensors(marks, (1, 2), 8)
    padding = (marks.segments == 0)[..., None, None]
    inputs = [jnp.where(padding[..., None], 1e3, q), jnp.where(padding, 1e3, k), v, d_out]
    agree(gathered(regions), regions, marks, inputs)


def rounding_errors(implementation: str) -> None:
    """Compares the errors in bfloat16 with those of the plain form."""
    regions, marks = (72, 60, 200), marks_of((72, 60, 200), [(72, 60, 200), (40, 0, 131), (0, 7, 64), (0, 0, 0)])
    halves = [x.astype(jnp.bfloat16) for x in tensors(marks, (2, 2), 64)]
    plain, fused = partial(shared_prefix_attention, regions=regions), gathered(regions, implementation=implementation)
    expected = outputs_and_gradients(plain, marks, [x.astype(jnp.float32) for x in halves])
    with jax.numpy_dtype_promotion("standard"):  # JAX's own arithmetic mixes bfloat16 and float32
        found, usual = (outputs_and_gradients(attention, marks, halves) for attention in (fused, plain))
    for name, a, b, c in zip(("out", "d_q", "d_k", "d_v"), found, usual, expected, strict=True):
        errors = [float(jnp.linalg.norm(x.astype(jnp.float32) - c) / jnp.linalg.norm(c)) for x in (a, b)]
        print(f"{name}: {errors[0]:.1e}, plain {errors[1]:.1e}")
        assert a.dtype == jnp.bfloat16
        assert errors[0] <= 4 * errors[1], (name, errors)  # kernels' backward passes have but the rounded output


@pytest.mark.long
def test_half_precision_is_about_as_near_as_the_plain_form():
    """Else gathering would round much more than products in bfloat16 do."""
    rounding_errors("xla")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU, and JAX_PLATFORMS=cuda")
def test_a_gpu_gives_the_same_outputs_and_gradients():
    """Else cuDNN would treat lengths or padding in another way than JAX does."""
    rounding_errors("cudnn")


def test_devices_can_each_run_it_on_their_rows():
    """Else models on a mesh, whose forward runs in `shard_map`, could not use it."""
    regions, marks = (8, 6, 5), marks_of((8, 6, 5), [(8, 6, 5), (3, 2, 1)])
    mesh = rm.make_mesh(data=2, devices=jax.devices()[:2])
    mapped = jax.shard_map(gathered(regions), mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    agree(mapped, regions, marks, tensors(marks, (1, 2), 8))


_COMPILE = """
import re
import sys

sys.path.append(sys.argv[1])

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

import rm
from rm.model.attention import Marks
from rm.planning.chips import parse_topology
from rm.planning.compiled import find_devices
from rm.model.cudnn_attention import collect, cudnn_attention, find_places

count = int(sys.argv[2])
mesh = rm.make_mesh(data=count, devices=find_devices(parse_topology(f"h100:{count}")))


def run(q, k, v, segments):
    places = find_places(Marks(segments, segments, segments), (512, 768, 768), 4, 1280)
    return collect(cudnn_attention(q, k, v, places), places)


def loss(*inputs):
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    return (mapped if count > 1 else run)(*inputs).astype(jnp.float32).sum()


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("data")))


keys = array(count, 2048, 8, 128)
inputs = array(count, 2048, 8, 4, 128), keys, keys, array(count, 2048, dtype=jnp.int32)
compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
print(*sorted(re.findall(r'custom_call_target="__cudnn.fmha(\\w+)"', compiled.as_text())))
"""


@pytest.mark.parametrize("count", [1, 8], ids=["one device", "rows over eight"])
def test_the_gpu_compiler_takes_the_kernels_and_their_gradients(count):
    """Else no GPU would be given what passes here with the reference; cuDNN itself is asked only where there is one."""
    topology = parse_topology(f"h100:{count}")
    reason = missing_compiler(topology, default_compilers())
    if reason:
        pytest.skip(reason)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiler_flags(topology)}
    command = [sys.executable, "-c", _COMPILE, str(default_compilers()), str(count)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["Softmax", "SoftmaxBackward"]
