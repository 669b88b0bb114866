"""Reads what commands are given: preferences to comparisons and the plan of the batches, and the model of `--model`."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..data.comparisons import TokenizedComparisons, mix
from ..data.encode import RowOptions
from ..data.sources import Source, expand, load_comparisons, parse_rename, parse_source
from ..data.tokenize import tokenize_comparisons
from ..errors import ConfigError, DataError
from ..files.hub import read_json
from ..model.adapters import Training, merge_lora, split_model
from ..model.config import LlamaConfig
from ..model.heads import abstract_head, check_one_label
from ..model.llama import RewardModel, init_reward_model
from ..model.loading import ModelFiles, load_config, open_reward_model
from ..packing.batches import BatchPlan, plan_batches
from ..planning.advice import LEAST_TOKENS
from ..saving.checkpoints import Checkpoints
from ..text.pad_token import match_config, match_tokenizer
from ..text.tokenizer import Tokenizer, load_tokenizer
from .options import HeadOptions, ReadingOptions, ReadOptions, names_of
from .run_directory import check_same_weights, dataset_name

_SHUFFLE_BUFFER = 10_000  # rows that a stream is shuffled within


def read_tokenizer(args: ReadOptions) -> Tokenizer:
    """The model's tokenizer, with the chat template and the date that the options ask for."""
    return _read_tokenizer(parse_source(args.model), args.chat_template, args.chat_template_date)


def _read_tokenizer(model: Source, template: str | Path | None, today: date | None) -> Tokenizer:
    return load_tokenizer(model.path, revision=model.revision, chat_template=template, today=today)


def read_comparisons(
    datasets: Sequence[str], split: str, tokenizer: Tokenizer, config: LlamaConfig, args: ReadOptions
) -> tuple[TokenizedComparisons, dict[str, dict[str, Any]]]:
    """The comparisons of one data set, or of several mixed, and the table of each by its name."""
    sources = [parse_source(text) for text in datasets]
    weights = [source.weight for source in sources if source.weight is not None]
    if not sources or len(weights) not in (0, len(sources)):
        raise ConfigError("--dataset needs a data set, and a weight for every one or for none (A=0.7 B=0.3)")
    names: list[str] = []
    parts, tables = [], []
    for source in sources:
        share = (source.weight or 1.0) / (sum(weights) or len(sources))
        names.append(dataset_name(source.path, names))
        part, table = _read_source(source, split, share, tokenizer, config, args)
        parts.append(part)
        tables.append(table)
    try:
        comparisons, taken = mix(parts, weights or None, seed=args.seed)
    except ValueError as error:
        raise ConfigError(f"--dataset: {error}") from None
    for table, source, count in zip(tables, sources, taken, strict=True):
        table |= {"source": source.path, "taken": count}
    return comparisons, dict(zip(names, tables, strict=True))


def _read_source(
    source: Source, split: str, share: float, tokenizer: Tokenizer, config: LlamaConfig, args: ReadOptions
) -> tuple[TokenizedComparisons, dict[str, Any]]:
    options: dict[str, Any] = {name: getattr(args, name) for name in names_of(RowOptions, ReadingOptions)}
    if args.streaming and args.max_steps:
        options["limit"] = -int(-args.max_steps * args.batch_size * share // 1)  # rounded up

    def read(path: str) -> tuple[TokenizedComparisons, dict[str, Any]]:
        where = {"config_name": source.config_name, "revision": source.revision, "streaming": args.streaming}
        rename = parse_rename(args.rename)
        rows = load_comparisons(path, split=split, lines=True, invalid=args.invalid, rename=rename, **where)
        if args.streaming and args.shuffle:
            rows = rows.shuffle(seed=args.seed, buffer_size=_SHUFFLE_BUFFER)  # pyright: ignore[reportCallIssue]
        return tokenize_comparisons(rows, tokenizer, config, source=path, **options)  # pyright: ignore[reportArgumentType]

    try:
        return read(source.path)
    except DataError:
        files = expand(source.path)
        for file in files if len(files) > 1 else ():
            read(file)  # names the one of several files that it is
        raise


def is_checkpoint(path: str | Path) -> bool:
    """True for the path of a checkpoint of a run.

    >>> is_checkpoint("run/checkpoints/500"), is_checkpoint("run/model")
    (True, False)
    """
    path = Path(path)
    return path.name.isdigit() and path.parent.name == "checkpoints"


def load(name: str, mesh: Mesh | None = None, head: HeadOptions | None = None) -> tuple[RewardModel, Tokenizer]:
    """The reward model of a directory, a hub id or a run's checkpoint, on a mesh where one is given; its tokenizer."""
    head = head or HeadOptions()
    if is_checkpoint(name):
        if head.head or head.label_weights:
            raise ConfigError(f"{name}: a checkpoint has one reward head; leave out --head and --label-weights")
        return _load_checkpoint(Path(name), mesh)
    source = parse_source(name)
    tokenizer = load_tokenizer(source.path, revision=source.revision)  # first, for weights may take minutes
    files = open_reward_model(source.path, head=head.head, revision=source.revision)
    check_labels(name, files, head)
    return match_tokenizer(files.load(label_weights=head.label_weights, mesh=mesh), tokenizer)


def check_labels(name: str, files: ModelFiles, head: HeadOptions) -> None:
    """Refuses a head of several labels, unless they are weighed."""
    if not head.label_weights:
        check_one_label(files.labels, f"{name}: the head")


def _load_checkpoint(path: Path, mesh: Mesh | None) -> tuple[RewardModel, Tokenizer]:
    """The model of a run after an update, as `run.json` describes it; the optimizer's state is not read."""
    record = read_json(path.parent.parent / "run.json")
    args, head = record["arguments"], record["model"].get("head")  # older runs do not say
    source, today = parse_source(args["model"]), args["chat_template_date"]
    tokenizer = _read_tokenizer(source, args["chat_template"], date.fromisoformat(today) if today else None)
    config, tokenizer = match_config(load_config(source.path, revision=source.revision), tokenizer)
    part = Training(**record.get("part", {}))
    init = partial(init_reward_model, config, dtype=jnp.dtype(args["parameters"]))
    whole = jax.eval_shape(lambda key: init(key=key), jax.random.key(0))
    whole = replace(whole, **abstract_head(head)) if head else whole
    like, frozen = jax.eval_shape(lambda model, key: split_model(model, part, key=key), whole, jax.random.key(0))
    if not part.whole:
        dtype = jnp.dtype(args["parameters"])
        files = open_reward_model(source.path, dtype=dtype, head=args.get("head"), revision=source.revision)
        check_same_weights(path.parent.parent, files.fingerprint())
        base = files.load(key=jax.random.key(0), label_weights=args.get("label_weights", ()), mesh=mesh)
        like, frozen = split_model(replace(base, config=config), part, key=jax.random.key(0))
    with Checkpoints(path.parent, read_only=True) as checkpoints:
        trained = checkpoints.restore_model(int(path.name), like, mesh=mesh)
    return merge_lora(eqx.combine(trained, frozen)), tokenizer


def plan_updates(
    comparisons: TokenizedComparisons, args: ReadOptions, *, rows: int = 1, micro_batch_tokens: int = LEAST_TOKENS
) -> BatchPlan:
    """The plan of the run's batches, in micro-batches of `rows`."""
    if args.drop_last and len(comparisons) < args.batch_size:
        found = f"{len(comparisons)} comparisons, --batch-size {args.batch_size}"
        raise ConfigError(f"--drop-last leaves no update: {found}")
    options: dict[str, Any] = {"seed": args.seed, "shuffle": args.shuffle, "drop_last": args.drop_last, "rows": rows}
    return plan_batches(comparisons, args.batch_size, micro_batch_tokens=micro_batch_tokens, **options)


def describe_plan(plan: BatchPlan) -> str:
    """The row shapes and how full they are, over at most a thousand updates."""
    shapes = ", ".join(f"{shape.rows} × {'+'.join(map(str, shape.regions))}" for shape in plan.shapes)
    fill = plan.fill(range(min(plan.steps_per_epoch, 1000)))
    return f"packing:\n  {'row shapes':<17} {shapes}\n  {'filled':<17} {fill:.1%} of the computed positions"
