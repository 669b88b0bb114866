"""What is chosen on GPUs that are not here: the attention, the type, the recomputation and the micro-batches."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rm
from rm.commands.options import on_this_device
from rm.commands.score import ScoreArguments
from rm.commands.train import fit_device
from rm.commands.train_arguments import TrainArguments
from rm.devices.platform import Target, compiling_for, describe
from rm.model.attention import shared_prefix_attention
from rm.model.attention_choice import Inputs, choose_attention
from rm.model.presets import PRESETS
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack
from rm.training.objectives import pairwise_objective

from .test_cudnn_attention import marks_of, outputs_and_gradients, tensors
from .test_packing import real_comparisons, ten
from .tiny import CONFIG

# name: compute capability by NVIDIA's "CUDA GPUs", bytes of memory by its data sheets; then what is taken there
GPUS = {
    "NVIDIA B200": ("10.0", 180e9, "cudnn", "bfloat16"),
    "NVIDIA H200": ("9.0", 141e9, "cudnn", "bfloat16"),
    "NVIDIA H100 80GB HBM3": ("9.0", 80e9, "cudnn", "bfloat16"),
    "NVIDIA A100-SXM4-40GB": ("8.0", 40e9, "cudnn", "bfloat16"),
    "NVIDIA L4": ("8.9", 24e9, "cudnn", "bfloat16"),
    "NVIDIA GeForce RTX 4090": ("8.9", 24e9, "cudnn", "bfloat16"),
    "Tesla T4": ("7.5", 16e9, "xla", "float32"),
    "Tesla V100-SXM2-32GB": ("7.0", 32e9, "xla", "float32"),
    "AMD Instinct MI300X": ("gfx942", 192e9, "xla", "float32"),
}


def fake(name: str) -> Target:
    """A GPU as JAX describes it, with all its memory for JAX."""
    capability, memory, _, _ = GPUS[name]
    stats = {"bytes_limit": int(memory)}
    return describe(SimpleNamespace(platform="gpu", compute_capability=capability, memory_stats=lambda: stats))


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_takes_the_fused_form_in_bfloat16_where_it_has_both(name):
    """A run would be many times slower than the GPU allows, or fail in cuDNN."""
    _, _, form, dtype = GPUS[name]
    with compiling_for(fake(name)):
        assert rm.Compute(dtype="auto").dtype == dtype
        assert choose_attention("auto", Inputs((512, 256, 256), 64, jnp.dtype(dtype))) == form


@pytest.mark.parametrize(
    ("name", "model", "remat", "tokens"),
    [
        ("NVIDIA H100 80GB HBM3", "llama-1b", "none", 32768),
        ("NVIDIA A100-SXM4-40GB", "llama-1b", "none", 8192),
        ("NVIDIA H200", "llama-1b", "none", 32768),
        ("NVIDIA GeForce RTX 4090", "llama-8b", "full", 4096),  # nothing fits: the least
    ],
)
def test_as_little_is_recomputed_as_fits(name, model, remat, tokens):
    """A run would compute everything again for no reason, or run out of memory in its first update."""
    args = TrainArguments(model="m", dataset=("d",), output=Path("out"), dtype="bfloat16")
    with compiling_for(fake(name)):
        chosen = fit_device(args, PRESETS[model])
    assert (chosen.remat, chosen.micro_batch_tokens) == (remat, tokens)


def test_what_the_user_chose_stays():
    args = TrainArguments(model="m", dataset=("d",), output=Path("out"), remat="full", micro_batch_tokens=5000)
    with compiling_for(fake("NVIDIA H200")):
        chosen = fit_device(args, PRESETS["llama-1b"])
    assert (chosen.remat, chosen.micro_batch_tokens) == ("full", 5000)


def test_the_plain_form_takes_few_queries_at_once_on_gpus():
    """An old GPU would need an `N × N` array of scores for every head, and run out of memory."""
    marks = marks_of((300, 600), [(300, 600), (7, 401)])
    form = partial(shared_prefix_attention, regions=(300, 600))
    q, k, v, d_out = tensors(marks, (2, 2), 8)
    expected = outputs_and_gradients(form, marks, [q, k, v, d_out])
    with compiling_for(Target("gpu", 7.0)):
        found = outputs_and_gradients(form, marks, [q, k, v, d_out])
        scores = str(jax.make_jaxpr(lambda q: form(q, k, v, marks, marks))(q))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    assert "2,2,2,256,900]" in scores
    assert "600,900]" not in scores


@pytest.mark.optax
@pytest.mark.parametrize("remat", ["full", "none"])
def test_an_update_of_one_batch_is_one_program_with_the_same_result(batch, remat):
    """A GPU would write all gradients to memory and read them again, or compute them otherwise where it recomputes."""
    objective, optimizer = pairwise_objective(0.1, rm.Compute(attention="xla", remat=remat)), rm.adamw(1e-2)

    def run():
        model = rm.init_reward_model(CONFIG, key=jax.random.key(0))
        return rm.jit_update(objective, optimizer)(rm.init_state(model, optimizer), [batch])

    expected, losses = run()
    with compiling_for("gpu"):
        found, metrics = run()
    assert losses.keys() == metrics.keys()
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.fixture
def batch():
    (only,) = pack(ten(), range(10), [RowShape(rows=10, slots=1, regions=(32, 32, 32))])
    return only


def test_on_gpus_rows_are_made_for_the_fused_form():
    """The fused form would gather sequences of the length of whole rows, as many as never fit there."""
    with compiling_for("gpu"):
        plan = rm.plan_batches(ten([(30, 40, 40)] * 30 + [(200, 300, 300)] * 2), 16)
        assert all(choose_attention("auto", Inputs(s.regions, 64, jnp.bfloat16)) == "cudnn" for s in plan.shapes)
    assert max(shape.longest or 0 for shape in plan.shapes) == 512  # 500 in multiples of 32
    for batch in plan.batch_at(0):
        lengths = np.bincount(batch.segments.ravel())[1:]
        assert batch.longest is not None
        assert batch.positions.max() < batch.longest
        assert len(lengths) <= batch.ends.shape[1]


@pytest.mark.long
@pytest.mark.parametrize(("batch_size", "least"), [(16, 0.75), (64, 0.8)])
def test_little_is_padding_in_rows_for_gpus(batch_size, least):
    plan = rm.plan_batches(real_comparisons("hh-rlhf"), batch_size, layout="gathered", micro_batch_tokens=8192)
    assert len(plan.shapes) <= 8
    assert plan.fill() >= least


def test_a_type_that_rounds_is_said(capsys):
    """Scores would differ from those of another machine for no reason that one sees."""
    args = ScoreArguments(model="m", input=Path("in"), output=Path("out"))
    with compiling_for(fake("NVIDIA H200")):
        assert on_this_device(args).dtype == "bfloat16"
    assert capsys.readouterr().out == "computes in bfloat16; --dtype float32 gives the rewards of other devices\n"
    assert on_this_device(args).dtype == "float32"
    assert capsys.readouterr().out == ""
