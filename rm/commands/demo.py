"""`python -m rm demo`: the whole way on data made here, in about two minutes on two cores."""

import dataclasses
import random
from pathlib import Path

from ..errors import OutputError
from ..files.hub import read_json
from ..files.output import check_writable
from ..files.row_files import read_lines, write_lines
from ..saving.examples import make_pair, write_llama
from .score import ScoreArguments, score
from .train import TrainArguments, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Make a small model and preference data, train on them, evaluate, export and score: nothing to download."""

    output: Path = Path("rm-demo")
    """Directory for the model, the data, the run (run/) and the scores."""


def demo(args: DemoArguments) -> None:
    """A response is right when it names a thing of the kind that the prompt asks for, whatever its length."""
    base, run = args.output / "llama", args.output / "run"
    if args.output.exists():
        raise OutputError(f"{args.output}: exists already; choose another --output or remove it")
    check_writable(args.output)
    base.mkdir(parents=True)
    rng = random.Random(0)
    pairs = [make_pair(rng) for _ in range(3000)]
    write_lines(args.output / "train.jsonl", pairs[:2500])
    write_lines(args.output / "test.jsonl", pairs[2500:])
    question = {"role": "user", "content": "Name a fruit, please."}
    answers = [{"role": "assistant", "content": text} for text in ("How about a papaya?", "How about a wrench?")]
    write_lines(args.output / "questions.jsonl", [{"messages": [question, answer]} for answer in answers])
    write_llama(base, [text["content"] for pair in pairs for messages in pair.values() for text in messages])

    train(
        TrainArguments(
            model=str(base),
            dataset=(str(args.output / "train.jsonl"),),
            eval_dataset=(str(args.output / "test.jsonl"),),
            output=run,
            learning_rate=1e-3,
            batch_size=32,
            epochs=3.0,
            warmup_ratio=0.1,
            center_rewards_coefficient=0.01,
            log_every=20,
        )
    )
    scores = args.output / "scores.jsonl"
    score(ScoreArguments(model=str(run / "model"), input=args.output / "questions.jsonl", output=scores))
    for row in read_lines(scores):
        print(f"  {row['reward']:+.2f}  {row['messages'][0]['content']} {row['messages'][1]['content']}")
    accuracy = read_json(run / "run.json")["evaluation"]["eval_test_accuracy"]
    print(f"held-out accuracy {accuracy:.3f}\n\nNext, with a Llama and preferences of your own:")
    print("  python -m rm train --model LLAMA_DIR_OR_HUB_ID --dataset PAIRS.jsonl --output RUN")
    print("  python -m rm evaluate --model RUN/model --dataset HELD_OUT.jsonl --output EVALUATION")
    print("  python -m rm score --model RUN/model --input RESPONSES.jsonl --output SCORES.jsonl")
