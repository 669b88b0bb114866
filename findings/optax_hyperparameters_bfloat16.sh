#!/usr/bin/env bash
# optax 0.2.8: `inject_hyperparams` casts every hyperparameter to the type of the first gradient it is given, unless
# `hyperparam_dtype` says otherwise. With bfloat16 gradients Adam's b2 of 0.999 becomes 1, so the very first update is NaN.
# Lion stays finite and goes on with other constants: b2 of 0.99 is 0.988. The same optimizers without the wrapper are right.
#
# Seen on 2026-11-29: adam b2 1.0, update nan (without the wrapper -0.001); lion b2 0.98828125.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'optax==0.2.8' 'jax==0.10.2'
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import numpy as np
import optax

params = jnp.ones(4, jnp.bfloat16)


def first(optimizer):
    updates, state = optimizer.update(params, optimizer.init(params), params)
    return float(updates[0]), state


plain, _ = first(optax.adam(1e-3))
update, state = first(optax.inject_hyperparams(optax.adam)(1e-3))
b2 = float(state.hyperparams["b2"])
_, state = first(optax.inject_hyperparams(optax.lion)(1e-3))
lion = float(state.hyperparams["b2"])
kept, _ = first(optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.float32)(1e-3))
print("adam", b2, update, "without", plain, "with hyperparam_dtype", kept, "lion", lion)
assert np.isclose(plain, -1e-3, rtol=1e-2) and np.isclose(kept, -1e-3, rtol=1e-2)
assert b2 == 1 and np.isnan(update), "b2 keeps its value: the finding is out of date"
assert lion == 0.98828125, "Lion keeps its value: the finding is out of date"
PYTHON
