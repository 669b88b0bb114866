"""Training on every mesh with every optimizer in every type, undisturbed and resumed elsewhere, against one device.

python benchmarks/matrix.py [--optimizers adamw …] [--types float32 …] [--meshes fsdp=4 …] [--seed 0]

Every cell makes 12 updates and saves a checkpoint after a random one of them. The state is dropped and restored on
another mesh of the list, which makes the updates that remain. A cell shows the differences of losses and weights from
one device with the same optimizer and types: `undisturbed; update → mesh that goes on: resumed`. It exits with 1 where
one of them is beyond BOUNDS (cells.py). What `rm` refuses has the reason in its cell.
"""

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from cells import MESHES, ONE, OPTIMIZERS, TYPES, bounds, set_devices

if __name__ == "__main__":
    set_devices()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from random_comparisons import random_comparisons

import rm
from rm.commands.options import choose_mesh
from rm.saving.checkpoints import abstract
from rm.training.objectives import pairwise_objective
from rm.training.offload import keep_on_host

UPDATES = 12
RATE = 3e-4
CONFIG = rm.LlamaConfig(
    vocab_size=128,
    hidden_size=128,  # the least that optax's Adafactor factors
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.1,
)


class Cell(NamedTuple):
    """The first state, a compiled update, and the batches on the mesh."""

    start: Callable[[], rm.TrainState]
    step: Callable
    batches: list[list[rm.PreferenceBatch]]


class Result(NamedTuple):
    """What a run gives."""

    losses: list[float]
    weights: list[np.ndarray]  # of every leaf, float64


def make_rule(optimizer: str, moments: Any = "float32", offload: bool = False) -> optax.GradientTransformation:
    rate = rm.learning_rate_schedule("linear", peak=RATE, steps=2 * UPDATES)
    make: Any = partial(rm.make_optimizer, learning_rate=rate, weight_decay=0.1, moments=moments)
    if optimizer != "MultiSteps":
        return make(optimizer, offload=offload)
    rule = optax.MultiSteps(make("adamw", max_grad_norm=None), 3).gradient_transformation()
    return optax.chain(optax.clip_by_global_norm(1.0), keep_on_host(rule) if offload else rule)


@cache
def objective_and_batches(sizes: str) -> tuple[Callable, list[list[rm.PreferenceBatch]]]:
    mesh = choose_mesh(sizes) if sizes != ONE else None
    plan = rm.plan_batches(random_comparisons(CONFIG, 8 * UPDATES, 12, 9, 14), 8, rows=4, micro_batch_tokens=64)
    return pairwise_objective(0.01, rm.Compute(mesh=mesh)), list(rm.prefetch(plan, 0, UPDATES, mesh=mesh))


def make_cell(sizes: str, optimizer: str, parameters: str = "float32", **options: Any) -> Cell:
    rule, mesh = make_rule(optimizer, **options), choose_mesh(sizes) if sizes != ONE else None
    objective, batches = objective_and_batches(sizes)

    def start() -> rm.TrainState:
        model = rm.init_reward_model(CONFIG, key=jax.random.key(0), head_std=0.2, dtype=jnp.dtype(parameters))
        return rm.init_state(model if mesh is None else rm.place_model(model, mesh), rule)

    return Cell(start, rm.jit_update(objective, rule), batches)


def weights(state: rm.TrainState) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.model)]


def train(cell: Cell, state: rm.TrainState, keep: Callable = lambda *_: None) -> Result:
    losses = []
    for number in range(int(state.step), UPDATES):
        state, metrics = cell.step(state, cell.batches[number])
        losses.append(float(metrics["loss"]))  # waits, so that devices that share a core have no queue
        keep(number + 1, state)
    return Result(losses, weights(state))


def compare(found: Result, alone: Result, first: Sequence[np.ndarray]) -> tuple[float, float]:
    """The two differences that BOUNDS bounds; `found` may have begun later."""
    losses = np.abs(np.subtract(found.losses, alone.losses[-len(found.losses) :]))
    return float(losses.max()), distance(found.weights, alone.weights) / distance(alone.weights, first)


def distance(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The norm of the difference of all weights."""
    return math.sqrt(sum(float(np.sum((x - y) ** 2)) for x, y in zip(one, other, strict=True)))


def run_cell(cell: Cell, other: Cell, last: int) -> list[Result]:
    """The run in one cell, and the one that goes on in another with what the first saved after update `last`."""
    with tempfile.TemporaryDirectory() as folder, rm.Checkpoints(folder) as checkpoints:
        undisturbed = train(cell, cell.start(), lambda step, now: step == last and checkpoints.save(step, now, {}))
        checkpoints.wait()
        _, state, _ = checkpoints.restore_newest(abstract(other.start()), print)
        return [undisturbed, train(other, state)]


def run_row(optimizer: str, types: str, meshes: Sequence[str], seed: int) -> list[tuple[str, bool]]:
    """The text of every cell of a row, and whether it is within the bounds."""
    chance, row = random.Random(f"{optimizer} {types} {seed}"), []
    cells = {sizes: make_cell(sizes, optimizer, **TYPES[types]) for sizes in dict.fromkeys((ONE, *meshes))}
    first, alone = weights(cells[ONE].start()), train(cells[ONE], cells[ONE].start())
    for sizes in meshes:
        last, other = chance.randrange(1, UPDATES), chance.choice([name for name in cells if name != sizes])
        try:
            pairs = [compare(run, alone, first) for run in run_cell(cells[sizes], cells[other], last)]
        except rm.RmError as error:
            row.append((str(error), True))
            continue
        good = bool((np.array(pairs) <= bounds(optimizer, types)).all())  # false for NaN
        stayed, moved = (f"{loss:.0e} {weight:.0e}" for loss, weight in pairs)
        row.append((f"{stayed}; {last} → {other}: {moved}{'' if good else ' BEYOND'}", good))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--meshes", nargs="+", choices=MESHES, default=MESHES)
    parser.add_argument("--seed", type=int, default=0, help="of the updates and the meshes that go on")
    args = parser.parse_args()
    rm.keep_compiled()
    print(f"| optimizer | types | {' | '.join(args.meshes)} |\n|---|---|{'---|' * len(args.meshes)}")
    good = True
    for optimizer in args.optimizers:
        for types in args.types:
            row = run_row(optimizer, types, args.meshes, args.seed)
            good &= all(within for _, within in row)
            print(f"| {optimizer} | {types} | {' | '.join(text for text, _ in row)} |", flush=True)
            jax.clear_caches()  # the programs of all rows would take more memory maps than Linux gives a process
    print("every cell is within its bounds" if good else "BEYOND the bounds: see above")
    sys.exit(not good)


if __name__ == "__main__":
    main()
