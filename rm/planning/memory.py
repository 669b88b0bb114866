"""The memory of an update on one device: the model state exactly, the rest by formula."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..devices.platform import on_gpu, platform
from ..model.attention import QUERIES_AT_ONCE
from .estimates import Case, abstract_mesh, bytes_of, kept

_KEEPS_BFLOAT16 = jax.__version_info__ >= (0, 12)
_MANY_TOKENS = 4096  # from here on XLA on CPUs stores the scales of norms once for every feature


class Cost(NamedTuple):
    """The bytes of one device in one update."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int  # with gathered weights, or the optimizer's temporary arrays if these are more

    @property
    def peak(self) -> int:
        """The sum of all parts."""
        return sum(self)


def estimate(case: Case) -> Cost:
    """The memory of one device: the model state exactly, the rest by formula, for the platform that is compiled for."""
    shapes = kept(case)
    return Cost(
        parameters=bytes_of(shapes.model, shapes.specs, case.mesh)
        + bytes_of(shapes.frozen, shapes.frozen_specs, case.mesh),
        optimizer=0 if case.offload else optimizer_bytes(case),
        gradients=bytes_of(shapes.model, shapes.specs, case.mesh, itemsize=4),
        activations=max(activation_bytes(case), optimizer_temporary(case)),
    )


def optimizer_bytes(case: Case) -> int:
    """The bytes of optimizer state per device, in device memory or in host memory."""
    shapes = kept(case)
    return bytes_of(shapes.moments, shapes.moment_specs, case.mesh)


def optimizer_temporary(case: Case) -> int:
    """The bytes that the optimizer takes once the activations are freed; they do not depend on the rows."""
    if case.offload:
        return 2 * _largest_state(case)
    return _cpu_optimizer_temporary(case) if platform() == "cpu" else 0


def _largest_state(case: Case) -> int:
    """The bytes of the largest optimizer state of a single leaf; with `offload` a device holds two at once."""
    shapes = kept(case)
    moments, specs = shapes.moments[1].leaves, shapes.moment_specs[1].leaves  # after clipping, see `make_optimizer`
    return max(bytes_of(leaf, spec, case.mesh) for leaf, spec in zip(moments, specs, strict=True))


def _cpu_optimizer_temporary(case: Case) -> int:
    """The bytes that the optimizer takes on a CPU, where XLA computes all leaves before it gives up an old one.

    These are the new moments in float32, at least one array for each parameter. What is kept in bfloat16 takes its new
    value in float32 and the rounded one, and the largest leaf three arrays of random bits.
    """
    shapes = kept(case)
    trees = {"parameters": (shapes.model, shapes.specs), "moments": (shapes.moments, shapes.moment_specs)}
    bytes32 = {name: bytes_of(tree, specs, case.mesh, itemsize=4) for name, (tree, specs) in trees.items()}
    rounded = [name for name in trees if getattr(case, name) == "bfloat16"]
    leaves = [leaf for name in rounded for leaf in zip(*map(jax.tree.leaves, trees[name]), strict=True)]
    largest = max((bytes_of(leaf, spec, case.mesh, itemsize=4) for leaf, spec in leaves), default=0)
    return max(bytes32.values()) + sum(bytes32[name] * 3 // 2 for name in rounded) + 3 * largest


class _Sizes(NamedTuple):
    """The sizes of a device's share of an update."""

    tokens: int
    layers: int
    hidden: int
    ffn: int
    heads: int  # features of the queries
    keys: int  # features of the keys, and of the values
    weights: int  # of one block, gathered
    itemsize: int


def _sizes(case: Case) -> _Sizes:
    config, size = case.config, abstract_mesh(case.mesh).shape
    tensor, rows = size["tensor"], case.rows // (size["data"] * size["fsdp"])
    heads, keys = (n * config.head_dim // tensor for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, ffn = config.hidden_size, config.intermediate_size // tensor
    weights = hidden * (2 * heads + 2 * keys + 3 * ffn)
    tokens, itemsize = rows * case.max_length // size["context"], jnp.dtype(case.dtype).itemsize
    return _Sizes(tokens, config.num_hidden_layers, hidden, ffn, heads, keys, weights, itemsize)


def activation_bytes(case: Case) -> int:
    """The bytes of activations on one device: what the blocks save, one block's work, and its gathered weights.

    With `T` tokens per device, `full` remat saves the inputs `T·D` of the `L` blocks, `dots` their products as well,
    `none` everything that a gradient needs. CPUs gather one matrix at a time, and their last block saves little.
    """
    one, shards, cpu = _sizes(case), abstract_mesh(case.mesh).shape, platform() == "cpu"
    saved, work = (_on_cpu if cpu else _on_accelerators)(case, one)
    gathered = (one.hidden * one.ffn if cpu else one.weights) * (one.itemsize + 4) if shards["fsdp"] > 1 else 0
    return one.tokens * ((one.layers - cpu) * saved + work) + gathered


def _on_accelerators(case: Case, one: _Sizes) -> tuple[int, int]:
    """The bytes of a token that every layer saves, and those of one block's work, on TPUs and GPUs."""
    products = (2 * one.hidden + 2 * one.heads + 2 * one.ffn) * one.itemsize
    work = products + (4 * one.hidden + 2 * one.ffn) * one.itemsize + _scores(case)
    everything = work
    if on_gpu():  # two places in the residual stream, the gates, and what attention takes and gives, gathered
        everything = (one.hidden + 2 * one.ffn + 5 * (one.heads + one.keys) // 2) * one.itemsize + _scores(case)
    return one.hidden * one.itemsize + {"full": 0, "dots": products, "none": everything}[case.remat], work


def _on_cpu(case: Case, one: _Sizes) -> tuple[int, int]:
    """The bytes of a token that every layer but the last saves, and those of one block's work, on CPUs.

    XLA on CPUs keeps almost everything in float32, whatever the type of the computation, and fuses little. The work of
    a block is ten arrays of the hidden size (inputs, norms, residuals and their gradients), and four of every feature
    of the MLP (gate, up and their gradients) and of queries and keys. Products of float32 store factors once more, in
    the order that they are read. Inputs saved in bfloat16 have a float32 copy; since JAX 0.12 what is saved
    in bfloat16 stays in it.
    """
    hidden, ffn, features = one.hidden, one.ffn, one.heads + one.keys
    copies, unrolled = one.itemsize == 4, case.remat == "none" and case.mesh.get("fsdp", 1) == 1
    inputs = hidden if copies else 1.5 * hidden
    products = 2 * hidden + one.heads + 2 * one.keys + 2 * ffn
    everything = 8 * hidden + 3 * ffn + 4 * features
    work = 10 * hidden + 4 * (ffn + features)
    if copies and case.remat == "full":
        work += 2 * hidden + 3 * ffn + features
    if unrolled:  # a loop stacks its inputs too, and is at work while everything is saved
        work, everything = 12 * hidden, everything - hidden + 2 * ffn * copies
    if unrolled and one.tokens < _MANY_TOKENS:
        work, everything = work - 4 * hidden, everything - 2 * hidden
    if one.itemsize == 2 and _KEEPS_BFLOAT16:
        inputs, products, everything = hidden / 2, products / 2, everything - 2 * hidden
    saved = {"full": inputs, "dots": products, "none": everything}[case.remat]
    return int(4 * saved), 4 * work + _scores(case)


def _scores(case: Case) -> int:
    """The bytes of a token's scores in the plain form of attention: three float32 arrays of some queries at a time."""
    if case.attention != "xla":
        return 0
    heads, longest = case.config.num_attention_heads // case.mesh.get("tensor", 1), max(case.regions)
    queries = min(longest, QUERIES_AT_ONCE) if on_gpu() else longest
    return 3 * 4 * heads * queries * (case.regions[0] + longest) // case.max_length
