#!/usr/bin/env bash
# jax 0.10.2 (and 0.12.0): `jax.jvp` of a function with `custom_vjp` raises a TypeError that names the cause. Inside of a
# `jax.shard_map` that is not jitted the cause is lost: JAX tries to hash a list of its own on the way, and the user reads
# "unhashable type". Gradients work there, and with `jax.jit` around the shard_map the message is the usual one.
#
# Seen on 2026-11-29: alone and jitted, "can't apply forward-mode autodiff (jvp) to a custom_vjp function."; in
# shard_map, "unhashable type: 'list'".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'jax==0.10.2'
XLA_FLAGS=--xla_force_host_platform_device_count=2 "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


@jax.custom_vjp
def product(x, y):
    return x * y


product.defvjp(lambda x, y: (product(x, y), (x, y)), lambda saved, d: (d * saved[1], d * saved[0]))
mesh = jax.make_mesh((2,), ("i",), (AxisType.Auto,))
mapped = jax.shard_map(product, mesh=mesh, in_specs=(P("i"), P("i")), out_specs=P("i"))
x, found = jnp.arange(2.0), {}
for name, function in {"alone": product, "mapped": mapped, "jitted": jax.jit(mapped)}.items():
    try:
        jax.jvp(function, (x, x), (x, x))
    except TypeError as error:
        found[name] = str(error).splitlines()[0]
print(found, jax.grad(lambda x: mapped(x, x).sum())(x))
usual = "can't apply forward-mode autodiff (jvp) to a custom_vjp function."
expected = {"alone": usual, "mapped": "unhashable type: 'list'", "jitted": usual}
assert found == expected, "another message: the finding is out of date"
PYTHON
