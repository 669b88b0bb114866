"""What `python -m rm train` needs before its first update, read and checked while nothing is written yet."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..data.comparisons import TokenizedComparisons
from ..data.sources import parse_source
from ..devices.mesh import make_mesh, parse_mesh, row_shards
from ..devices.processes import leads
from ..errors import ConfigError
from ..evaluation.scoring import METRICS
from ..files.hub import check_push
from ..files.output import locked
from ..model.attention_choice import Inputs, choose_attention
from ..model.config import LlamaConfig
from ..model.loading import load_config, load_reward_model
from ..model.reward_model import RewardModel
from ..packing.batches import BatchPlan
from ..text.pad_token import match_config, match_tokenizer
from ..text.tokenizer import Tokenizer
from .arguments import TrainArguments
from .flags import flag
from .progress import print_once, warn
from .read import plan_updates, read_comparisons, read_tokenizer
from .run import check_output, check_same_arguments, check_same_data, dataset_name, versions
from .trackers import PACKAGES, check_installed


class Prepared(NamedTuple):
    """What a run needs, read and checked."""

    model: RewardModel
    tokenizer: Tokenizer
    comparisons: TokenizedComparisons
    held_out: dict[str, TokenizedComparisons]
    tables: dict[str, dict[str, Any]]
    plan: BatchPlan
    mesh: Mesh | None

    @property
    def hashes(self) -> list[str]:
        """Of all comparisons, to know them again by."""
        return _hashes(self.comparisons, self.held_out)


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
    comparisons, held_out, tables = _read_data(args, tokenizer, model.config)
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
    prepared = Prepared(model, tokenizer, comparisons, held_out, tables, plan, mesh)
    if args.resume != "never":
        check_same_data(args.output, prepared.hashes)
    return prepared


def check_finished(args: TrainArguments) -> None:
    """Refuses a finished run where the arguments or the data now are not those that made it, as a resumed one would be.

    **Raises:** `RmError`.
    """
    check_same_arguments(args.output, dataclasses.asdict(args))
    source = parse_source(args.model)
    config, tokenizer = match_config(load_config(source.path, revision=source.revision), read_tokenizer(args))
    comparisons, held_out, _ = _read_data(args, tokenizer, config)
    check_same_data(args.output, _hashes(comparisons, held_out))


def _read_data(
    args: TrainArguments, tokenizer: Tokenizer, config: LlamaConfig
) -> tuple[TokenizedComparisons, dict[str, TokenizedComparisons], dict[str, dict[str, Any]]]:
    """The comparisons to train on, those to evaluate on by name, and the tables of all."""
    comparisons, read = read_comparisons(args.dataset, args.split, tokenizer, config, args)
    tables = {"train" if len(read) == 1 else f"train_{name}": table for name, table in read.items()}
    held_out: dict[str, TokenizedComparisons] = {}
    for dataset, split in _evaluation_sets(args):
        name = dataset_name(parse_source(dataset).path, list(held_out))
        whole = dataclasses.replace(args, streaming=False)
        held_out[name], read = read_comparisons([dataset], split, tokenizer, config, whole)
        tables |= {f"eval_{name}": table for table in read.values()}
    return comparisons, held_out, tables


def _hashes(comparisons: TokenizedComparisons, held_out: Mapping[str, TokenizedComparisons]) -> list[str]:
    return [each.fingerprint for each in (comparisons, *held_out.values())]


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


def facts(args: TrainArguments, prepared: Prepared) -> dict[str, Any]:
    """In what all processes of a run must agree."""
    own = ("process_id", "num_proc", "cache")
    arguments = {flag(n): v for n, v in dataclasses.asdict(args).items() if n not in own}
    packages = {f"{name} version": value for name, value in versions().items() if name != "device"}
    return {**arguments, **packages, "data (a hash)": prepared.hashes}


def _evaluation_sets(args: TrainArguments) -> list[tuple[str, str]]:
    """Data set and split of everything to evaluate on."""
    if not args.eval_dataset and not args.eval_split:
        return []
    return [(dataset, args.eval_split or "train") for dataset in args.eval_dataset or args.dataset]
