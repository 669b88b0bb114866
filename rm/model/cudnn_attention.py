"""Shared-prefix attention for GPUs by JAX's fused attention, which is cuDNN's kernels, forward and backward.

The kernels mask causally and by the number of real tokens, and know no segments. So the prefix and each response of
every segment are gathered into a sequence of their own, `[prefix | response]`, as if it stood alone; the prefix's
outputs are those of its first sequence. Only attention sees these sequences: all other products take the packed rows.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..shapes import checked
from .attention import Marks
from .derivatives import first_only


class Places(NamedTuple):
    """Where the tokens of every sequence stand in the row, found once for all layers: `W` sequences of `T` places."""

    source: Int[Array, "R W T"]  # the token of the row at each place
    lengths: Int[Array, "R W"]  # of the sequences, at least 1
    owned: Bool[Array, "R W T"]  # the places whose outputs are read: those of real tokens, a prefix's in one sequence
    copies: Int[
        Array, "K R N"
    ]  # the places of each token, as numbers in `W · T`: K of a prefix's, else K times the same
    counted: Bool[Array, "K R N"]  # which of the copies count: none of padding


@checked
def find_places(marks: Marks, regions: tuple[int, ...], slots: int, longest: int | None = None) -> Places:
    """Finds the places of sequences of at most `longest` tokens (by default of any), in rows of up to `slots` segments.

    In every region the parts of segments 1, 2, … stand one after the other from its start.
    """
    R, N, K, T = *marks.segments.shape, len(regions) - 1, min(longest or sum(regions), regions[0] + max(regions[1:]))
    bounds = list(pairwise(np.cumsum((0, *regions)).tolist()))
    of_segment = marks.segments[..., None] == jnp.arange(1, slots + 1)[None, None]
    counts = jnp.stack([of_segment[:, a:b].sum(1, dtype=jnp.int32) for a, b in bounds], axis=-1)[
        ..., None
    ]  # [R C parts 1]
    first = jnp.cumsum(counts, axis=1) - counts + jnp.array([a for a, _ in bounds])[None, None, :, None]
    prefix, own, place = counts[:, :, :1], counts[:, :, 1:], jnp.arange(T)[None, None, None]
    inside = place < prefix
    source = jnp.where(inside, first[:, :, :1] + place, first[:, :, 1:] + place - prefix)
    number, part = jnp.arange(K), np.repeat(np.arange(K + 1), regions)
    owned = (place < prefix + own) & (~inside | (number == 0)[None, None, :, None])
    real, in_prefix = (marks.segments > 0)[None], jnp.array(part == 0)[None]
    sequence = jnp.where(in_prefix, number[:, None], jnp.array(part - 1)[None])[:, None]  # [K 1 N]
    sequence += (jnp.maximum(marks.segments, 1)[None] - 1) * K
    return Places(
        source=jnp.clip(source, 0, N - 1).reshape(R, slots * K, T),
        lengths=jnp.maximum(prefix + own, 1).reshape(R, slots * K),
        owned=owned.reshape(R, slots * K, T),
        copies=jnp.where(real, sequence * T + marks.positions[None], 0),
        counted=real & ((number == 0)[:, None] | in_prefix)[:, None],
    )


@checked
def cudnn_attention(
    q: Float[Array, "R N G Q E"],
    k: Float[Array, "R N G E"],
    v: Float[Array, "R N G E"],
    places: Places,
    window: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T H E"]:
    """The outputs of gathered sequences; `collect` brings them into rows, as `shared_prefix_attention` gives them.

    **Arguments:** `implementation`, that of `jax.nn.dot_product_attention`, which runs everywhere as `"xla"`.
    """
    R, N, G, Q, E = q.shape
    lengths = places.lengths.reshape(-1)
    return jax.nn.dot_product_attention(
        _spread(q.reshape(R, N, G * Q, E), places),
        _spread(k, places),
        _spread(v, places),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )


@checked
def collect(outputs: Float[Array, "B T H E"], places: Places) -> Float[Array, "R N H E"]:
    """The outputs of sequences in rows, those of a prefix from its first sequence; zeros at padding."""
    return _collect(outputs, places)


def _take(x: Float[Array, "R N H E"], places: Int[Array, "R M"], keep: Bool[Array, "R M"] | None = None) -> Array:
    taken = jnp.take_along_axis(x, places[..., None, None], axis=1)
    return taken if keep is None else jnp.where(keep[..., None, None], taken, 0)


# Each is the other's transpose but for sums, and gathers are many times faster on GPUs than what JAX would scatter.


@jax.custom_vjp
def _spread(x: Float[Array, "R N H E"], places: Places) -> Float[Array, "B T H E"]:
    """The tokens of rows at the places of sequences."""
    R, W, T = places.source.shape
    return _take(x, places.source.reshape(R, W * T)).reshape(R * W, T, *x.shape[2:])


def _spread_forward(x: Array, places: Places) -> tuple[Array, Places]:
    return _spread(x, places), places


def _spread_backward(places: Places, d_out: Array) -> tuple[Array, None]:
    R, W, T = places.source.shape
    d_out = d_out.reshape(R, W * T, *d_out.shape[2:])
    parts = [_take(d_out, at, kept) for at, kept in zip(places.copies, places.counted, strict=True)]
    return sum((part.astype(jnp.float32) for part in parts[1:]), parts[0].astype(jnp.float32)).astype(d_out.dtype), None


_spread.defvjp(_spread_forward, first_only(_spread_backward))


@jax.custom_vjp
def _collect(x: Float[Array, "B T H E"], places: Places) -> Float[Array, "R N H E"]:
    """The places of sequences back in rows, a prefix from its first sequence; zeros at padding."""
    R, W, T = places.source.shape
    return _take(x.reshape(R, W * T, *x.shape[2:]), places.copies[0], places.counted[0])


def _collect_forward(x: Array, places: Places) -> tuple[Array, Places]:
    return _collect(x, places), places


def _collect_backward(places: Places, d_rows: Array) -> tuple[Array, None]:
    R, W, T = places.source.shape
    d_x = _take(d_rows, places.source.reshape(R, W * T), places.owned.reshape(R, W * T))
    return d_x.reshape(R * W, T, *d_rows.shape[2:]), None


_collect.defvjp(_collect_forward, first_only(_collect_backward))
