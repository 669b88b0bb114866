"""Memory of a chip for the whole update, from the TPU compiler: no TPU and no weights are needed.

python -m pip install --no-deps --target LIBTPU 'libtpu==0.0.42.*'
python benchmarks/tpu.py --libtpu LIBTPU

The version is the one that jax 0.10.2 asks for. It stays out of the environment, where JAX would look for TPUs.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

# Model, topology, mesh, rows of 2048 tokens, and the GB of a chip that were asked for.
CASES = [("8B", "v5p:2x2x2", "fsdp=8", 8, 20), ("70B", "v6e:8x8", "fsdp=64", 64, 28)]
SHAPES = {"8B": (4096, 14336, 32, 32, 8), "70B": (8192, 28672, 80, 64, 8)}
REGIONS = (512, 768, 768)


def compile_update(shape: str, topology: str, sizes: str, rows: int):
    """The compiled update: float32 AdamW, bfloat16 compute, full remat."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import PartitionSpec as P

    import rm
    from rm.sharding import ROWS, parse_mesh, shardings, state_specs

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = rm.make_mesh(**parse_mesh(sizes), devices=devices)  # pyright: ignore[reportArgumentType]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = rm.LlamaConfig(vocab_size=128256, **dict(zip(names, SHAPES[shape], strict=True)))
    optimizer = rm.adamw(1e-5)
    model = jax.eval_shape(lambda: rm.init_reward_model(config, key=jax.random.key(0)))
    specs, moments = rm.partition_specs(model, mesh), jax.eval_shape(optimizer.init, model)  # pyright: ignore
    placement = shardings(rm.TrainState(P(), specs, state_specs(moments, model, specs)), mesh)  # pyright: ignore

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = rm.TrainState(jax.ShapeDtypeStruct((), jnp.int32), model, moments)  # pyright: ignore[reportArgumentType]
    tokens, slots = np.zeros((rows, sum(REGIONS)), np.int32), np.zeros((rows, 1), np.int32)
    ends, margin = np.zeros((rows, 1, 2), np.int32), np.zeros((rows, 1), np.float32)
    batch = rm.PreferenceBatch(tokens, tokens, tokens, tokens, ends, slots, margin, REGIONS)
    over_rows = shardings(P(ROWS), mesh)

    def objective(model, batch):
        r = rm.rewards(model, batch, dtype=jnp.bfloat16, attention="xla", mesh=mesh)
        return rm.pairwise_loss(r[..., 0], r[..., 1]), r

    update = partial(rm.update, objective=objective, optimizer=optimizer)
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(placement, None))
    inputs = jax.tree.map(placed, state, placement), [jax.tree.map(lambda x: placed(x, over_rows), batch)]
    return jitted.lower(*inputs).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--libtpu", type=Path, required=True, help="the folder that libtpu was installed into")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    if not (args.libtpu / "libtpu").is_dir():
        sys.exit(f"{args.libtpu}: holds no libtpu; the top of this file says how to install it")
    sys.path.insert(0, str(args.libtpu))
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    print("| model | topology | mesh | rows | peak of a chip, GB | asked for, GB | compiled in, s |")
    print("|---|---|---|---:|---:|---:|---:|")
    for shape, topology, sizes, rows, most in CASES:
        if shape in args.models:
            start = time.perf_counter()
            memory: Any = compile_update(shape, topology, sizes, rows).memory_analysis()
            peak = memory.peak_memory_in_bytes / 1e9
            seconds = time.perf_counter() - start
            print(f"| {shape} | {topology} | {sizes} | {rows} | {peak:.1f} | {most} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
