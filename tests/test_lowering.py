"""The attention implementation that is taken, and the word to the user where it is not the fastest."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rm
from rm.devices.platform import compiling_for
from rm.errors import warn_once
from rm.model.attention_choice import Inputs, choose_attention

REGIONS = (4, 2, 2)


@pytest.mark.parametrize(
    ("platform", "dtype", "form"),
    [
        ("cpu", jnp.float32, "block"),
        ("tpu", jnp.bfloat16, "splash"),
        ("tpu", jnp.float32, "xla"),
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", jnp.float32, "xla"),
    ],
)
def test_auto_takes_the_fastest_exact_form(platform, dtype, form):
    """A slow form would run unnoticed, or one that is not exact."""
    with compiling_for(platform):
        assert choose_attention("auto", Inputs(REGIONS, 64, dtype)) == form


@pytest.mark.parametrize(
    ("regions", "dtype", "context", "reason"),
    [
        ((8,), jnp.bfloat16, 1, "takes rows of several regions, found (8,)"),
        (REGIONS, jnp.float32, 1, "does not take float32 with heads of 64"),
        (REGIONS, jnp.bfloat16, 2, "takes whole rows, found context=2"),
    ],
)
def test_a_fallback_is_said_once_in_one_line(regions, dtype, context, reason, caplog):
    """A run on TPUs would be slow for a reason that nobody sees, or say it at every compilation."""
    warn_once.cache_clear()
    with compiling_for("tpu"), caplog.at_level(logging.WARNING, logger="rm"):
        for _ in range(2):
            assert choose_attention("auto", Inputs(regions, 64, dtype, context)) == "xla"
    assert [record.getMessage() for record in caplog.records] == [
        f"attention by 'xla', slower than 'splash', which {reason}"
    ]


@pytest.mark.parametrize(
    ("platform", "form", "inputs", "reason"),
    [
        ("cpu", "splash", Inputs(REGIONS, 64, jnp.bfloat16), "is for TPUs, found cpu"),
        ("tpu", "cudnn", Inputs(REGIONS, 64, jnp.bfloat16), "is for GPUs, found tpu"),
        ("tpu", "splash", Inputs(REGIONS, 64, jnp.float32), "does not take float32 with heads of 64"),
        ("gpu", "cudnn", Inputs(REGIONS, 100, jnp.bfloat16), "does not take bfloat16 with heads of 100"),
    ],
)
def test_a_form_that_is_asked_for_is_not_replaced(platform, form, inputs, reason):
    """A comparison of forms would compare one with itself, or a kernel would compute something else."""
    with compiling_for(platform), pytest.raises(rm.ConfigError) as error:
        choose_attention(form, inputs)
    assert str(error.value) == f"attention {form!r} {reason}; use 'auto' or 'xla'"


@pytest.fixture(scope="module")
def forward_inputs():
    """A model, by its shapes, and a batch of two empty rows."""
    config = rm.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = jax.eval_shape(lambda: rm.init_reward_model(config, key=jax.random.key(0)))
    row, slot = np.zeros((2, 128), np.int32), np.zeros((2, 1), np.int32)
    ends, margin = np.zeros((2, 1, 2), np.int32), np.zeros((2, 1), np.float32)
    return model, rm.PreferenceBatch(row, row, row, row, ends, slot, margin, (64, 32, 32))


def test_rows_cut_along_context_are_refused_by_kernels(forward_inputs):
    """Else queries of one device would be masked as though its keys were all there are."""
    mesh = rm.make_mesh(context=2, devices=jax.devices()[:2])
    forward = partial(rm.rewards, compute=rm.Compute(dtype=jnp.bfloat16, attention="splash", mesh=mesh))
    with compiling_for("tpu"), pytest.raises(rm.ConfigError, match="takes whole rows, found context=2"):
        jax.eval_shape(forward, *forward_inputs)


def test_the_model_takes_the_form_that_is_chosen(forward_inputs):
    """The choice would have no effect on what is computed."""
    model, batch = forward_inputs

    def kernels(attention: str) -> int:
        jax.clear_caches()  # the platform is no part of what JAX knows a trace by

        def forward(model, batch):
            return rm.rewards(model, batch, rm.Compute(dtype=jnp.bfloat16, attention=attention))

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return str(jax.make_jaxpr(forward)(model, batch)).count("pallas_call")

    with compiling_for("tpu"):
        assert kernels("auto") == kernels("splash") > 0
        assert kernels("xla") == 0
    assert kernels("auto") == 0
