"""The real update through the compilers of TPUs and GPUs, which `.ci/compilers` fetches; no such device is needed."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import rm
from rm.model.attention_choice import Attention
from rm.planning.chips import parse_topology
from rm.planning.compiled import compiler_flags, default_compilers, missing_compiler

CASES = [  # model, topology, rows of 2048 tokens, and the most GB of a device
    ("llama-8b", "v5p:2x2x2", 8, 20),
    ("llama-70b", "v6e:8x8", 64, 28),
    ("llama-8b", "h100:8", 8, 80),
]
KERNELS = {"v5p:2x2x2": "splash", "v6e:8x8": "splash", "h100:8": "cudnn"}


@cache
def compiled(model: str, topology: str, rows: int, copies: int = 1, attention: Attention = "auto") -> rm.Plan:
    reason = missing_compiler(parse_topology(topology), default_compilers())
    if reason:
        pytest.skip(reason)
    mesh = {"data": copies} if copies > 1 else None
    return rm.plan(model, topology, batch_size=rows, mesh=mesh, attention=attention)


@pytest.mark.parametrize(("model", "topology", "rows", "most"), CASES)
def test_the_update_fits_by_the_word_of_the_compiler(model, topology, rows, most):
    """A model would be said to fit machines on which the first update runs out of memory."""
    found = compiled(model, topology, rows)
    print(f"{model} on {topology}: {found.peak_bytes_per_device / 1e9:.1f} GB in {found.compile_seconds:.0f} s")
    assert found.compiled
    assert found.peak_bytes_per_device <= most * 1e9
    assert found.attention == KERNELS[topology]
    assert found.attention_kernels
    kept = found.parameter_bytes_per_device + found.optimizer_bytes_per_device
    assert found.peak_bytes_per_device > kept


@pytest.mark.parametrize(("model", "topology", "rows", "most"), CASES)
def test_the_estimate_is_near_what_the_compiler_says(model, topology, rows, most):
    """Where there is no compiler, the estimate would mislead."""
    measured = compiled(model, topology, rows).peak_bytes_per_device
    estimated = rm.plan(model, topology, batch_size=rows, compilers=default_compilers() / "none").peak_bytes_per_device
    assert estimated == pytest.approx(measured, rel=0.2)


def test_cudnn_is_in_the_program_for_gpus_and_needs_less_memory():
    """Who asks for cuDNN's kernels would get the plain form, with its scores."""
    plain, fused = (compiled("llama-8b", "h100:8", 8, attention=form) for form in ("xla", "cudnn"))
    assert fused.attention_kernels
    assert not plain.attention_kernels
    assert fused.peak_bytes_per_device < plain.peak_bytes_per_device


# by `python benchmarks/compiled_gpu.py` on jax 0.10.2, with some room: GB accessed, temporary GB, copies
BOUNDS = {("h100:1", "full"): (175, 7.5, 33), ("h100:1", "none"): (200, 19, 38), ("h100:8", "none"): (48, 3, 38)}


@pytest.mark.parametrize(("topology", "remat"), BOUNDS)
def test_the_update_for_gpus_moves_no_more_than_it_did(topology, remat):
    """A change would bring back scores in memory, residuals in float32 or copies, which no test of values notices."""
    reason = missing_compiler(parse_topology(topology), default_compilers())
    if reason:
        pytest.skip(reason)
    script = Path(rm.__file__).parents[1] / "benchmarks" / "compiled_gpu.py"
    command = [sys.executable, script, "--child", topology, "llama-1b", "8", "auto", remat]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiler_flags(parse_topology(topology))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1].removeprefix("result "))
    print(topology, remat, found)
    accessed, temporary, copies = BOUNDS[topology, remat]
    assert found["cuDNN forward"] >= (2 if remat == "full" else 1)
    assert found["cuDNN backward"] >= 1
    assert found["N × N buffers"] == 0
    assert found["GB accessed"] <= accessed
    assert found["temporary GB"] <= temporary
    assert found["copies"] <= copies


@pytest.mark.parametrize("topology", ["v5p:2x2x2", "h100:8"])
def test_what_the_host_keeps_leaves_the_device(topology):
    """Compilers that fetch the whole of it at once make `--offload` cost time for nothing."""
    reason = missing_compiler(parse_topology(topology), default_compilers())
    if reason:
        pytest.skip(reason)
    found = rm.plan("llama-8b", topology, batch_size=8, offload=True)
    saved = compiled("llama-8b", topology, 8).peak_bytes_per_device - found.peak_bytes_per_device
    assert found.host_bytes_per_device >= saved >= 0.65 * found.host_bytes_per_device
    estimated = rm.plan("llama-8b", topology, batch_size=8, offload=True, compilers=default_compilers() / "none")
    assert estimated.peak_bytes_per_device == pytest.approx(found.peak_bytes_per_device, rel=0.2)


def test_compilers_of_another_jax_are_not_asked(tmp_path):
    """They would fail in the middle of a compilation, or answer for programs that this JAX does not make."""
    where = tmp_path / "jax_cuda12_pjrt-0.4.1.dist-info"
    where.mkdir()
    (where / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-cuda12-pjrt\nVersion: 0.4.1\n")
    reason = missing_compiler(parse_topology("h100:8"), tmp_path)
    assert reason is not None
    assert reason.startswith("jax-cuda12-pjrt 0.4.1, where JAX ")


def test_what_a_compiler_cannot_fit_is_a_plan_too():
    """The compiler's refusal would be a stack trace instead of an exit with the shortfall."""
    found = compiled("llama-8b", "v5e:2x4", 8)
    assert found.missing_bytes > 0


def test_a_topology_that_a_compiler_refuses_is_one_line():
    """The reason would be hidden in a stack trace."""
    with pytest.raises(rm.ConfigError, match=r"^v5p:3x5x1: .*not divisible") as error:
        compiled("llama-8b", "v5p:3x5x1", 15, copies=15)
    assert "\n" not in str(error.value)
