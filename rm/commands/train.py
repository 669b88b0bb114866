"""`python -m rm train`: from a model directory and preference data to a reward model, told from top to bottom.

`train` prepares (reads and checks everything while nothing is written yet), runs the loop with its log, evaluations and
checkpoints, and finishes with the export.
"""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from signal import SIGTERM
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..data.comparisons import TokenizedComparisons
from ..data.doubtful import shared
from ..data.sources import parse_source
from ..data.table import describe_table
from ..devices.agreement import ballot, from_first, prepare_together
from ..devices.mesh import row_shards
from ..devices.platform import target
from ..devices.processes import connect, ending_together, leads
from ..devices.signals import stop_on_signals
from ..errors import ConfigError, OutputError, RmError, first_line
from ..evaluation.scoring import METRICS, evaluate
from ..files.hub import check_push, push_reward_model
from ..files.output import locked, read_owner
from ..model.adapters import split_model
from ..model.attention_choice import Inputs, choose_attention
from ..model.compute import Compute
from ..model.config import LlamaConfig
from ..model.heads import head_shapes, is_matrix
from ..model.llama import RewardModel
from ..model.loading import ModelFiles, load_config, open_reward_model
from ..model.sharding import check_mesh
from ..packing.batches import BatchPlan, prefetch
from ..planning.advice import fit_memory
from ..planning.estimates import Case
from ..saving.adapter import save_adapter
from ..saving.checkpoints import Checkpoints, abstract
from ..saving.export import save_reward_model
from ..text.pad_token import match_config, match_tokenizer
from ..text.tokenizer import Tokenizer
from ..training.objectives import Objective, pairwise_objective, with_frozen
from ..training.optimizers import learning_rate_schedule, make_optimizer
from ..training.step import TrainState, init_state, jit_update
from .log import TrainingLog
from .options import (
    ReadingOptions,
    SourceOptions,
    flag,
    names_of,
    on_this_device,
    parse_duration,
    parse_head_std,
)
from .progress import Reporter, print_once, warn
from .read import check_labels, describe_plan, plan_updates, read_comparisons, read_tokenizer
from .run_directory import (
    check_length,
    check_output,
    check_same_arguments,
    check_same_data,
    check_same_objective,
    check_same_weights,
    check_shared,
    dataset_name,
    pool_rewards,
    provenance,
    recorded,
    run_id,
    saved_steps,
    set_model_aside,
    versions,
    write_record,
)
from .trackers import PACKAGES, Track, check_installed, guarded, open_trackers
from .train_arguments import MAY_GROW, TrainArguments

# The command.


def train(args: TrainArguments, *, objective: Objective | None = None, track: Track | None = None) -> int:
    """Trains, from reading the data to exporting the model; returns the exit code. Every process of a run calls it.

    **Arguments:** `objective(model, batch)`, a loss of your own in place of the pairwise one with centering, in updates
    and evaluations (see `rm.update`; `args.compute()` has type and mesh for `rm.rewards`); `track`, a tracker of
    your own, called like the others (see `rm.commands.trackers`).

    >>> train(TrainArguments(…), track=lambda step, values: print(step, values.get("loss")))  # doctest: +SKIP
    """
    end = time.monotonic() + parse_duration("--time-limit", args.time_limit) if args.time_limit else math.inf
    if args.distributed:
        limit = parse_duration("--join-timeout", args.join_timeout)
        connect(args.coordinator, args.num_processes, args.process_id, join_timeout=limit)
    args = on_this_device(args, say=False)  # the log does
    with ending_together(), contextlib.ExitStack() as stack, explaining_memory(args):
        if prepare_together(partial(is_over, args, objective), lambda over: {"a finished run": over}):
            print_once(f"the run is over: the reward model is in {args.output / 'model'}", quiet=args.quiet)
            return 0
        found = prepare_together(partial(find, args, objective), partial(facts, args, objective))
        args = fit_device(args, found.files.config)
        chosen = {"--remat": args.remat, "--micro-batch-tokens": args.micro_batch_tokens}
        prepared = prepare_together(
            partial(prepare, args, objective, found), lambda p: {"data (a hash)": p.hashes} | chosen
        )
        model, _ = match_tokenizer(prepared.model, found.tokenizer)  # all processes may compute it together
        trained, frozen = split_model(model, args.part(), key=jax.random.key(args.seed))
        prepare_together(partial(hold, args, stack))
        prepare_together(partial(check_shared, args.output, from_first(read_owner(args.output))))
        return run(args, prepared._replace(model=trained, frozen=frozen), track, end=end)


@contextlib.contextmanager
def explaining_memory(args: TrainArguments) -> Iterator[None]:
    """Turns a device's lack of memory into one line with advice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = jax.devices()[0].device_kind
        raise RmError(
            f"out of memory on {device} ({first_line(error)}); lower --max-length or --micro-batch-tokens, "
            f"use --remat full, --moments bfloat16, --offload, --lora-rank or more devices (--mesh); what fits says: "
            f"python -m rm plan --model {args.model} --topology NAME"
        ) from None


# What a run needs before its first update.


class Prepared(NamedTuple):
    """Everything a run needs, read and checked."""

    model: RewardModel
    tokenizer: Tokenizer
    comparisons: TokenizedComparisons
    held_out: dict[str, TokenizedComparisons]
    tables: dict[str, dict[str, Any]]
    plan: BatchPlan
    steps: int  # updates in all
    objective: Objective | None  # one of the caller's own
    mesh: Mesh | None
    weights: str  # a fingerprint of the files that --model names
    base_is_adapter: bool
    frozen: Any = None  # once `model` is only the part that trains, the other

    def whole(self, trained: RewardModel) -> RewardModel:
        """The model with a trained part."""
        return eqx.combine(trained, self.frozen)

    @property
    def hashes(self) -> list[str]:
        """Fingerprints of all comparisons, those to train on first."""
        return [each.fingerprint for each in (self.comparisons, *self.held_out.values())]


class Found(NamedTuple):
    """The model and its tokenizer, of which no weights have been read yet."""

    files: ModelFiles
    tokenizer: Tokenizer
    weights: str  # a fingerprint of the files


def find(args: TrainArguments, objective: Objective | None = None) -> Found:
    """Checks all that takes seconds, before the output directory appears."""
    for tracker in PACKAGES:
        if getattr(args, tracker):
            check_installed(tracker)
    check_output(args.output, resume=args.resume)
    if args.push_to and leads():
        check_push(args.push_to)
    if args.resume != "never":
        check_same_run(args, objective)
    source = parse_source(args.model)
    dtype = jnp.dtype(args.parameters)
    files = open_reward_model(source.path, dtype=dtype, head=args.head, revision=source.revision)
    if objective is None:
        check_labels(args.model, files, args)
    if args.freeze_layers >= files.config.num_hidden_layers:
        most = files.config.num_hidden_layers - 1
        raise ConfigError(
            f"--freeze-layers must be at most {most}, all layers but the last, found {args.freeze_layers}"
        )
    return Found(files, read_tokenizer(args), files.fingerprint())


def fit_device(args: TrainArguments, config: LlamaConfig) -> TrainArguments:
    """The same arguments with what `--remat auto` and `--micro-batch-tokens auto` are on this device."""
    compute = args.compute()
    mesh, dtype = compute.mesh, compute.dtype
    sizes, shards = dict(mesh.shape) if mesh is not None else {}, row_shards(mesh)
    same = {name: getattr(args, name) for name in ("optimizer", "moments", "parameters", "offload", "attention")}
    case = Case(config=config, mesh=sizes, rows=shards, dtype=dtype.name, part=args.part(), **same)
    inputs = Inputs(case.regions, config.head_dim, dtype, sizes.get("context", 1))
    case = dataclasses.replace(case, attention=choose_attention(case.attention, inputs))
    options: dict[str, Any] = {} if args.remat == "auto" else {"remats": [args.remat]}
    options |= {} if args.micro_batch_tokens == "auto" else {"tokens": [args.micro_batch_tokens]}
    remat, tokens = fit_memory(case, target().memory, **options)
    return dataclasses.replace(args, remat=remat, micro_batch_tokens=tokens)


def facts(args: TrainArguments, objective: Objective | None, found: Found) -> dict[str, Any]:
    """Values that must be equal in all processes."""
    own = names_of(ReadingOptions) | {"process_id", "join_timeout"}
    arguments = {flag(n): v for n, v in dataclasses.asdict(args).items() if n not in own}
    packages = {f"{name} version": value for name, value in versions().items() if name != "device"}
    steps = saved_steps(args.output) if args.resume != "never" else []
    config = {f"{name} (config.json)": value for name, value in dataclasses.asdict(found.files.config).items()}
    here = {
        "local devices": jax.local_device_count(),
        "checkpoints in --output": steps,
        "objective": _name_of(objective),
    }
    text = repr((sorted(found.tokenizer.files.items()), found.tokenizer.chat_template))
    hashes = {"model weights (a hash)": found.weights}
    hashes |= {"tokenizer (a hash)": hashlib.sha256(text.encode()).hexdigest()}
    return arguments | packages | here | config | hashes


def prepare(args: TrainArguments, objective: Objective | None, found: Found) -> Prepared:
    """Reads the data and the weights, before the output directory appears; no process waits for another."""
    compute = args.compute()
    if compute.mesh is not None:
        check_mesh(found.files.config, compute.mesh)
    config, tokenizer = match_config(found.files.config, found.tokenizer)
    comparisons, held_out, tables = _read_data(args, tokenizer, config)
    if args.keep_best is not None:
        check_keep_best(args.keep_best, held_out, objective)
    plan = plan_updates(comparisons, args, rows=row_shards(compute.mesh), micro_batch_tokens=args.micro_batch)
    check_attention(compute, plan, config)
    steps = total_steps(args, plan)
    if args.resume != "never":
        check_length(args.output, steps, streaming=args.streaming)
        check_same_data(args.output, comparisons.fingerprint)
    if args.resume != "never" and not args.part().whole:
        check_same_weights(args.output, found.weights)
    options = {"head_std": parse_head_std(args.head_std, config.hidden_size), "label_weights": args.label_weights}
    model = found.files.load(key=jax.random.key(args.seed), mesh=compute.mesh, **options)
    base = found.weights, found.files.adapter is not None
    return Prepared(model, tokenizer, comparisons, held_out, tables, plan, steps, objective, compute.mesh, *base)


def check_same_run(args: TrainArguments, objective: Objective | None) -> None:
    """Refuses to resume with another objective, or with other arguments that decide what the run computes."""
    check_same_arguments(args.output, {n: value for n, value in args.decisive().items() if n not in MAY_GROW})
    check_same_objective(args.output, _name_of(objective))


def total_steps(args: TrainArguments, plan: BatchPlan) -> int:
    """The updates of the run."""
    return math.ceil(args.epochs * plan.steps_per_epoch) if args.max_steps is None else args.max_steps


def check_keep_best(metric: str, held_out: Mapping[str, Any], objective: Objective | None) -> None:
    """Refuses a metric that no evaluation will have; an objective of your own may have any."""
    known = [f"eval_{name}_{metric}" for name in held_out for metric in METRICS]
    if metric not in known and not (objective and metric.startswith(tuple(f"eval_{name}_" for name in held_out))):
        raise ConfigError(f"--keep-best {metric}: expected one of {', '.join(known) or 'none, without --eval-split'}")


def check_attention(compute: Compute, plan: BatchPlan, config: LlamaConfig) -> None:
    """Refuses an attention implementation that is not exact for the rows of the plan."""
    context = 1 if compute.mesh is None else compute.mesh.shape["context"]
    form = config.head_dim, compute.dtype, context, config.sliding_window
    for shape in plan.shapes:
        choose_attention(compute.attention, Inputs(shape.regions, *form))


def is_over(args: TrainArguments, objective: Objective | None) -> bool:
    """True where `--output` holds a finished run, made by the same arguments and data, that is not to go on longer.

    **Raises:** `RmError`, if other arguments or other data have made it.
    """
    if args.resume == "never" or not (args.output / "model").is_dir():
        return False
    check_output(args.output, resume=args.resume)
    check_same_run(args, objective)
    source = parse_source(args.model)
    config, tokenizer = match_config(load_config(source.path, revision=source.revision), read_tokenizer(args))
    comparisons, _ = read_comparisons(args.dataset, args.split, tokenizer, config, args)
    steps = total_steps(args, plan_updates(comparisons, args))
    check_length(args.output, steps, streaming=args.streaming)
    check_same_data(args.output, comparisons.fingerprint)
    return steps == recorded(args.output).get("steps", steps)


def _read_data(
    args: TrainArguments, tokenizer: Tokenizer, config: LlamaConfig
) -> tuple[TokenizedComparisons, dict[str, TokenizedComparisons], dict[str, dict[str, Any]]]:
    """The training comparisons, the evaluation sets by name, and the table of every data set."""
    comparisons, read = read_comparisons(args.dataset, args.split, tokenizer, config, args)
    tables = {"train" if len(read) == 1 else f"train_{name}": table for name, table in read.items()}
    held_out: dict[str, TokenizedComparisons] = {}
    for dataset, split in _evaluation_sets(args):
        name = dataset_name(parse_source(dataset).path, list(held_out))
        whole = dataclasses.replace(args, streaming=False)
        held_out[name], read = read_comparisons([dataset], split, tokenizer, config, whole)
        in_training = int(shared(held_out[name], comparisons).sum())
        tables |= {f"eval_{name}": table | {"in_training": in_training} for table in read.values()}
    return comparisons, held_out, tables


def _evaluation_sets(args: TrainArguments) -> list[tuple[str, str]]:
    """Data set and split of every evaluation set."""
    if not args.eval_dataset and not args.eval_split:
        return []
    return [(dataset, args.eval_split or "train") for dataset in args.eval_dataset or args.dataset]


def hold(args: TrainArguments, stack: contextlib.ExitStack) -> None:
    """Locks the output directory against other runs, in process 0."""
    if not leads():
        return
    before = stack.enter_context(locked(args.output))
    if before:
        say = warn if args.quiet else print_once
        say(f"{args.output}: process {before['process']} on {before['host']} did not end well; this one goes on")
    check_output(args.output, resume=args.resume)  # another run may have been there meanwhile


# The loop.


def run(args: TrainArguments, prepared: Prepared, track: Track | None = None, *, end: float = math.inf) -> int:
    """The training loop, with its logs, evaluations and checkpoints, and the export; returns the exit code.

    **Arguments:** `end`, the time of `time.monotonic` after which the run saves and ends.
    """
    held_out, plan, steps = prepared.held_out, prepared.plan, prepared.steps
    record = describe_run(args, prepared)
    schedule, optimizer = training_optimizer(args, steps)

    objective = prepared.objective or pairwise_objective(args.center_rewards_coefficient, args.compute())
    if not args.part().whole:
        objective = with_frozen(objective, prepared.frozen)
    state, advance = init_state(prepared.model, optimizer), jit_update(objective, optimizer)
    evaluation, stopped = {}, False
    with contextlib.ExitStack() as stack:
        signal = stack.enter_context(stop_on_signals())  # first, so that it still holds while the last save is awaited
        checkpoints = stack.enter_context(Checkpoints(args.output / "checkpoints", keep=args.keep, best=args.keep_best))
        start, state, notes = go_on(args, checkpoints, state)
        record |= describe_changes(args, record, start)
        write_record(args.output, record)
        log = stack.enter_context(opened_log(args, prepared, record, schedule, start, track))
        log.resume(start, notes)
        if args.eval_on_start and not start:
            with log.paused():
                log.evaluated(0, evaluate_all(prepared.whole(state.model), prepared, args))
        step, vote = start, ballot()
        ahead = stack.enter_context(contextlib.closing(prefetch(plan, start, steps, mesh=prepared.mesh)))
        for step, batches in enumerate(ahead, start + 1):
            state, metrics = advance(state, batches, log.limit(step))
            log.add(step, metrics, plan.indices_at(step - 1))

            stopped = vote(signal() is not None or time.monotonic() > end) and step < steps
            evaluating = held_out and (step == steps or due(args.eval_every, step))
            saving = stopped or due(args.save_every, step) or (args.load_best and evaluating)
            saving = saving or (step == steps and not args.save_final_only)
            if evaluating or saving or step == steps:
                with log.paused():  # reads what the log still waits for, too
                    if evaluating:
                        evaluation = evaluate_all(prepared.whole(state.model), prepared, args)
                        log.evaluated(step, evaluation)
                    if saving:
                        checkpoints.save(step, state, log.notes, evaluation if evaluating else {})
            if stopped:
                break
    if stopped:
        why = f" by --time-limit {args.time_limit}" if time.monotonic() > end else ""
        print_once(f"stopped{why} after update {step}, which is saved; go on with --resume auto", quiet=args.quiet)
        return 128 + (signal() or SIGTERM)
    finish(args, prepared, state.model, record, evaluation, log.skipped)
    return 0


def describe_run(args: TrainArguments, prepared: Prepared) -> dict[str, Any]:
    """The first version of run.json."""
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(x)) for x in (prepared.model, prepared.frozen))
    return {
        "arguments": dataclasses.asdict(args),
        "objective": _name_of(prepared.objective),
        "run_id": run_id(args.output),
        "versions": versions(),
        "data": prepared.tables,
        "data_sha256": prepared.hashes,
        "weights_xxh3": prepared.weights,
        "part": dataclasses.asdict(args.part()),
        "model": dataclasses.asdict(prepared.model.config)
        | {"parameters": trained + frozen, "trained": trained, "pad_token": prepared.tokenizer.pad_token}
        | {"head": head_shapes(prepared.model)},
        "row_shapes": [dataclasses.asdict(shape) for shape in prepared.plan.shapes],
        "steps": prepared.steps,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _name_of(objective: Objective | None) -> str:
    if objective is None:
        return "pairwise"
    function = getattr(objective, "func", objective)  # of a partial
    return getattr(function, "__qualname__", type(function).__name__)


def go_on(args: TrainArguments, checkpoints: Checkpoints, state: TrainState) -> tuple[int, TrainState, dict[str, Any]]:
    """The starting point of a run: the number of updates done, the state after them, the notes of the log."""
    say, finished = warn if args.quiet else print_once, (args.output / "model").is_dir()
    if args.resume == "never" or not (checkpoints.steps or checkpoints.set_aside):
        if finished:
            advice = f"train on with --model {args.output / 'model'} and another --output"
            raise OutputError(f"{args.output}: the run is finished and kept no checkpoint to go on from; {advice}")
        if (args.output / "metrics.jsonl").exists():
            say(f"{args.output}: no checkpoint there; begins again with update 1 and a new metrics.jsonl")
        return 0, state, {}
    like = abstract(state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # memory for one of them
    found = checkpoints.restore_newest(like, say)
    if finished:
        say(f"the model so far is now {set_model_aside(args.output)}")
    return found


def describe_changes(args: TrainArguments, record: dict[str, Any], start: int) -> dict[str, Any]:
    """Says what of a run that goes on is not as before; for run.json, where it has become longer."""
    old, steps = recorded(args.output) if start else {}, record["steps"]
    before, history = old.get("steps", steps), old.get("lengthened", [])
    evaluated = [hashes["data_sha256"][1:] for hashes in (old, record) if "data_sha256" in hashes]
    if all(evaluated) and evaluated[0] != record["data_sha256"][1:]:
        print_once("evaluates on other data than before: the figures do not compare", quiet=args.quiet)
    if before < steps:
        was, now = (float(jnp.asarray(training_optimizer(args, count)[0](start))) for count in (before, steps))
        stretched = (
            f"; the {args.schedule} schedule is stretched over all of them: the rate goes from {was:.3g} to {now:.3g}"
        )
        print_once(f"{steps} updates in place of {before}{stretched * (was != now)}", quiet=args.quiet)
        history = [*history, {"after": start, "from": before, "to": steps}]
    return {"lengthened": history} if history else {}


@contextlib.contextmanager
def opened_log(
    args: TrainArguments,
    prepared: Prepared,
    record: dict[str, Any],
    schedule: optax.Schedule,
    start: int,
    track: Track | None,
) -> Iterator[TrainingLog]:
    """The log of the run: lines on the terminal, metrics.jsonl, and trackers, which never end the run."""
    plan, steps = prepared.plan, record["steps"]
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Reporter(steps, done=start, quiet=args.quiet))
        for name, table in prepared.tables.items():
            report.print(describe_table(f"{name} ({table['source']})", table))
        report.print(f"{describe_plan(plan)}\n{steps} updates of {args.batch_size} comparisons")
        numbers = (
            "" if args.optimizer in ("lion", "adafactor") else " ({:g}, {:g}, {:g})".format(*args.rates().values())
        )
        report.print(f"{args.optimizer}{numbers}, peak learning rate {args.learning_rate:g}, {args.schedule}")
        report.print(f"computes in {args.dtype}, --remat {args.remat}, up to {args.micro_batch} tokens at once")
        if prepared.objective:
            report.print(
                f"objective {record['objective']}: --center-rewards-coefficient has no effect, --dtype, --remat and "
                "--attention only where it uses args.compute()"
            )
        if (trained := record["model"]["trained"]) < (count := record["model"]["parameters"]):
            report.print(f"{trained:,} of {count:,} parameters train")
        if start:
            report.print(f"goes on after update {start}")
        used, devices = 1 if prepared.mesh is None else prepared.mesh.size, jax.device_count()
        if used < devices:
            report.print(
                f"{used} of {devices} devices {'is' if used == 1 else 'are'} used; --mesh fsdp={devices} uses all"
            )
        trackers: dict[str, Any] = {}
        if leads():
            chosen = {name: getattr(args, name) for name in PACKAGES}
            run_id, quiet = record["run_id"], args.quiet
            trackers |= open_trackers(
                args.output, record, step=start, run_id=run_id, name=args.run_name, quiet=quiet, **chosen
            )
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
            pairwise=prepared.objective is None,
            spike=args.skip_spikes,
            tracks=[stack.enter_context(guarded(name, tracker, warn)) for name, tracker in trackers.items()],
        )


def training_optimizer(args: TrainArguments, steps: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning-rate schedule over `steps` updates, and the optimizer."""
    schedule = learning_rate_schedule(
        args.schedule,
        peak=args.learning_rate,
        end=args.learning_rate_end,
        steps=steps,
        warmup_steps=math.ceil(args.warmup_ratio * steps) if args.warmup_steps is None else args.warmup_steps,
    )
    return schedule, make_optimizer(
        args.optimizer,
        schedule,
        **args.rates(),
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm or None,
        moments=args.moments,
        offload=args.offload,
    )


def due(every: int | None, step: int) -> bool:
    """True where something is due after this update.

    >>> due(2, 3), due(2, 4), due(None, 4)
    (False, True, False)
    """
    return every is not None and step % every == 0


# What ends a run.


def evaluate_all(model: RewardModel, prepared: Prepared, args: TrainArguments) -> dict[str, float]:
    """`eval_NAME_METRIC` for every evaluation set, including the objective's own metrics."""
    options: Any = {"batch_size": args.batch_size, "compute": args.compute(), "objective": prepared.objective}
    options["micro_batch_tokens"] = args.micro_batch
    options["center_rewards_coefficient"] = args.center_rewards_coefficient
    found = {}
    for name, comparisons in prepared.held_out.items():
        values = evaluate(model, comparisons, **options)
        own = {metric: values[metric] for metric in METRICS} | values.get("objective", {})
        found |= {f"eval_{name}_{metric}": value for metric, value in own.items()}
    return found


def finish(
    args: TrainArguments,
    prepared: Prepared,
    model: RewardModel,
    record: dict[str, Any],
    evaluation: dict[str, float],
    skipped: int,
) -> None:
    """Evaluates a last time, completes run.json and exports, unless most updates were skipped."""
    held_out, steps = prepared.held_out, record["steps"]
    if 2 * skipped > steps:
        raise RmError(f"{skipped} of {steps} updates were skipped, see metrics.jsonl; nothing is exported")
    if args.load_best:
        best, model = load_best(args, model, steps, prepared.mesh)
        if best < steps:
            print_once(f"the best {args.keep_best} is that of update {best}, whose model is exported", quiet=args.quiet)
            record["best_step"], evaluation = best, {}
    model = prepared.whole(model)
    if held_out and not evaluation:  # of another update, or the run had ended, but not been exported
        evaluation = evaluate_all(model, prepared, args)
    record |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "evaluation": evaluation}
    if evaluation:
        record["reward"] = pool_rewards(evaluation, {name: 2 * len(each) for name, each in held_out.items()})
    write_record(args.output, record)
    export(args, model, prepared, record)


def load_best(args: TrainArguments, model: RewardModel, steps: int, mesh: Mesh | None) -> tuple[int, RewardModel]:
    """The update with the best evaluation, and its model, which takes the memory of `model`, the last."""
    with Checkpoints(args.output / "checkpoints", best=args.keep_best, read_only=True) as checkpoints:
        best = checkpoints.best_step or steps
        if best == steps:
            return steps, model
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)
        for leaf in jax.tree.leaves(model):
            leaf.delete()
        return best, checkpoints.restore_model(best, like, mesh=mesh)


def export(args: TrainArguments, model: RewardModel, prepared: Prepared, record: dict[str, Any]) -> None:
    """Writes the reward model, and uploads it where --push-to asks."""
    where, adapter, tokenizer = args.output / "model", args.output / "adapter", prepared.tokenizer
    decisive = {name: value for name, value in args.decisive().items() if name not in names_of(SourceOptions)}
    facts = provenance(record, tokenizer, hyperparameters=decisive, repository=args.push_to)
    if args.lora_rank and not is_matrix(model):
        print_once("no adapter: peft's form does not hold a head with a bias or a hidden layer", quiet=args.quiet)
    elif args.lora_rank and prepared.base_is_adapter:
        print_once("no adapter: --model is an adapter itself, which cannot be the base of one", quiet=args.quiet)
    elif args.lora_rank:
        base = parse_source(args.model)
        save_adapter(adapter, model, tokenizer, base=base.path, revision=base.revision)
        print_once(f"the adapter is in {adapter}, in the form of peft", quiet=args.quiet)
    save_reward_model(where, model, tokenizer, provenance=facts)
    print_once(f"the reward model is in {where}", quiet=args.quiet)
    if args.push_to and leads():
        print_once(f"and at {push_reward_model(where, args.push_to)}", quiet=args.quiet)
