"""`rm plan`: the figures a researcher buys machines by."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import rm
from rm.__main__ import main
from rm.commands.plan import describe
from rm.model.presets import PRESETS
from rm.planning.advice import largest_batch
from rm.planning.chips import parse_topology
from rm.planning.compiled import lower_update, peak_bytes
from rm.planning.estimates import Case, communication, kept
from rm.planning.flops import count_parameters
from rm.planning.memory import estimate, optimizer_bytes
from rm.planning.plans import link_seconds

SMALL = rm.LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
NOWHERE = Path("nowhere")  # no compilers there


@pytest.mark.parametrize(
    ("name", "published"),
    [  # parameters of the causal models on the hub, their output layer where it is not the embedding taken off
        ("llama-1b", 1_235_814_400),
        ("llama-3b", 3_212_749_824),
        ("llama-8b", 8_030_261_248 - 128256 * 4096),
        ("llama-70b", 70_553_706_496 - 128256 * 8192),
        ("llama-405b", 405_853_388_800 - 128256 * 16384),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360 - 151936 * 4096),
        ("qwen2.5-7b", 7_615_616_512 - 152064 * 3584),
        ("mistral-7b", 7_241_732_096 - 32000 * 4096),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, published):
    """Every figure of a plan would be that of another model."""
    head = PRESETS[name].hidden_size
    assert count_parameters(PRESETS[name]) == published + head


@pytest.mark.optax
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "tensor": 2, "fsdp": 2}])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon", "adafactor"])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_kept_bytes_are_those_of_the_real_arrays(mesh, optimizer, moments):
    """A plan would promise memory that the run then does not have."""
    cost = estimate(Case(config=SMALL, mesh=mesh, rows=8, max_length=64, optimizer=optimizer, moments=moments))
    model = rm.place_model(rm.init_reward_model(SMALL, key=jax.random.key(0)), rm.make_mesh(**mesh))
    state = rm.init_state(model, rm.make_optimizer(optimizer, 1e-3, moments=moments))

    def on_one_device(tree) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert cost.parameters == on_one_device(state.model) == cost.gradients
    assert cost.optimizer == on_one_device(state.opt_state)


@pytest.mark.optax
def test_what_the_host_keeps_is_planned_there():
    """A plan would promise memory of the device that the run then takes, or forget the host's."""
    case = Case(config=SMALL, mesh={"fsdp": 8}, rows=8, max_length=64)
    host = dataclasses.replace(case, offload=True)
    assert estimate(host).optimizer == 0
    extra = 4 * (len(jax.tree.leaves(kept(case).model)) - 1)  # every leaf counts its updates
    assert optimizer_bytes(host) == estimate(case).optimizer + extra
    found = rm.plan("llama-8b", "v5e:2x4", offload=True, compilers=NOWHERE)
    assert (
        found.peak_bytes_per_device + found.host_bytes_per_device
        > rm.plan("llama-8b", "v5e:2x4", compilers=NOWHERE).peak_bytes_per_device
    )
    assert found.missing_bytes == 0


def test_bytes_per_parameter_are_the_known_ones():
    """The choice of an optimizer would rest on wrong figures (Rajbhandari et al. 2019: 16 for AdamW in float32)."""

    def each(**options) -> float:
        return rm.plan("llama-8b", "v5p:2x2x2", compilers=NOWHERE, **options).bytes_per_parameter

    assert each() == pytest.approx(16, abs=0.01)
    assert each(moments="bfloat16") == pytest.approx(12, abs=0.01)
    assert each(moments="bfloat16", parameters="bfloat16") == pytest.approx(10, abs=0.01)
    assert each(optimizer="lion") == pytest.approx(12, abs=0.01)
    assert each(optimizer="adafactor") == pytest.approx(8, abs=0.02)
    assert each(mesh={"data": 2, "fsdp": 4}) == pytest.approx(16, abs=0.01)


@pytest.mark.long
@pytest.mark.gate
@pytest.mark.optax
def test_a_cpu_topology_is_compiled_and_gives_what_its_compiler_says():
    """The figure called compiled would be something else."""
    case = Case(config=SMALL, mesh={"fsdp": 4, "tensor": 2}, rows=8, max_length=64, attention="xla")
    found = rm.plan(SMALL, "cpu:8", mesh=case.mesh, max_length=64, attention="xla", compilers=NOWHERE)
    assert found.compiled
    assert found.peak_bytes_per_device == peak_bytes(lower_update(case, jax.devices()).compile(), "cpu")
    parts = ("parameter", "optimizer", "gradient", "activation")
    assert sum(getattr(found, f"{part}_bytes_per_device") for part in parts) == found.peak_bytes_per_device


@pytest.mark.optax
@pytest.mark.parametrize(
    "options",
    [
        {"mesh": {}},
        pytest.param({"mesh": {"fsdp": 4}, "rows": 32}, marks=pytest.mark.long),
        pytest.param({"mesh": {}, "rows": 8, "remat": "none", "dtype": "float32"}, marks=pytest.mark.long),
        pytest.param({"mesh": {}, "remat": "none"}, marks=pytest.mark.long),
        pytest.param({"mesh": {}, "rows": 1, "max_length": 64, "moments": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_the_formula_for_cpus_is_within_a_tenth_of_the_compiler(options):
    """The largest batch of a plan, which is found by formula, would run out of memory."""
    config = dataclasses.replace(SMALL, hidden_size=128, intermediate_size=512, vocab_size=512)
    case = Case(config=config, attention="block", **{"rows": 4, "max_length": 512} | options)
    devices = jax.devices()[: math.prod(case.mesh.values())]
    fast = {"xla_backend_optimization_level": 0}  # buffers are assigned before code is optimized
    measured = peak_bytes(lower_update(case, devices).compile(compiler_options=fast), "cpu")
    assert estimate(case).peak == pytest.approx(measured, rel=0.1)


@pytest.mark.long
def test_the_benchmark_of_the_formula_runs():
    script = Path(rm.__file__).parents[1] / "benchmarks/plan.py"
    done = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True, check=True, timeout=300)
    (median,) = re.findall(r"^1 cases: median (\d\.\d\d), ", done.stdout, re.MULTILINE)
    assert float(median) == pytest.approx(1, abs=0.1)


def test_without_a_compiler_the_plan_says_that_it_is_an_estimate():
    """An estimate would be taken for a measurement."""
    found = rm.plan("llama-8b", "h100:8", compilers=NOWHERE)
    assert not found.compiled
    assert "--target nowhere 'libtpu==" in found.note
    assert describe(found)[1].startswith("ESTIMATED, not compiled: no compiler in nowhere")


@pytest.mark.long
def test_what_does_not_fit_exits_with_1_and_the_shortfall(tmp_path, capsys):
    """A script would go on to rent machines that the model does not fit."""
    file = tmp_path / "plan.json"
    command = ["plan", "--model", "llama-70b", "--topology", "v5e:4x4", "--batch-size", "16", "--compilers", "nowhere"]
    assert main([*command, "--json", str(file)]) == 1
    values = json.loads(file.read_text())
    missing = values["peak_bytes_per_device"] - 16e9
    assert missing == values["missing_bytes"] > 0
    assert f"DOES NOT FIT: {missing / 1e9:.2f} GB of a device are missing" in capsys.readouterr().out
    assert values["largest_batch_size"] == 0


def test_what_fits_exits_with_0(capsys):
    """A plan that fits would be refused."""
    command = ["plan", "--model", "llama-8b", "--topology", "v5p:2x2x2", "--compilers", "nowhere"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("fits\n")


def test_advice_leads_to_a_plan_that_fits():
    """Whoever follows the advice would end with another plan that does not fit."""
    found = rm.plan("llama-8b", "v5e:2x4", compilers=NOWHERE)
    (advice,) = found.advice
    assert advice.startswith("--moments bfloat16: ")
    assert rm.plan("llama-8b", "v5e:2x4", moments="bfloat16", compilers=NOWHERE).missing_bytes == 0


def test_the_largest_batch_fits_and_the_next_does_not():
    """The batch that a plan recommends would fail, or half of the memory would lie idle."""
    case, memory = Case(config=PRESETS["llama-8b"], mesh={"fsdp": 8}, rows=8), 95e9
    most = largest_batch(case, estimate(case), memory)
    peaks = [estimate(dataclasses.replace(case, rows=rows)).peak for rows in (most, most + 8)]
    assert peaks[0] <= memory < peaks[1]


def test_on_cpus_a_figure_of_few_rows_does_not_lower_that_of_many():
    """The formula is too high for few rows and right for many, so the largest batch would run out of memory."""
    case, memory = Case(config=PRESETS["llama-8b"], mesh={"fsdp": 8}, rows=8), 95e9
    cost = estimate(case)
    assert largest_batch(case, cost._replace(activations=cost.activations // 2), memory) == largest_batch(
        case, cost, memory
    )
    assert largest_batch(case, cost._replace(activations=cost.activations * 2), memory) < largest_batch(
        case, cost, memory
    )


def test_communication_by_hand():
    """The time that a mesh loses to its links would be wrong."""
    # 64·(64 + 32 + 32 + 64) attention + 3·64·128 MLP weights in each of 3 layers, bfloat16 thrice, float32 once
    weights, tokens = 3 * (64 * 192 + 3 * 64 * 128), 8 * 64 // 8
    case = Case(config=SMALL, mesh={"fsdp": 8}, rows=8, max_length=64)
    norms = 3 * 2 * 64  # are part of the blocks too
    assert communication(case) == {"fsdp": int(7 / 8 * ((weights + norms) * 10 + 2 * tokens * 64 * 2))}
    copies = dataclasses.replace(case, mesh={"data": 8})
    assert communication(copies) == {"data": 2 * 7 * count_parameters(SMALL) * 4 // 8}


def test_the_floor_of_time_is_operations_over_the_published_rate():
    """A run would be planned for a time that it cannot keep."""
    found = rm.plan("llama-8b", "h100:8", compilers=NOWHERE)
    assert found.compute_seconds == pytest.approx(found.flops / 8 / 989e12)
    assert found.seconds >= found.compute_seconds
    assert rm.plan("llama-8b", "h100:8", dtype="float32", compilers=NOWHERE).seconds is None


def test_a_directory_is_planned_by_its_config_alone(tmp_path):
    """A plan would want weights that are not downloaded yet."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_hf()))
    by_directory = rm.plan(tmp_path, "h100:8", compilers=NOWHERE)
    assert by_directory == rm.plan(SMALL, "h100:8", compilers=NOWHERE)


@pytest.mark.parametrize(
    ("mesh", "seconds"),
    [  # 450 GB/s within a machine of eight, 50 GB/s a device beyond
        ({"fsdp": 8}, 9e9 / 450e9),
        ({"fsdp": 64}, 9e9 / 400e9),  # eight ports of a machine share what it lacks
        ({"data": 8, "fsdp": 8}, 9e9 / 450e9 + 9e9 / 50e9),
        ({"fsdp": 8, "tensor": 8}, 9e9 / 50e9 + 9e9 / 450e9),
        ({"fsdp": 32, "tensor": 2}, 9e9 / 200e9 + 9e9 / 450e9),
    ],
)
def test_links_by_hand(mesh, seconds):
    """A mesh that crosses machines would look as fast as one within, or slower than it is."""
    found = link_seconds(mesh, dict.fromkeys(mesh, int(9e9)), parse_topology("h100:64").chip)
    assert found == pytest.approx(seconds)


def test_more_rows_are_advised_where_sending_takes_longer():
    """Devices would idle for their links although there is memory for more rows."""
    found = rm.plan("llama-8b", "h100:8", compilers=NOWHERE)
    assert found.communication_seconds > found.compute_seconds
    assert sum(text.startswith("--batch-size 16: sending takes 1.3 times") for text in found.advice) == 1
    more = rm.plan("llama-8b", "h100:8", batch_size=16, compilers=NOWHERE)
    assert more.communication_seconds < more.compute_seconds
    assert not any("sending" in text for text in more.advice)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--topology", "v9:2x2"], "no topology is called 'v9:2x2'"),
        (["--topology", "v5p:2x2"], "no topology is called 'v5p:2x2'"),
        (["--topology", "h100:0"], "no topology is called 'h100:0'"),
        (["--topology", "v5p:2x2x2", "--mesh", "fsdp=4"], "mesh fsdp=4 takes 4 devices, v5p:2x2x2 has 8"),
        (["--topology", "v5p:2x2x2", "--mesh", "fsdp=4,pipe=2"], "'pipe=2'"),
        (["--topology", "v5p:2x2x2", "--batch-size", "12"], "12 rows does not divide over data·fsdp = 8 devices"),
        (["--topology", "v6e:4x4", "--mesh", "tensor=16"], "must divide num_key_value_heads, found 8"),
        (["--topology", "h100:8", "--max-length", "100"], "a multiple of 8 tokens long, found 100"),
        (["--topology", "h100:8", "--json", "tests"], "tests: is a directory; name a file"),
        (
            ["--topology", "h100:8", "--json", "nowhere/plan.json"],
            "nowhere/plan.json: cannot be written (nowhere is not a directory)",
        ),
        (["--topology", "h100:8", "--model", "llama-9b"], "or one of llama-1b, llama-3b"),
    ],
)
def test_bad_input_is_one_line(options, line, capsys):
    """The reason would be hidden in a stack trace, or a plan made of something else than was asked for."""
    model = [] if "--model" in options else ["--model", "llama-8b"]
    assert main(["plan", *model, *options, "--compilers", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_topologies_are_read():
    """The wrong number of devices would be planned for."""
    found = [parse_topology(name).devices for name in ("v5e:4x4", "v5p:2x2x4", "h200:8", "h100", "cpu:2")]
    assert found == [16, 16, 8, 1, 2]
    assert jnp.isclose(parse_topology("cpu:2").chip.memory * 2, parse_topology("cpu").chip.memory)
