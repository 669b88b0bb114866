#!/usr/bin/env bash
# optax 0.2.8: `adafactor(weight_decay_rate=0.01)` takes 1 % off the weights in every update, whatever the learning rate: at
# the first update of a warm-up, and at the end of a schedule that has come down to 0. In optax's own adamw, and in the
# Adafactor of transformers and torch, the decay is multiplied by the learning rate. A setting of 0.01 at a rate of 1e-4,
# carried over, decays ten thousand times as fast, and after 500 updates without a gradient 0.7 % of a weight are left.
#
# Seen on 2026-11-29, a weight of 1 after 500 updates without gradient, learning rate 1e-4 and 0: adafactor 0.0066 and
# 0.0066, adamw 0.9995 and 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'optax==0.2.8' 'jax==0.10.2'
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import numpy as np
import optax


def left(optimizer):
    weight = jnp.ones((2, 2))
    state = optimizer.init(weight)
    for _ in range(500):
        updates, state = optimizer.update(jnp.zeros((2, 2)), state, weight)
        weight = optax.apply_updates(weight, updates)
    return float(weight[0, 0])


adafactor = [left(optax.adafactor(rate, weight_decay_rate=0.01)) for rate in (1e-4, 0.0)]
adamw = [left(optax.adamw(rate, weight_decay=0.01)) for rate in (1e-4, 0.0)]
print("adafactor", adafactor, "adamw", adamw)
assert np.allclose(adamw, [0.9995, 1], atol=1e-5)
assert np.allclose(adafactor, 0.99**500, atol=1e-4), "the decay follows the learning rate: the finding is out of date"
PYTHON
