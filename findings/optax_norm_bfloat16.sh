#!/usr/bin/env bash
# optax 0.2.8: the global norm of bfloat16 gradients stops growing at 256 arrays of equal size, because the squares of the
# arrays are added up one after another in bfloat16. `clip_by_global_norm(1.0)` then lets gradients pass that are longer than
# 1: twice as long for a thousand arrays, and 36 layers with a leaf for every matrix and norm are more than 300. Fewer and
# stacked arrays, or float32 gradients, have the right norm.
#
# Seen on 2026-11-29, for arrays of norm 1 each: 100 -> norm 10.0, 300 -> 16.0 (is 17.3), 1000 -> 16.0 (is 31.6), and the
# thousand have norm 1.98 after clipping to 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'optax==0.2.8' 'jax==0.10.2'
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import numpy as np
import optax


def norms(count, dtype):
    gradients = [jnp.ones(1, dtype)] * count
    clipped, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    after = np.linalg.norm([np.float64(x[0]) for x in clipped])
    return round(float(optax.tree.norm(gradients)), 1), round(float(after), 2)


found = [norms(count, jnp.bfloat16) for count in (100, 300, 1000)]
print("norm, and that after clipping to 1:", found, "in float32:", norms(1000, jnp.float32))
assert norms(1000, jnp.float32) == (31.6, 1.0)
assert found[0] == (10.0, 1.0), "the norm of few arrays has changed: the finding is out of date"
assert found[1][0] == 16 and found[2] == (16.0, 1.98), "the norm grows with the arrays: the finding is out of date"
PYTHON
