"""Time of attention in blocks against the plain form, on packed rows: `python benchmarks/attention.py [--quick]`."""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rm.model.attention import Marks, shared_prefix_attention
from rm.model.block_attention import block_attention, find_blocks

REGIONS = (960, 800, 800)
PACKED = ([300, 200, 200, 100], [100, 60, 200, 150], [150, 60, 100, 150])  # lengths of four comparisons' parts
ROUNDS = 7


def milliseconds(function, *args) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, to check the script")
    count = 1 if parser.parse_args().quick else ROUNDS
    cut = zip(REGIONS, PACKED, strict=True)
    row = np.concatenate([np.pad(np.repeat([1, 2, 3, 4], cuts), (0, n - sum(cuts))) for n, cuts in cut])
    segments, parts = jnp.asarray(row)[None], jnp.asarray(np.repeat(range(len(REGIONS)), REGIONS))[None]
    marks = Marks(segments, parts, jnp.arange(len(row))[None])
    blocks = jax.jit(find_blocks)(marks, marks)
    forms = {
        "xla": lambda q, k, v: shared_prefix_attention(q, k, v, marks, marks, REGIONS),
        "block": lambda q, k, v: block_attention(q, k, v, blocks),
    }
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; regions {REGIONS}, {np.mean(row > 0):.0%} filled")
    print("heads kv size   pass      xla ms  block ms   ratio (min–max over rounds)")
    real = (segments > 0)[..., None, None, None]

    def total(q, k, v, form):
        return jnp.sum(forms[form](q, k, v) ** 2, where=real)

    for G, Q, E in ((4, 2, 8), (4, 2, 64)):
        shape = (1, sum(REGIONS), G)
        q, k, v = (
            jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(*shape, Q, E), (*shape, E), (*shape, E)])
        )
        for name, wrap in (("forward", jax.jit), ("gradient", lambda f: jax.jit(jax.grad(f, argnums=(0, 1, 2))))):
            run = {form: wrap(partial(total, form=form)) for form in forms}
            [milliseconds(function, q, k, v) for function in run.values()]  # compiles
            rounds = [[milliseconds(run[form], q, k, v) for form in forms] for _ in range(count)]
            xla, block = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = [a / b for a, b in rounds]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
            print(f"{G * Q:5} {G:2} {E:4}   {name:8} {xla:7.1f}  {block:8.1f}   {spread}")


if __name__ == "__main__":
    main()
