"""What ends a run: the last evaluation, its record, and the export."""

import time
from typing import Any

from ..data.comparisons import TokenizedComparisons
from ..devices.processes import leads
from ..errors import RmError
from ..evaluation.scoring import METRICS, evaluate
from ..files.hub import push_reward_model
from ..model.compute import Compute
from ..model.reward_model import RewardModel
from ..saving.export import save_reward_model
from ..text.tokenizer import Tokenizer
from .arguments import TrainArguments
from .prepare import Prepared
from .progress import print_once
from .provenance import pool_rewards, provenance
from .run import write_record


def evaluate_all(
    model: RewardModel, held_out: dict[str, TokenizedComparisons], args: TrainArguments
) -> dict[str, float]:
    """`eval_NAME_METRIC` of every evaluation set."""
    options: Any = {"batch_size": args.batch_size, "compute": Compute(dtype=args.dtype)}
    options["center_rewards_coefficient"] = args.center_rewards_coefficient
    found = {name: evaluate(model, comparisons, **options) for name, comparisons in held_out.items()}
    return {f"eval_{name}_{metric}": found[name][metric] for name in found for metric in METRICS}


def finish(
    args: TrainArguments,
    prepared: Prepared,
    model: RewardModel,
    record: dict[str, Any],
    evaluation: dict[str, float],
    skipped: int,
) -> None:
    """The last evaluation, what run.json says at the end, and the export, unless most updates were skipped."""
    held_out, steps = prepared.held_out, record["steps"]
    if 2 * skipped > steps:
        raise RmError(f"{skipped} of {steps} updates were skipped, see metrics.jsonl; nothing is exported")
    if held_out and not evaluation:  # the run had ended, but not been exported
        evaluation = evaluate_all(model, held_out, args)
    record |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "evaluation": evaluation}
    if evaluation:
        record["reward"] = pool_rewards(evaluation, {name: 2 * len(each) for name, each in held_out.items()})
    write_record(args.output, record)
    export(args, model, prepared.tokenizer, record)


def export(args: TrainArguments, model: RewardModel, tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    """Writes the reward model, and gives it to the hub where it is to go there."""
    where = args.output / "model"
    save_reward_model(where, model, tokenizer, provenance=provenance(args, tokenizer, record))
    print_once(f"the reward model is in {where}", quiet=args.quiet)
    if args.push_to and leads():
        print_once(f"and at {push_reward_model(where, args.push_to)}", quiet=args.quiet)
