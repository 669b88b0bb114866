#!/usr/bin/env bash
# jax 0.10.2 (and 0.12.0): two arrays in the same host memory (`pinned_host`), with equal shardings, have unlike types.
# One that `device_put` has moved there is `float32<host>[4]`; one that a jitted function returned by its `out_shardings`
# is `float32[4]`, as if it lay on the device, and `device_put` to its own sharding leaves it so. A `lax.scan` whose body
# keeps its carry in host memory takes the first and refuses the second. `device_put` to `jax.memory.Space.Host` mends it.
#
# Seen on 2026-11-29: types "float32<host>[4]", "float32[4]", "float32[4]", "float32<host>[4]"; the scan is refused for
# the second, with a TypeError about "float32[4]" and "float32<host>[4]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'jax==0.10.2'
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

host = jnp.ones(4).sharding.with_memory_kind("pinned_host")
moved = jax.device_put(jnp.ones(4), host)
returned = jax.jit(lambda: jnp.ones(4), out_shardings=host)()
again, mended = jax.device_put(returned, host), jax.device_put(returned, jax.memory.Space.Host)
types = [str(jax.typeof(x)) for x in (moved, returned, again, mended)]


def body(carry, _):
    on_device = jax.device_put(carry, jax.memory.Space.Device)
    return jax.device_put(on_device + 1, jax.memory.Space.Host), None


def scan(x):
    try:
        return str(jax.jit(lambda x: jax.lax.scan(body, x, None, length=2)[0])(x).tolist())
    except TypeError as error:
        return str(error)


results = [scan(x) for x in (moved, returned, mended)]
print(moved.sharding == returned.sharding, types, results)
assert moved.sharding == returned.sharding
assert types == ["float32<host>[4]", "float32[4]", "float32[4]", "float32<host>[4]"], "the finding is out of date"
assert results[0] == results[2] == "[3.0, 3.0, 3.0, 3.0]"
assert "float32<host>[4]" in results[1], "the scan is not refused: the finding is out of date"
PYTHON
