"""`python -m rm train`: from a Llama directory and preference data to a reward model."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from functools import partial
from signal import SIGTERM
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..batch import PreferenceBatch
from ..checkpoint import Checkpoints, abstract
from ..data.batches import BatchPlan
from ..data.comparisons import TokenizedComparisons
from ..data.prefetch import prefetch
from ..data.sources import parse_source
from ..data.table import describe_table
from ..data.tokenizer import Tokenizer
from ..distributed import ballot, connect, ending_together, leads, prepare_together
from ..errors import ConfigError, RmError
from ..evaluate import METRICS, evaluate
from ..export import save_reward_model
from ..forward import rewards
from ..hf import load_reward_model, match_tokenizer
from ..hub import check_push, push_reward_model
from ..losses import centering_penalty, pairwise_loss
from ..lowering import Inputs, choose_attention
from ..model import RewardModel
from ..optimizer import learning_rate_schedule, make_optimizer
from ..output import locked
from ..sharding import make_mesh, parse_mesh, row_shards
from ..signals import stop_on_signals
from ..trackers import PACKAGES, Track, check_installed, guarded, open_trackers
from ..update import init_state, jit_update
from .arguments import TrainArguments
from .data import describe_plan, plan_updates, read_comparisons, read_tokenizer
from .log import TrainingLog
from .progress import Reporter, print_once, warn
from .provenance import pool_rewards, provenance
from .run import check_output, check_same_arguments, check_same_data, dataset_name, run_id, versions, write_record


class Prepared(NamedTuple):
    """What a run needs, read and checked."""

    model: RewardModel
    tokenizer: Tokenizer
    comparisons: TokenizedComparisons
    held_out: dict[str, TokenizedComparisons]
    tables: dict[str, dict[str, Any]]
    plan: BatchPlan
    mesh: Mesh | None


def prepare(args: TrainArguments) -> Prepared:
    """Everything is read and checked before the output directory appears."""
    for tracker in PACKAGES:
        if getattr(args, tracker):
            check_installed(tracker)
    check_output(args.output, resume=args.resume)
    if args.push_to and leads():
        check_push(args.push_to)
    if args.resume != "never":
        check_same_arguments(args.output, dataclasses.asdict(args))
    mesh = choose_mesh(args.mesh)
    source = parse_source(args.model)
    model = load_reward_model(
        source.path,
        dtype=jnp.dtype(args.parameters),
        key=jax.random.key(args.seed),
        revision=source.revision,
        mesh=mesh,
    )
    model, tokenizer = match_tokenizer(model, read_tokenizer(args))

    comparisons, read = read_comparisons(args.dataset, args.split, tokenizer, model.config, args)
    tables = {"train" if len(read) == 1 else f"train_{name}": table for name, table in read.items()}
    held_out: dict[str, TokenizedComparisons] = {}
    for dataset, split in _evaluation_sets(args):
        name = dataset_name(parse_source(dataset).path, list(held_out))
        whole = dataclasses.replace(args, streaming=False)
        held_out[name], read = read_comparisons([dataset], split, tokenizer, model.config, whole)
        tables |= {f"eval_{name}": table for table in read.values()}
    known = [f"eval_{name}_{metric}" for name in held_out for metric in METRICS]
    if args.keep_best is not None and args.keep_best not in known:
        raise ConfigError(
            f"--keep-best {args.keep_best}: expected one of {', '.join(known) or 'none, without --eval-split'}"
        )
    plan = plan_updates(comparisons, args, rows=row_shards(mesh))
    context = 1 if mesh is None else mesh.shape["context"]
    for shape in plan.shapes:
        inputs = Inputs(shape.regions, shape.slots, model.config.head_dim, jnp.dtype(args.dtype), context)
        choose_attention(args.attention, inputs)
    if args.resume != "never":
        check_same_data(args.output, _hashes(comparisons, held_out))
    return Prepared(model, tokenizer, comparisons, held_out, tables, plan, mesh)


def hold(args: TrainArguments, stack: contextlib.ExitStack) -> None:
    """Keeps other runs out of the output directory, in the process that leads."""
    if not leads():
        return
    before = stack.enter_context(locked(args.output))
    if before:
        say = warn if args.quiet else print_once
        say(f"{args.output}: process {before['process']} on {before['host']} did not end well; this one goes on")
    check_output(args.output, resume=args.resume)  # another run may have been there meanwhile


def choose_mesh(sizes: str | None) -> Mesh | None:
    """The mesh of `--mesh`; without it a single process takes a single device, and several spread out over `fsdp`."""
    if sizes is not None:
        return make_mesh(**parse_mesh(sizes))  # pyright: ignore[reportArgumentType]
    return make_mesh(fsdp=jax.device_count()) if jax.process_count() > 1 else None


def _facts(args: TrainArguments, prepared: Prepared) -> dict[str, Any]:
    """In what all processes of a run must agree."""
    own = ("process_id", "num_proc", "cache")
    arguments = {f"--{n.replace('_', '-')}": v for n, v in dataclasses.asdict(args).items() if n not in own}
    packages = {f"{name} version": value for name, value in versions().items() if name != "device"}
    return {**arguments, **packages, "data (a hash)": _hashes(prepared.comparisons, prepared.held_out)}


def train(args: TrainArguments, *, track: Track | None = None) -> int:
    """One process, or each of several, from reading to the exported model; returns the exit code.

    **Arguments:** `track`, a tracker of your own, called like the others (see `rm.trackers`).

    >>> train(TrainArguments(…), track=lambda step, values: print(step, values.get("loss")))  # doctest: +SKIP
    """
    if args.resume == "auto" and (args.output / "model").is_dir():
        if not args.quiet:
            print(f"the run is over: the reward model is in {args.output / 'model'}")
        return 0
    if args.distributed:
        connect(args.coordinator, args.num_processes, args.process_id)
    with ending_together(), contextlib.ExitStack() as stack, explaining_memory(args):
        prepared = prepare_together(partial(prepare, args), partial(_facts, args))
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
            f"out of memory on {device} ({str(error).partition(chr(10))[0][:120]}); lower --max-length, "
            f"use --remat full, --moments bfloat16, --offload or more devices (--mesh); what fits says: "
            f"python -m rm plan --model {args.model} --topology NAME"
        ) from None


def run(args: TrainArguments, prepared: Prepared, track: Track | None = None) -> int:
    """The training loop, with its logs, evaluations and checkpoints, and the export; returns the exit code."""
    model, tokenizer, comparisons, held_out, tables, plan, mesh = prepared
    del prepared
    steps = math.ceil(args.epochs * plan.steps_per_epoch) if args.max_steps is None else args.max_steps
    schedule, optimizer = training_optimizer(args, steps)
    compute_dtype = jnp.dtype(args.dtype)

    def objective(model: RewardModel, batch: PreferenceBatch) -> tuple[jax.Array, jax.Array]:
        scores = rewards(model, batch, dtype=compute_dtype, remat=args.remat, attention=args.attention, mesh=mesh)
        chosen, rejected = scores[..., 0], scores[..., 1]
        loss = pairwise_loss(chosen, rejected, batch.margin)
        return loss + args.center_rewards_coefficient * centering_penalty(chosen, rejected), scores

    record = {
        "arguments": dataclasses.asdict(args),
        "run_id": run_id(args.output),
        "versions": versions(),
        "data": tables,
        "data_sha256": _hashes(comparisons, held_out),
        "model": dataclasses.asdict(model.config)
        | {"parameters": sum(leaf.size for leaf in jax.tree.leaves(model)), "pad_token": tokenizer.pad_token},
        "row_shapes": [dataclasses.asdict(shape) for shape in plan.shapes],
        "steps": steps,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    state, advance = init_state(model, optimizer), jit_update(objective, optimizer)
    del model  # its arrays belong to the state now, which every update donates
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(args.output / "checkpoints", keep=args.keep, best=args.keep_best))
        start, notes = 0, {}
        if args.resume != "never" and checkpoints.steps:
            like, state = abstract(state), None  # memory for one of them
            start, state, notes = checkpoints.restore_newest(like, warn if args.quiet else print_once)
        write_record(args.output, record)
        report = stack.enter_context(Reporter(steps, done=start, quiet=args.quiet))
        for name, table in tables.items():
            report.print(describe_table(f"{name} ({table['source']})", table))
        report.print(f"{describe_plan(plan)}\n{steps} updates of {args.batch_size} comparisons")
        if start:
            report.print(f"goes on after update {start}")
        if mesh is None and jax.device_count() > 1:
            report.print(f"1 of {jax.device_count()} devices is used; --mesh fsdp={jax.device_count()} uses all")
        log = TrainingLog(
            args.output / "metrics.jsonl",
            steps,
            plan.steps_per_epoch,
            args.log_every,
            schedule,
            report,
            comparisons.origin,
            max_skipped=args.max_skipped,
            spike=args.skip_spikes,
            tracks=_track(args, record, start, track, stack) if leads() else (),
        )
        log.resume(start, notes)

        step, evaluation, waiting, stopped = start, {}, None, False
        signal, vote = stack.enter_context(stop_on_signals()), ballot()
        ahead = stack.enter_context(contextlib.closing(prefetch(plan, start, steps, mesh=mesh)))
        for step, batches in enumerate(ahead, start + 1):
            state, metrics = advance(state, batches, log.limit(step))
            if waiting:
                log.add(**waiting)
            indices = plan.indices_at(step - 1)
            tokens = int(comparisons.num_tokens[indices].sum())
            waiting = {"step": step, "metrics": metrics, "indices": indices, "tokens": tokens}

            stopped = vote(signal() is not None)
            evaluating = held_out and (step == steps or (args.eval_every and step % args.eval_every == 0))
            saving = stopped or step == steps or (args.save_every and step % args.save_every == 0)
            if evaluating or saving:
                log.add(**waiting)
                waiting = None
            with log.paused():
                if evaluating:
                    evaluation = _evaluate(state.model, held_out, args)
                    log.write(step, evaluation)
                if saving:
                    checkpoints.save(step, state, log.notes, evaluation if evaluating else {})
            if stopped and step < steps:
                break
        else:
            stopped = False
        if stopped:
            checkpoints.close()
            if not args.quiet:
                print_once(f"stopped after update {step}, which is saved; go on with --resume auto")
            return 128 + (signal() or SIGTERM)
    if 2 * log.skipped > steps:
        raise RmError(f"{log.skipped} of {steps} updates were skipped, see metrics.jsonl; nothing is exported")
    if held_out and not evaluation:  # the run had ended, but not been exported
        evaluation = _evaluate(state.model, held_out, args)
    record |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "evaluation": evaluation}
    if evaluation:
        record["reward"] = pool_rewards(evaluation, {name: 2 * len(each) for name, each in held_out.items()})
    write_record(args.output, record)
    save_reward_model(args.output / "model", state.model, tokenizer, provenance=provenance(args, tokenizer, record))
    if not args.quiet:
        print_once(f"the reward model is in {args.output / 'model'}")
    if args.push_to and leads():
        address = push_reward_model(args.output / "model", args.push_to)
        if not args.quiet:
            print_once(f"and at {address}")
    return 0


def _track(
    args: TrainArguments, record: dict[str, Any], step: int, track: Track | None, stack: contextlib.ExitStack
) -> list[Track]:
    """The trackers of a run, begun, each in a guard of its own."""
    chosen = {name: getattr(args, name) for name in PACKAGES}
    found = open_trackers(args.output, record, step=step, run_id=record["run_id"], quiet=args.quiet, **chosen)
    if track is not None:
        found["track"] = contextlib.nullcontext(track)
    return [stack.enter_context(guarded(name, tracker, warn)) for name, tracker in found.items()]


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


def _hashes(comparisons: TokenizedComparisons, held_out: dict[str, TokenizedComparisons]) -> list[str]:
    return [each.fingerprint for each in (comparisons, *held_out.values())]


def _evaluation_sets(args: TrainArguments) -> list[tuple[str, str]]:
    """Data set and split of everything to evaluate on."""
    if not args.eval_dataset and not args.eval_split:
        return []
    return [(dataset, args.eval_split or "train") for dataset in args.eval_dataset or args.dataset]


def _evaluate(model: RewardModel, held_out: dict[str, TokenizedComparisons], args: TrainArguments) -> dict[str, float]:
    options = {"batch_size": args.batch_size, "dtype": jnp.dtype(args.dtype)}
    options["center_rewards_coefficient"] = args.center_rewards_coefficient
    found = {name: evaluate(model, comparisons, **options) for name, comparisons in held_out.items()}  # pyright: ignore
    return {f"eval_{name}_{metric}": found[name][metric] for name in found for metric in METRICS}
