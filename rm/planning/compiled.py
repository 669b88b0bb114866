"""Compiling the real update for devices that are not present, in a subprocess (`python -m rm.planning.compiled`).

Compilers for accelerators register devices with JAX, which then looks for them; a subprocess keeps this isolated.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ..devices.mesh import ROWS, make_mesh, shardings
from ..devices.platform import compiling_for
from ..errors import ConfigError, RmError
from ..model.adapters import Training
from ..model.batch import PreferenceBatch
from ..model.compute import Compute
from ..model.config import LlamaConfig
from ..model.llama import rewards
from ..training.losses import pairwise_loss
from ..training.objectives import with_frozen
from ..training.offload import place_on_host
from ..training.optimizers import make_optimizer
from ..training.step import TrainState, update
from .chips import Topology, parse_topology
from .estimates import Case, kept

_USED = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT])")  # in TPU compilers' errors for lack of memory

_KERNELS = ("@tpu_custom_call", "@__cudnn$fmha")  # of splash attention and of cuDNN

# The figures of a GPU that XLA needs: NVIDIA's "Hopper Tuning Guide" and "H100 Tensor Core GPU Architecture", SXM
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""


def default_compilers() -> Path:
    """The folder to look for compilers in: `RM_COMPILERS`, else one in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("RM_COMPILERS") or cache / "rm" / "compilers")


def missing_compiler(topology: Topology, folder: Path) -> str | None:
    """The reason why there is no compiler for a topology, with the command that fetches all, or `None` if there is."""
    needed = {"tpu": ("libtpu", _libtpu()), "cuda": ("jax-cuda12-pjrt", jax.__version__)}.get(topology.chip.platform)
    if needed is None:  # CPUs bring theirs
        return None
    if not topology.chip.compiles:
        return f"the compiler's figures of {topology.chip.name} are not at hand"
    package, wanted = needed
    installed = next((dist.version for dist in distributions(name=package, path=[str(folder)])), None)
    if installed is not None and fnmatchcase(installed, wanted):
        return None
    found = (
        "no compiler" if installed is None else f"{package} {installed}, where JAX {jax.__version__} needs {wanted},"
    )
    return f"{found} in {folder}; fetch it with: {fetch_command(folder)}"


def fetch_command(folder: Path) -> str:
    """The command that fetches the compilers for this version of JAX; it does not touch JAX's environment."""
    cuda = f"jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__} 'nvidia-cuda-nvcc-cu12==12.9.*'"
    return f"python -m pip install --no-deps --upgrade --target {folder} 'libtpu=={_libtpu()}' {cuda}"


def _libtpu() -> str:
    """The version of libtpu that the installed JAX requires, such as 0.0.42.*."""
    requirement = next(line.partition(";")[0] for line in requires("jax") or () if line.startswith("libtpu"))
    return requirement.partition("==")[2].strip()


class Compiled(NamedTuple):
    """The compiler's figures for an update."""

    peak: int  # bytes per device
    kernels: int  # calls of attention kernels in the program; 0 also if it did not fit
    seconds: float


def ask_compiler(case: Case, topology: Topology, folder: Path) -> Compiled:
    """Compiles an update for a topology in a subprocess and returns the compiler's figures.

    **Raises:** `ConfigError` if the compiler does not know the topology, `RmError` if it fails.
    """
    request = {**dataclasses.asdict(case), "config": case.config.to_hf(), "topology": topology.name}
    flags = f"{os.environ.get('XLA_FLAGS', '')} {compiler_flags(topology)}".strip()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # there is no TPU to query or to lock
    start = time.perf_counter()
    command = [sys.executable, "-m", "rm.planning.compiled", str(folder)]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return Compiled(**json.loads(done.stdout.splitlines()[-1]), seconds=seconds)
    used = _USED.search(done.stderr)
    if used:  # the compiler gives up if the update does not fit, and reports the memory it would use
        return Compiled(int(float(used[1]) * 1024 ** (1 + "KMGT".index(used[2]))), 0, seconds)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    kind = ConfigError if "topology" in last.lower() else RmError
    raise kind(f"{topology.name}: the compiler says: {last[:300]}")


def compiler_flags(topology: Topology) -> str:
    """The XLA flags for compiling without devices; on CPUs buffers are assigned before code is optimized."""
    return {
        "cpu": f"--xla_force_host_platform_device_count={topology.devices} --xla_backend_optimization_level=0",
        "cuda": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
        "tpu": "",
    }[topology.chip.platform]


def find_devices(topology: Topology) -> list[Any]:
    """The devices of a topology; they need not be present."""
    from jax.experimental import topologies

    chip, shape = topology.chip, "x".join(map(str, topology.shape))
    if chip.platform == "cpu":
        return jax.devices("cpu")[: topology.devices]
    if chip.platform == "tpu":
        return list(topologies.get_topology_desc(platform="tpu", topology_name=f"{chip.name}:{shape}").devices)
    _assume_cudnn()
    target = _GPU.format(name=chip.name, memory=int(chip.memory))
    hosts = f"1x{max(1, topology.devices // 8)}x{min(8, topology.devices)}"
    options = {"topology": hosts, "target_config": target}
    return list(topologies.get_topology_desc(platform="cuda", topology_name=topology.name, **options).devices)


def _assume_cudnn() -> None:
    """Has JAX trace cuDNN's kernels in this process without the library, whose version it asks for."""
    from jax._src.cudnn import fused_attention_stablehlo

    fused_attention_stablehlo.check_cudnn_version = lambda: 90800  # as `dnn_version_info` says


def lower_update(case: Case, devices: list[Any]) -> Any:
    """Lowers the `update` of a case for compilation; allocates nothing."""
    mesh, optimizer = (
        make_mesh(**case.mesh, devices=devices),
        make_optimizer(case.optimizer, 1e-5, moments=case.moments, offload=case.offload),
    )
    shapes = kept(case)
    moments = shardings(shapes.moment_specs, mesh)
    first, specs = shardings((P(), shapes.specs), mesh)
    placement = TrainState(first, specs, place_on_host(moments, shapes.moments))
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes.model, shapes.moments)  # pyright: ignore

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    compute = Compute(dtype=case.dtype, remat=case.remat, attention=case.attention, mesh=mesh)

    def objective(model: Any, batch: PreferenceBatch):
        r = rewards(model, batch, compute)
        return pairwise_loss(r[..., 0], r[..., 1]), r

    def step(state: TrainState, frozen: Any, batches: list[PreferenceBatch]):
        return update(state, batches, with_frozen(objective, frozen), optimizer)

    over_rows = shardings(P(ROWS), mesh)
    batch = jax.tree.map(lambda leaf: placed(leaf, over_rows), _batch(case))
    frozen = jax.tree.map(placed, shapes.frozen, shardings(shapes.frozen_specs, mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(placement, None))
    return jitted.lower(jax.tree.map(placed, state, placement), frozen, [batch])


def _batch(case: Case) -> PreferenceBatch:
    tokens, slots = np.zeros((case.rows, sum(case.regions)), np.int32), np.zeros((case.rows, 1), np.int32)
    ends, margin = np.zeros((case.rows, 1, 2), np.int32), np.zeros((case.rows, 1), np.float32)
    return PreferenceBatch(tokens, tokens, tokens, tokens, ends, slots, margin, case.regions)


def peak_bytes(compiled: Any, platform: str) -> int:
    """The peak memory of a device."""
    memory = compiled.memory_analysis()
    if platform != "cpu":
        return memory.peak_memory_in_bytes - memory.host_argument_size_in_bytes  # the peak includes host memory
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes  # on CPUs the peak omits temporaries
    return held + memory.output_size_in_bytes - memory.alias_size_in_bytes


def main() -> None:
    """Answers the request of `ask_compiler` on standard input."""
    sys.path.insert(0, sys.argv[1])
    request = json.load(sys.stdin)
    topology = parse_topology(request.pop("topology"))
    config, part = LlamaConfig.from_hf(request["config"]), Training(**request["part"])
    case = Case(**{**request, "config": config, "part": part})
    with compiling_for(topology.chip.platform):
        lowered = lower_update(case, find_devices(topology))
    text = lowered.as_text()
    kernels = sum(text.count(call) for call in _KERNELS)
    print(json.dumps({"peak": peak_bytes(lowered.compile(), topology.chip.platform), "kernels": kernels}))


if __name__ == "__main__":
    main()
