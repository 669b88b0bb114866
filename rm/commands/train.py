"""`python -m rm train`: from a Llama directory and preference data to a reward model."""

import contextlib
import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..batch import PreferenceBatch
from ..checkpoint import Checkpoints
from ..data.batches import plan_batches
from ..data.comparisons import TokenizedComparisons
from ..data.sources import load_comparisons
from ..data.tokenize import tokenize_comparisons
from ..data.tokenizer import Tokenizer, load_tokenizer
from ..errors import ConfigError
from ..evaluate import evaluate
from ..hf import load_reward_model, match_tokenizer, save_reward_model
from ..losses import centering_penalty, pairwise_loss
from ..model import Remat, RewardModel, rewards
from ..optimizer import Schedule, adamw, learning_rate_schedule
from ..update import init_state, jit_update
from .run import Reporter, TrainingLog, check_output, check_same_arguments, dataset_name, versions, write_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a reward model on preference pairs."""

    model: str
    """Llama weights: a directory with config.json, safetensors and tokenizer.json, or a hub id."""
    dataset: str
    """Preference pairs: a json, jsonl(.gz), parquet or csv file, a directory saved by datasets, or a hub id."""
    output: Path
    """Directory of the run; metrics.jsonl, run.json, checkpoints/ and model/ appear in it."""
    split: str = "train"
    """Split of --dataset to train on; slices such as train[:5%] work, and a file is one split, train."""
    eval_dataset: tuple[str, ...] = ()
    """Data sets to evaluate on, each like --dataset."""
    eval_split: str | None = None
    """Split to evaluate on: of every --eval-dataset (default: train), or of --dataset where there is none."""
    max_length: int = 1024
    """Comparisons with a side over this many tokens are dropped, and counted."""
    batch_size: int = 16
    """Comparisons of an update."""
    epochs: float = 1.0
    """Passes over the data."""
    max_steps: int | None = None
    """Updates in all, whatever --epochs says."""
    learning_rate: float = 5e-6
    """Peak learning rate of AdamW."""
    learning_rate_end: float = 0.0
    """Learning rate that the schedule ends at."""
    schedule: Schedule = "linear"
    """How the learning rate goes down after the warm-up."""
    warmup_ratio: float = 0.0
    """Share of the updates over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases do not decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""
    center_rewards_coefficient: float = 0.1
    """Weight of the centering penalty, which holds rewards around 0."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; parameters, losses and the score head stay float32."""
    remat: Remat = "full"
    """What the backward pass computes again instead of keeping: full needs least memory, none least time."""
    seed: int = 0
    """Seed of the new score head and of the order of the data."""
    shuffle: bool = True
    """Shuffle the data, anew every epoch."""
    share_prefix: bool = True
    """Compute the tokens that both sides begin with once."""
    log_every: int = 10
    """Updates between lines of metrics.jsonl."""
    eval_every: int | None = None
    """Updates between evaluations; the last update is always evaluated where there is something to evaluate on."""
    save_every: int | None = None
    """Updates between checkpoints."""
    resume: bool = False
    """Go on from the newest checkpoint in --output; give the same arguments as before."""

    def __post_init__(self):
        positive = ("max_length", "batch_size", "epochs", "max_steps", "log_every", "eval_every", "save_every")
        for name in (*positive, "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be greater than 0, found {value}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"--{name.replace('_', '-')} must be finite, found {value}")
        for name in ("seed", "max_grad_norm", "weight_decay", "learning_rate_end"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, found {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ConfigError(f"--seed must be below 2**32, found {self.seed}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"--warmup-ratio must be between 0 and 1, found {self.warmup_ratio}")


def train(args: TrainArguments) -> None:
    """Everything is read and checked before the output directory appears."""
    check_output(args.output, resume=args.resume)
    if args.resume:
        check_same_arguments(args.output, dataclasses.asdict(args))
    tokenizer = load_tokenizer(args.model)
    model = load_reward_model(args.model, key=jax.random.key(args.seed))
    model, tokenizer = match_tokenizer(model, tokenizer)

    def read(dataset: str, split: str) -> tuple[TokenizedComparisons, dict[str, Any]]:
        rows = load_comparisons(dataset, split=split)
        options = {"max_length": args.max_length, "share_prefix": args.share_prefix, "source": dataset}
        return tokenize_comparisons(rows, tokenizer, model.config, **options)  # pyright: ignore[reportArgumentType]

    comparisons, table = read(args.dataset, args.split)
    tables, held_out = {"train": table}, {}
    for name, dataset, split in _evaluation_sets(args):
        held_out[name], tables[f"eval_{name}"] = read(dataset, split)

    plan = plan_batches(comparisons, args.batch_size, seed=args.seed, shuffle=args.shuffle)
    steps = math.ceil(args.epochs * plan.steps_per_epoch) if args.max_steps is None else args.max_steps
    schedule = learning_rate_schedule(
        args.schedule,
        peak=args.learning_rate,
        end=args.learning_rate_end,
        steps=steps,
        warmup_steps=math.ceil(args.warmup_ratio * steps),
    )
    optimizer = adamw(schedule, weight_decay=args.weight_decay, max_grad_norm=args.max_grad_norm or None)
    compute_dtype = jnp.dtype(args.dtype)

    def objective(model: RewardModel, batch: PreferenceBatch) -> tuple[jax.Array, jax.Array]:
        scores = rewards(model, batch, dtype=compute_dtype, remat=args.remat)
        chosen, rejected = scores[..., 0], scores[..., 1]
        loss = pairwise_loss(chosen, rejected, batch.margin)
        return loss + args.center_rewards_coefficient * centering_penalty(chosen, rejected), scores

    record = {
        "arguments": dataclasses.asdict(args),
        "versions": versions(),
        "data": tables,
        "model": dataclasses.asdict(model.config)
        | {"parameters": sum(leaf.size for leaf in jax.tree.leaves(model)), "pad_token": tokenizer.pad_token},
        "row_shape": dataclasses.asdict(plan.shape),
        "steps": steps,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    state, advance = init_state(model, optimizer), jit_update(objective, optimizer)
    del model  # its arrays belong to the state now, which every update donates
    start, notes = 0, {"num_tokens": 0, "window": []}
    args.output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if args.save_every or args.resume:
            checkpoints = stack.enter_context(Checkpoints(args.output / "checkpoints"))
        if args.resume and checkpoints and checkpoints.latest is not None:
            start = checkpoints.latest
            state, notes = checkpoints.restore(start, state)
        write_record(args.output, record)
        report = stack.enter_context(Reporter(steps, done=start))
        report.print(_describe(tables, steps, args))
        log = TrainingLog(args.output / "metrics.jsonl", steps, plan.steps_per_epoch, args.log_every, schedule, report)
        log.resume(start, notes)

        evaluation, waiting = {}, None
        for step in range(start + 1, steps + 1):
            state, metrics = advance(state, plan.batch_at(step - 1))
            if waiting:
                log.add(**waiting)
            indices = plan.indices_at(step - 1)
            tokens = int(comparisons.num_tokens[indices].sum())
            waiting = {"step": step, "metrics": metrics, "pairs": len(indices), "tokens": tokens}

            evaluating = held_out and (step == steps or (args.eval_every and step % args.eval_every == 0))
            saving = checkpoints and args.save_every and (step == steps or step % args.save_every == 0)
            if evaluating or saving or step == steps:
                log.add(**waiting)
                waiting = None
            with log.paused():
                if evaluating:
                    evaluation = _evaluate(state.model, held_out, args)
                    log.write(step, evaluation)
                if saving and checkpoints:
                    checkpoints.save(step, state, log.notes)
    if held_out and not evaluation:  # the run had ended, but not been exported
        evaluation = _evaluate(state.model, held_out, args)
    record |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "evaluation": evaluation}
    write_record(args.output, record)
    save_reward_model(args.output / "model", state.model, tokenizer, provenance=_provenance(args, tokenizer, record))
    print(f"the reward model is in {args.output / 'model'}")


def _evaluation_sets(args: TrainArguments) -> list[tuple[str, str, str]]:
    """Name, data set and split of everything to evaluate on."""
    if not args.eval_dataset:
        return [(dataset_name(args.dataset), args.dataset, args.eval_split)] if args.eval_split else []
    sets: list[tuple[str, str, str]] = []
    for dataset in args.eval_dataset:
        name = dataset_name(dataset, [name for name, _, _ in sets])
        sets.append((name, dataset, args.eval_split or "train"))
    return sets


def _evaluate(model: RewardModel, held_out: dict[str, TokenizedComparisons], args: TrainArguments) -> dict[str, float]:
    options = {"batch_size": args.batch_size, "dtype": jnp.dtype(args.dtype)}
    options["center_rewards_coefficient"] = args.center_rewards_coefficient
    return {
        f"eval_{name}_{metric}": value
        for name, comparisons in held_out.items()
        for metric, value in evaluate(model, comparisons, **options).items()  # pyright: ignore[reportArgumentType]
    }


def _provenance(args: TrainArguments, tokenizer: Tokenizer, record: dict[str, Any]) -> dict[str, Any]:
    template, evaluation = tokenizer.chat_template, record["evaluation"]
    spread = {
        name: [value for key, value in evaluation.items() if key.endswith(f"{name}_reward")] for name in ("mean", "std")
    }
    return {
        "base_model": args.model,
        "base_model_is_hub_id": not Path(args.model).exists(),
        "dataset": args.dataset,
        "data": record["data"],
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "evaluation": evaluation,
        "reward": {name: values[0] for name, values in spread.items() if values},  # over the first evaluation set
        "versions": record["versions"],
    }


def _describe(tables: dict[str, dict[str, Any]], steps: int, args: TrainArguments) -> str:
    lines = []
    for name, table in tables.items():
        dropped = ", ".join(
            f"{count} {reason.replace('_', ' ')}" for reason, count in table["dropped"].items() if count
        )
        saved = 1 - table["tokens_stored"] / table["tokens"]
        lines.append(
            f"{name}: {table['read']} comparisons read, {table['kept']} kept"
            + (f" (dropped: {dropped})" if dropped else "")
            + f", {table['tokens']} tokens, {saved:.0%} saved by shared prefixes"
        )
    return "\n".join([*lines, f"{steps} updates of {args.batch_size} comparisons"])
