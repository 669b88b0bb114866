"""Attention through cuDNN's kernels is that of `shared_prefix_attention`, for the rows that it is given."""

import os
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rm
from rm.data.comparisons import flatten
from rm.devices.platform import compiling_for
from rm.model.attention import Marks, shared_prefix_attention, visible
from rm.model.attention_choice import Inputs, refuses
from rm.model.cudnn_attention import cudnn_attention
from rm.model.cudnn_kernel import REFERENCE, Kernel
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
    places = np.broadcast_to(np.arange(len(part)), segments.shape)
    return Marks(*(jnp.asarray(mark, jnp.int32) for mark in (segments, part * segments, places)))


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


def agree(attention, regions: tuple[int, ...], marks: Marks, inputs: list[jax.Array]) -> None:
    plain = partial(shared_prefix_attention, regions=regions)
    found, expected = (outputs_and_gradients(each, marks, inputs) for each in (attention, plain))
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(abs(b).max()), err_msg=name)


def careless(kernel: Kernel) -> Kernel:
    """A kernel that leaves NaN wherever it need not compute, and takes none."""

    def places(x, lengths, others):
        computed = (jnp.arange(x.shape[1])[None] < lengths[:, None]) & (others > 0)[:, None]
        return computed[(..., *(None,) * (x.ndim - 2))]

    def forward(q, k, v, q_lengths, kv_lengths, causal):
        out, lse = kernel.forward(q, k, v, q_lengths, kv_lengths, causal)
        sees = places(out, q_lengths, kv_lengths)
        return jnp.where(sees, out, jnp.nan), jnp.where(jnp.moveaxis(sees[..., 0], 1, -1), lse, jnp.nan)

    def backward(q, k, v, out, lse, d_out, q_lengths, kv_lengths, causal):
        d_q, *d_kv = kernel.backward(q, k, v, out, lse, d_out, q_lengths, kv_lengths, causal)
        seen = places(k, kv_lengths, q_lengths)
        return jnp.where(places(q, q_lengths, kv_lengths), d_q, jnp.nan), *(jnp.where(seen, d, jnp.nan) for d in d_kv)

    return Kernel(forward, backward)


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
def test_the_merge_gives_the_same_outputs_and_gradients(regions, lengths, heads):
    """Else models would be trained on other rewards on a GPU than elsewhere, or with wrong or NaN gradients."""
    marks = marks_of(regions, lengths)
    attention = partial(cudnn_attention, regions=regions, kernel=careless(REFERENCE))
    agree(attention, regions, marks, tensors(marks, heads, 8))


def test_large_scores_of_padding_do_no_harm():
    """Else the weights of padding, which overflow when they are computed again, would make gradients NaN."""
    regions, marks = (8, 6, 5), marks_of((8, 6, 5), [(4, 0, 3), (0, 2, 0)])
    q, k, v, d_out = tensors(marks, (1, 2), 8)
    padding = (marks.segments == 0)[..., None, None]
    inputs = [jnp.where(padding[..., None], 1e3, q), jnp.where(padding, 1e3, k), v, d_out]
    agree(partial(cudnn_attention, regions=regions, kernel=REFERENCE), regions, marks, inputs)


def rounding_errors(kernel: Kernel | None) -> None:
    """Compares the errors in bfloat16 with those of the plain form."""
    regions, marks = (72, 60, 200), marks_of((72, 60, 200), [(72, 60, 200), (40, 0, 131), (0, 7, 64), (0, 0, 0)])
    halves = [x.astype(jnp.bfloat16) for x in tensors(marks, (2, 2), 64)]
    merged = partial(cudnn_attention, regions=regions, kernel=kernel)
    plain = partial(shared_prefix_attention, regions=regions)
    expected = outputs_and_gradients(plain, marks, [x.astype(jnp.float32) for x in halves])
    found, usual = (outputs_and_gradients(attention, marks, halves) for attention in (merged, plain))
    for name, a, b, c in zip(("out", "d_q", "d_k", "d_v"), found, usual, expected, strict=True):
        errors = [float(jnp.linalg.norm(x.astype(jnp.float32) - c) / jnp.linalg.norm(c)) for x in (a, b)]
        print(f"{name}: {errors[0]:.1e}, plain {errors[1]:.1e}")
        assert a.dtype == jnp.bfloat16
        assert errors[0] <= 4 * errors[1], (name, errors)  # kernels' backward passes have but the rounded output


@pytest.mark.long
def test_half_precision_is_about_as_near_as_the_plain_form():
    """Else the merge would round much more than products in bfloat16 do."""
    rounding_errors(REFERENCE)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU, and JAX_PLATFORMS=cuda")
def test_a_gpu_gives_the_same_outputs_and_gradients():
    """Else cuDNN would treat lengths, log-sum-exps or padding in another way than the reference."""
    rounding_errors(None)


def test_devices_can_each_run_it_on_their_rows():
    """Else models on a mesh, whose forward runs in `shard_map`, could not use it."""
    regions, marks = (8, 6, 5), marks_of((8, 6, 5), [(8, 6, 5), (3, 2, 1)])
    merged = partial(cudnn_attention, regions=regions, kernel=REFERENCE)
    mesh = rm.make_mesh(data=2, devices=jax.devices()[:2])
    mapped = jax.shard_map(merged, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    agree(mapped, regions, marks, tensors(marks, (1, 2), 8))


@pytest.mark.parametrize("share_prefix", [True, False])
def test_lengths_say_what_is_visible_in_packed_rows_of_one_slot(share_prefix):
    """Else a row that packing makes would be one that causality and lengths cannot express."""
    rng = np.random.default_rng(0)
    prompts, ids = rng.integers(3, CONFIG.vocab_size, (3, 9)).tolist(), rng.integers(3, CONFIG.vocab_size, 20).tolist()
    lengths = [(4, 9), (20, 1), (3, 3)]
    sequences = [[[*p, 1, *ids[:a]], [*p, 2, *ids[:b]]] for p, (a, b) in zip(prompts, lengths, strict=True)]
    sequences.append([sequences[0][0], [7, *sequences[0][0]]])  # nothing in common, and one response of before
    sequences.append([sequences[0][0], sequences[0][0]])
    comparisons = flatten(sequences, [0.0] * len(sequences), CONFIG, share_prefix=share_prefix)
    regions = (32, 40, 40) if share_prefix else (0, 40, 40)
    batches = pack(comparisons, range(len(sequences)), [RowShape(rows=len(sequences), slots=1, regions=regions)])
    with compiling_for("gpu"):
        assert refuses("cudnn", Inputs(regions, 1, 128, jnp.bfloat16)) is None
    for batch in batches:
        starts, real = np.cumsum((0, *regions)), batch.segments > 0
        counts = [tuple(int(row[a:b].sum()) for a, b in pairwise(starts)) for row in real]
        meant, places = marks_of(regions, counts), np.broadcast_to(np.arange(sum(regions)), real.shape)
        marks = Marks(*map(jnp.asarray, (batch.segments, batch.parts, places)))
        np.testing.assert_array_equal(meant.segments, real)
        seen, expressed = (visible(each, each) & real[:, :, None] for each in (marks, meant))
        np.testing.assert_array_equal(seen, expressed)


def test_another_interface_to_cudnn_is_one_line(monkeypatch):
    """A JAX whose private functions have changed would end in a stack trace, or compute something else."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    marks = marks_of((8, 6), [(8, 6)])
    inputs = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in tensors(marks, (1, 1), 8)[:-1]]

    def run(*qkv):
        return jax.vjp(lambda *qkv: cudnn_attention(*qkv, marks, marks, (8, 6)), *qkv)[1](qkv[0])

    shapes = jax.eval_shape(partial(run), *inputs)  # by the interface of the JAX in use
    assert [(x.shape, x.dtype) for x in shapes] == [(x.shape, x.dtype) for x in inputs]
    monkeypatch.setattr(cudnn, "_dot_product_attention_fwd_impl", lambda query, renamed: None)
    with pytest.raises(rm.ConfigError, match=r"^cuDNN attention: .*jax") as error:
        jax.eval_shape(partial(run), *inputs)  # another function, which is traced anew
    assert "\n" not in str(error.value)


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
from rm.model.cudnn_attention import cudnn_attention

count = int(sys.argv[2])
mesh = rm.make_mesh(data=count, devices=find_devices(parse_topology(f"h100:{count}")))


def run(q, k, v, segments):
    marks = Marks(segments, segments, segments)
    return cudnn_attention(q, k, v, marks, marks, (512, 768, 768))


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
    assert done.stdout.split() == ["Softmax"] * 4 + ["SoftmaxBackward"] * 4  # three regions, and the prefix
