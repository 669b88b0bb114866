"""`python -m rm train`: from a Llama directory and preference data to a reward model."""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from signal import SIGTERM
from typing import Any

import jax
import optax

from ..data.table import describe_table
from ..devices.processes import ballot, connect, ending_together, leads, prepare_together
from ..devices.signals import stop_on_signals
from ..errors import RmError, first_line
from ..model.batch import PreferenceBatch
from ..model.compute import Compute
from ..model.forward import rewards
from ..model.reward_model import RewardModel
from ..packing.prefetching import prefetch
from ..saving.checkpoints import Checkpoints, abstract
from ..training.losses import centering_penalty, pairwise_loss
from ..training.optimizers import learning_rate_schedule, make_optimizer
from ..training.step import TrainState, init_state, jit_update
from .arguments import TrainArguments
from .finish import evaluate_all, finish
from .log import TrainingLog
from .prepare import Prepared, check_finished, facts, hold, prepare
from .progress import Reporter, print_once, warn
from .provenance import describe_run
from .read import describe_plan
from .run import write_record
from .trackers import PACKAGES, Track, guarded, open_trackers


def train(args: TrainArguments, *, track: Track | None = None) -> int:
    """One process, or each of several, from reading to the exported model; returns the exit code.

    **Arguments:** `track`, a tracker of your own, called like the others (see `rm.trackers`).

    >>> train(TrainArguments(…), track=lambda step, values: print(step, values.get("loss")))  # doctest: +SKIP
    """
    if args.resume == "auto" and (args.output / "model").is_dir():
        check_finished(args)
        print_once(f"the run is over: the reward model is in {args.output / 'model'}", quiet=args.quiet)
        return 0
    if args.distributed:
        connect(args.coordinator, args.num_processes, args.process_id)
    with ending_together(), contextlib.ExitStack() as stack, explaining_memory(args):
        prepared = prepare_together(partial(prepare, args), partial(facts, args))
        prepare_together(partial(hold, args, stack), lambda _: {})
        return run(args, prepared, track)


@contextlib.contextmanager
def explaining_memory(args: TrainArguments) -> Iterator[None]:
    """Says what to do where a device runs out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = jax.devices()[0].device_kind
        raise RmError(
            f"out of memory on {device} ({first_line(error)}); lower --max-length, "
            f"use --remat full, --moments bfloat16, --offload or more devices (--mesh); what fits says: "
            f"python -m rm plan --model {args.model} --topology NAME"
        ) from None


def run(args: TrainArguments, prepared: Prepared, track: Track | None = None) -> int:
    """The training loop, with its logs, evaluations and checkpoints, and the export; returns the exit code."""
    model, held_out, plan, mesh = prepared.model, prepared.held_out, prepared.plan, prepared.mesh
    steps = math.ceil(args.epochs * plan.steps_per_epoch) if args.max_steps is None else args.max_steps
    record = describe_run(args, prepared, steps)
    schedule, optimizer = training_optimizer(args, steps)

    def objective(model: RewardModel, batch: PreferenceBatch) -> tuple[jax.Array, jax.Array]:
        compute = Compute(dtype=args.dtype, remat=args.remat, attention=args.attention, mesh=mesh)
        scores = rewards(model, batch, compute)
        chosen, rejected = scores[..., 0], scores[..., 1]
        loss = pairwise_loss(chosen, rejected, batch.margin)
        return loss + args.center_rewards_coefficient * centering_penalty(chosen, rejected), scores

    state, advance = init_state(model, optimizer), jit_update(objective, optimizer)
    evaluation, stopped = {}, False
    with contextlib.ExitStack() as stack:
        signal = stack.enter_context(stop_on_signals())  # first, so that it still holds while the last save is awaited
        checkpoints = stack.enter_context(Checkpoints(args.output / "checkpoints", keep=args.keep, best=args.keep_best))
        start, state, notes = go_on(args, checkpoints, state)
        write_record(args.output, record)
        log = stack.enter_context(opened_log(args, prepared, record, schedule, start, track))
        log.resume(start, notes)
        step, vote = start, ballot()
        ahead = stack.enter_context(contextlib.closing(prefetch(plan, start, steps, mesh=mesh)))
        for step, batches in enumerate(ahead, start + 1):
            state, metrics = advance(state, batches, log.limit(step))
            log.add(step, metrics, plan.indices_at(step - 1))

            stopped = vote(signal() is not None) and step < steps
            evaluating = held_out and (step == steps or due(args.eval_every, step))
            saving = stopped or step == steps or due(args.save_every, step)
            if evaluating or saving:
                with log.paused():
                    if evaluating:
                        evaluation = evaluate_all(state.model, held_out, args)
                        log.write(step, evaluation)
                    if saving:
                        checkpoints.save(step, state, log.notes, evaluation if evaluating else {})
            if stopped:
                break
    if stopped:
        print_once(f"stopped after update {step}, which is saved; go on with --resume auto", quiet=args.quiet)
        return 128 + (signal() or SIGTERM)
    finish(args, prepared, state.model, record, evaluation, log.skipped)
    return 0


def go_on(args: TrainArguments, checkpoints: Checkpoints, state: TrainState) -> tuple[int, TrainState, dict[str, Any]]:
    """Where a run begins: the updates behind it, the state after them, the notes of its log."""
    if args.resume == "never" or not checkpoints.steps:
        return 0, state, {}
    like = abstract(state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # memory for one of them
    return checkpoints.restore_newest(like, warn if args.quiet else print_once)


@contextlib.contextmanager
def opened_log(
    args: TrainArguments,
    prepared: Prepared,
    record: dict[str, Any],
    schedule: optax.Schedule,
    start: int,
    track: Track | None,
) -> Iterator[TrainingLog]:
    """What tells of the run: lines on the terminal, metrics.jsonl and trackers, each in a guard of its own."""
    plan, steps = prepared.plan, record["steps"]
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Reporter(steps, done=start, quiet=args.quiet))
        for name, table in prepared.tables.items():
            report.print(describe_table(f"{name} ({table['source']})", table))
        report.print(f"{describe_plan(plan)}\n{steps} updates of {args.batch_size} comparisons")
        if start:
            report.print(f"goes on after update {start}")
        if prepared.mesh is None and jax.device_count() > 1:
            report.print(f"1 of {jax.device_count()} devices is used; --mesh fsdp={jax.device_count()} uses all")
        trackers: dict[str, Any] = {}
        if leads():
            chosen = {name: getattr(args, name) for name in PACKAGES}
            run_id, quiet = record["run_id"], args.quiet
            trackers |= open_trackers(args.output, record, step=start, run_id=run_id, quiet=quiet, **chosen)
            trackers |= {"track": contextlib.nullcontext(track)} if track is not None else {}
        yield TrainingLog(
            args.output / "metrics.jsonl",
            steps,
            plan.steps_per_epoch,
            args.log_every,
            schedule,
            report,
            prepared.comparisons,
            max_skipped=args.max_skipped,
            spike=args.skip_spikes,
            tracks=[stack.enter_context(guarded(name, tracker, warn)) for name, tracker in trackers.items()],
        )


def training_optimizer(args: TrainArguments, steps: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning-rate schedule of a run of so many updates, and its optimizer."""
    schedule = learning_rate_schedule(
        args.schedule,
        peak=args.learning_rate,
        end=args.learning_rate_end,
        steps=steps,
        warmup_steps=math.ceil(args.warmup_ratio * steps),
    )
    return schedule, make_optimizer(
        args.optimizer,
        schedule,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm or None,
        moments=args.moments,
        offload=args.offload,
    )


def due(every: int | None, step: int) -> bool:
    """Whether something is to be done after this update.

    >>> due(2, 3), due(2, 4), due(None, 4)
    (False, True, False)
    """
    return every is not None and step % every == 0
