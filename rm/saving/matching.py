"""The leaves of a state that is asked for, among those of the state that was saved."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from ..errors import CheckpointError
from ..files.checksum import is_key, key_data, named_leaves
from ..training.offload import HOST


class Mismatch(CheckpointError):
    """Another state is asked for than was saved; the checkpoint is whole."""


def describe(tree: Any) -> dict[str, str]:
    """The type and the shape of every leaf by its name, for the notes of a checkpoint and for messages.

    >>> describe({"norm": jnp.zeros(3), "key": jax.random.key(0)})
    {'key': 'key<fry>[]', 'norm': 'float32[3]'}
    """
    return {name: f"{leaf.dtype.name}{list(leaf.shape)}" for name, leaf in named_leaves(tree).items()}


def match(saved: Mapping[str, str], like: Any) -> dict[str, str]:
    """The name in the checkpoint of every leaf of `like`; `keep_on_host` may be there in one and not in the other.

    **Arguments:** `saved`, the leaves of the checkpoint as `describe` says; fields that `like` lacks are left out.

    **Raises:** `Mismatch`, naming a leaf that only one of them has, or that has another shape or type.
    """
    wanted = describe(like)
    fields = {_field(name) for name in wanted}
    alone = {_without_host(name): name for name in reversed(list(saved)) if _field(name) in fields}
    sources = {name: name if name in saved else alone.get(_without_host(name), "") for name in wanted}
    used = {_without_host(name) for name in wanted}
    has = [f"{name} ({saved[name]})" for short, name in alone.items() if short not in used]
    lacks = [f"{name} ({wanted[name]})" for name, source in sources.items() if not source]
    differ = [
        f"{sides} {_few(names)}"
        for sides, names in (("only the checkpoint has", has), ("only the state asked for has", lacks))
        if names
    ]
    if not differ:
        differ = [
            f"{name} was saved as {saved[source]} and is asked for as {wanted[name]}"
            for name, source in sources.items()
            if saved[source] != wanted[name]
        ][:1]
    if differ:
        advice = "ask with the model, the optimizer and the types that were saved"
        raise Mismatch(f"is whole, but of another state: {', '.join(differ)}; {advice}")
    return sources


def _field(name: str) -> str:
    return name.partition(".")[0]


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _without_host(name: str) -> str:
    """The name of a leaf without `keep_on_host`, which has a state for every parameter.

    >>> _without_host("opt_state.1.leaves.7.0.mu.norm")
    'opt_state.1.0.mu.norm'
    """
    return re.sub(r"\.leaves\.\d+(?=\.)", "", name)


def as_stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """The array that is read for a leaf, placed as the leaf is."""
    data = jax.eval_shape(key_data, leaf)
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def take(arrays: Mapping[str, Any], sources: Mapping[str, str], like: Any) -> Any:
    """The tree of `like` from the arrays that were read; those that several leaves take are copied."""
    times, leaves = Counter(sources.values()), []
    for name, leaf in named_leaves(like).items():
        array = arrays[sources[name]] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
        if times[sources[name]] > 1:
            array = jax.device_put(array, as_stored(leaf).sharding, may_alias=False)
        if as_stored(leaf).sharding.memory_kind == HOST:
            array = jax.device_put(array, jax.memory.Space.Host)  # the type says so too, which loops need
        if is_key(leaf):
            array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.zeros((), leaf.dtype)))
        leaves.append(array)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
