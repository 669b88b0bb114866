"""What an update costs, counted rather than timed: operations, memory and compilations that a slow-down would raise."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest

import rm
from rm.planning.flops import count_parameters, count_work, update_flops

_FILE = Path(__file__).parents[1] / "benchmarks" / "random_comparisons.py"
_SPEC = importlib.util.spec_from_file_location("random_comparisons", _FILE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
random_comparisons = _MODULE.random_comparisons

LENGTHS = (64, 32, 32)  # of a prefix and two responses: rows without padding


def llama(layers: int = 4) -> rm.LlamaConfig:
    return rm.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def objective(model, batch, **options):
    rewards = rm.rewards(model, batch, rm.Compute(**options))
    return rm.pairwise_loss(rewards[..., 0], rewards[..., 1]), rewards


def one_batch(config: rm.LlamaConfig, layout: str) -> tuple[rm.PreferenceBatch, np.ndarray]:
    """Four comparisons, each in a full row."""
    comparisons = random_comparisons(config, 4, *LENGTHS)
    plan = rm.plan_batches(comparisons, 4, rows=4, micro_batch_tokens=sum(LENGTHS), layout=layout)
    (batch,) = plan.batch_at(0)
    assert batch.tokens.shape == (4, sum(LENGTHS))
    return batch, comparisons.lengths


def products(jaxpr) -> int:
    """Operations of all matrix products, those in a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), out = equation.params["dimension_numbers"], equation.outvars[0].aval
            total += 2 * out.size * int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_update_computes_what_it_must_and_hardly_more(remat, dtype):
    """A prompt computed twice, a last block on every token, or a product computed again would all show."""
    config = llama()
    batch, lengths = one_batch(config, "regions")
    model = rm.init_reward_model(config, key=jax.random.key(0))
    options = {"remat": remat, "attention": "xla", "dtype": jax.numpy.dtype(dtype)}
    traced = jax.make_jaxpr(partial(rm.accumulate, None, objective=partial(objective, **options)))(model, batch)
    floor = update_flops(config, count_work(lengths), remat=remat).total
    assert 1.0 <= products(traced.jaxpr) / floor < 1.15


def compiled(layers: int, **options) -> Any:
    """The gradient of a micro-batch."""
    config = llama(layers)
    batch, _ = one_batch(config, "whole")
    model = rm.init_reward_model(config, key=jax.random.key(0))
    accumulate = jax.jit(partial(rm.accumulate, None, objective=partial(objective, **options)))
    return accumulate.lower(model, batch).compile()


def planned_bytes(layers: int, **options) -> int:
    """Memory that the compiler plans for a micro-batch beside its inputs and the gradients."""
    return compiled(layers, **options).memory_analysis().temp_size_in_bytes


@pytest.mark.long
@pytest.mark.gate
def test_cosines_are_computed_once():
    """Left to itself, XLA for CPUs computes them in every rotation, forward and backward."""
    assert compiled(4, remat="none").as_text().count(" cosine(") == 1


@pytest.mark.long
def test_remat_keeps_no_more_of_a_layer_than_its_input():
    """Else long rows and deep models run out of memory although they were asked not to."""
    carry, weights = 4 * 4 * sum(LENGTHS) * 128, 4 * count_parameters(llama(1))
    growth = (planned_bytes(10, remat="full") - planned_bytes(4, remat="full")) / 6
    assert growth < carry + 1.5 * weights
    none = (planned_bytes(10, remat="none") - planned_bytes(4, remat="none")) / 6
    assert none > 8 * carry, "the measure does not see what is kept"


@pytest.mark.long
def test_each_remat_policy_keeps_less_than_the_one_before():
    none, dots, full = (planned_bytes(6, remat=remat) for remat in ("none", "dots", "full"))
    assert none > 1.2 * dots
    assert dots > 1.2 * full


@pytest.mark.long
@pytest.mark.optax
@pytest.mark.parametrize("again", ["an update", "an epoch"])
def test_the_second_time_compiles_nothing(again):
    """What changes on the way, as a step counter's type or whether arrays are committed, would compile again."""
    config = llama(2)
    comparisons = random_comparisons(config, 12, *LENGTHS)
    plan = rm.plan_batches(comparisons, 4)
    optimizer = rm.adamw(1e-3)
    state = rm.init_state(rm.init_reward_model(config, key=jax.random.key(0)), optimizer)
    step, compiled = rm.jit_update(objective, optimizer), []

    def listen(event: str, *_, **__) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        counts = []
        for _ in range(2):
            for number in range(1 if again == "an update" else plan.steps_per_epoch):
                state, _ = step(state, plan.batch_at(number))
            counts.append(len(compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[0] > 0, "the measure does not see what is compiled"
    assert counts[1] == counts[0]
