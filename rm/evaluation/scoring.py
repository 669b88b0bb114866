"""Rewards of texts and comparisons, and metrics of a model on comparisons."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, Int64

from ..data.comparisons import TokenizedComparisons, cut_off, flatten
from ..data.inputs import Input, encode_inputs
from ..devices.mesh import mesh_of, row_shards
from ..errors import check_list
from ..model.attention_choice import default_layout
from ..model.batch import PreferenceBatch
from ..model.compute import Compute
from ..model.config import LlamaConfig
from ..model.llama import RewardModel, rewards
from ..model.sharding import place_batch
from ..packing.fit_shapes import fit_row_shapes
from ..packing.row_shapes import RowShape
from ..packing.rows import pack
from ..packing.sequences import pack_sequences, row_length
from ..shapes import checked
from ..text.tokenizer import Tokenizer
from ..training.metrics import preference_metrics
from ..training.objectives import Objective, check_objective, pairwise_objective
from .prompts import prompts_of
from .summary import summarize

METRICS = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "std_reward")  # of `evaluate`


@partial(jax.jit, static_argnames="compute")
def _jit_rewards(model: RewardModel, batch: PreferenceBatch, *, compute: Compute) -> Array:
    return _on_every_device(rewards(model, batch, compute), compute.mesh)


@eqx.filter_jit
def _jit_objective(objective: Objective, mesh: Mesh | None, model: Any, batch: PreferenceBatch) -> tuple:
    return _on_every_device(check_objective(objective(model, batch), batch), mesh)


def _on_every_device(tree: Any, mesh: Mesh | None) -> Any:
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def _forward_only(model: Any, compute: Compute) -> Compute:
    """`compute` without recomputation, which only a backward pass needs, and by default on the model's mesh."""
    return replace(compute, remat="none", mesh=compute.mesh or mesh_of(model))


@checked
def score(
    model: RewardModel,
    tokenizer: Tokenizer,
    inputs: Sequence[Input] | Input,
    *,
    compute: Compute = Compute(),
    batch_size: int = 16,
    max_length: int | None = None,
) -> Float[np.ndarray, "n"]:
    """The rewards of texts and conversations, float32, in the order given.

    As in training data, a doubled beginning-of-sequence token (one in the text, one from the tokenizer) becomes one.

    **Arguments:** `inputs`, one or a list, each a text (tokenized as given), or a dict with `text`, with `prompt` and
    `response`, or with `messages` (the last two are rendered like training data); `compute`, type, attention and mesh,
    by default the model's mesh; `batch_size`, sequences of average length in a batch; `max_length`, the length to which
    inputs are truncated on the right, by default none.

    **Raises:** `DataError`, naming the input, where it has none of these forms.

    Example: `rm.score(model, tokenizer, [{"prompt": "2 + 2 = ", "response": "4"}])`.
    """
    inputs = [inputs] if isinstance(inputs, str | Mapping) else inputs
    names = [f"input {number}" for number in range(len(inputs))]
    sequences = list(encode_inputs(inputs, tokenizer, model.config, names=names))
    return score_sequences(model, sequences, compute=compute, batch_size=batch_size, max_length=max_length)


@checked
def score_sequences(
    model: RewardModel,
    sequences: Sequence[Sequence[int] | Int32[np.ndarray, "_"]],
    *,
    compute: Compute = Compute(),
    batch_size: int = 16,
    max_length: int | None = None,
    lengths_of_rows: Sequence[int] = (),
    one_of_many: bool = False,
) -> Float[np.ndarray, "n"]:
    """The rewards of token sequences; the arguments are those of `score`, and two that bound what is compiled.

    **Arguments:** `lengths_of_rows`, ascending, to choose from, by default any of `rm.packing.sequences.round_up`;
    `one_of_many`, parts of a file, whose last rows then have the length of the others.
    """
    if batch_size < 1 or (max_length is not None and max_length < 1):
        raise ValueError(f"batch_size and max_length must be at least 1, found {batch_size} and {max_length}")
    if not sequences:
        return np.zeros(0, np.float32)
    out, compute = np.empty(len(sequences), np.float32), _forward_only(model, compute)
    cut = [cut_off(ids, max_length, model.config) for ids in sequences]
    rows = _rows(cut, model.config, batch_size, row_shards(compute.mesh), lengths_of_rows, one_of_many)
    for batch, computed in _run(partial(_jit_rewards, model, compute=compute), rows, compute.mesh):
        out[batch.index[batch.index >= 0]] = computed[batch.index >= 0, 0]
    return out


def compile_sequences(
    model: RewardModel,
    sequences: Sequence[Sequence[int]],
    *,
    compute: Compute,
    batch_size: int,
    lengths_of_rows: Sequence[int],
) -> None:
    """Compiles what `score_sequences` needs for such sequences, and computes nothing."""
    compute = _forward_only(model, compute)
    for batch in _rows(sequences, model.config, batch_size, row_shards(compute.mesh), lengths_of_rows, False):
        placed = batch if compute.mesh is None else place_batch(batch, compute.mesh)
        _jit_rewards.lower(model, placed, compute=compute).compile()


def _rows(
    sequences: Sequence[Sequence[int] | Int32[np.ndarray, "_"]],
    config: LlamaConfig,
    batch_size: int,
    multiple: int,
    lengths_of_rows: Sequence[int],
    one_of_many: bool,
) -> Iterator[PreferenceBatch]:
    """Batches of rows with shared prefixes where attention is by blocks; else one sequence a row, sorted by length."""
    cut = flatten([[ids] for ids in sequences], [0.0] * len(sequences), config, share_prefix=False)
    if default_layout() == "whole" and multiple == 1:
        options: Any = {"batch_size": batch_size, "lengths_of_rows": lengths_of_rows, "shorten": not one_of_many}
        yield from pack_sequences(cut, config, **options)
        return
    lengths = cut.lengths[:, 1]
    order = np.argsort(lengths, kind="stable")
    for chunk in np.split(order, range(batch_size, len(order), batch_size)):
        regions = (0, row_length(int(lengths[chunk].max()), lengths_of_rows))
        rows = -(-(batch_size if one_of_many else min(batch_size, len(order))) // multiple) * multiple
        yield from pack(cut, chunk, [RowShape(rows=rows, slots=1, regions=regions)])


@checked
def evaluate(
    model: Any,
    comparisons: TokenizedComparisons,
    *,
    subsets: Sequence[str] | None = None,
    batch_size: int = 16,
    compute: Compute = Compute(),
    center_rewards_coefficient: float = 0.0,
    objective: Objective | None = None,
    micro_batch_tokens: int = 4096,
) -> dict[str, Any]:
    """Evaluates a model on comparisons, all of equal weight: `loss`, `preference_metrics` and `summarize`.

    **Arguments:** `comparisons`, pairs as `tokenize_comparisons` returns them; `subsets`, the name of each one's
    subset; `objective`, a training objective in place of the pairwise one with `compute` and
    `center_rewards_coefficient`; `model` is then any model that it takes; `micro_batch_tokens`, the most that a device
    computes at once. Lengths exclude the shared prefix.
    Comparisons of one row, or with a response in common, are those of one prompt, in intervals and tests.

    **Returns:** plain numbers, nested as `rm.evaluation.summary.summarize` describes; training logs those in `METRICS`;
    `objective` has the means of the objective's own metrics, if it has any.

    **Raises:** `ValueError` where comparisons are not pairs, or `subsets` has another length.
    """
    if comparisons.ends.shape[1] != 2:
        raise ValueError(f"expected pairs, found comparisons of {comparisons.ends.shape[1]} responses; see best_of_n")
    check_list("subsets", subsets)
    if subsets is not None and len(subsets) != len(comparisons):
        found = f"expected a subset for each of {len(comparisons)} comparisons, found {len(subsets)}"
        raise ValueError(f"{found}; where rows were dropped or expanded, take [subsets[i] for i in comparisons.row]")
    compute = _forward_only(model, compute)
    objective = objective or pairwise_objective(center_rewards_coefficient, compute)
    losses, both, extra = _objective_values(model, comparisons, objective, batch_size, compute.mesh, micro_batch_tokens)
    metrics = {"loss": losses.mean(), **preference_metrics(both[:, 0], both[:, 1]), "std_reward": both.std()}
    lengths = comparisons.lengths[:, 1:]
    (prompts,) = prompts_of([comparisons])
    summary = summarize(both[:, 0], both[:, 1], lengths[:, 0], lengths[:, 1], prompts=prompts, subsets=subsets)
    means = {"objective": {name: float(values.mean()) for name, values in extra.items()}} if extra else {}
    return {name: float(metrics[name]) for name in METRICS} | summary | means


def _objective_values(
    model: Any,
    comparisons: TokenizedComparisons,
    objective: Objective,
    batch_size: int,
    mesh: Mesh | None,
    micro_batch_tokens: int,
) -> tuple[Float[np.ndarray, "B"], Float[np.ndarray, "B K"], dict[str, Float[np.ndarray, "B"]]]:
    """The loss, the rewards and the objective's metrics of every comparison."""
    run = partial(_jit_objective, objective, mesh, model)
    chunks = [values for _, values in _chunks(run, comparisons, batch_size, mesh, tokens=micro_batch_tokens)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)


@checked
def comparison_rewards(
    model: RewardModel, comparisons: TokenizedComparisons, *, batch_size: int = 16, compute: Compute = Compute()
) -> Float[np.ndarray, "B K"]:
    """The rewards of all responses, float32, in the order of `comparisons` (the best response first).

    **Arguments:** `comparisons`, as `tokenize_comparisons` returns them; `batch_size`, comparisons in a batch;
    `compute`, type, attention and mesh, by default the model's mesh.
    """
    return np.concatenate([values for _, values in reward_chunks(model, comparisons, batch_size, compute)])


def reward_chunks(
    model: RewardModel, comparisons: TokenizedComparisons, batch_size: int, compute: Compute, *, start: int = 0
) -> Iterator[tuple[Int64[np.ndarray, "B"], Float[np.ndarray, "B K"]]]:
    """Yields indices and rewards of `batch_size` comparisons at a time, in order, from `start` on."""
    compute = _forward_only(model, compute)
    run = partial(_jit_rewards, model, compute=compute)
    return _chunks(run, comparisons, batch_size, compute.mesh, start=start)


def _chunks(
    run: Callable,
    comparisons: TokenizedComparisons,
    batch_size: int,
    mesh: Mesh | None,
    *,
    start: int = 0,
    tokens: int = 4096,
) -> Iterator[tuple[Int64[np.ndarray, "B"], Any]]:
    """Yields the indices of `batch_size` comparisons at a time, in order, and the values that `run` computes."""
    options: Any = {"rows": row_shards(mesh), "micro_batch_tokens": tokens, "layout": default_layout()}
    shapes = fit_row_shapes(comparisons, batch_size, **options)
    for first in range(start, len(comparisons), batch_size):
        indices = np.arange(first, min(first + batch_size, len(comparisons)))
        parts = [
            (batch.index[batch.index >= 0], jax.tree.map(lambda x, used=batch.index >= 0: x[used], values))
            for batch, values in _run(run, pack(comparisons, indices, shapes), mesh)
        ]
        order = np.argsort(np.concatenate([index for index, _ in parts]))
        values = [values for _, values in parts]
        yield indices, jax.tree.map(lambda *leaves, order=order: np.concatenate(leaves)[order], *values)


def _run(run: Callable, batches: Iterable[PreferenceBatch], mesh: Mesh | None) -> Iterator[tuple[PreferenceBatch, Any]]:
    """Yields every batch with its result; the next batch is prepared while the device computes."""
    running: list[tuple[PreferenceBatch, Any]] = []
    for batch in batches:
        running.append((batch, run(batch if mesh is None else place_batch(batch, mesh))))
        if len(running) > 1:
            done, computed = running.pop(0)
            yield done, jax.tree.map(np.asarray, computed)
    yield from ((batch, jax.tree.map(np.asarray, computed)) for batch, computed in running)
