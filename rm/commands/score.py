"""`python -m rm score`: rewards for the rows of a file."""

import dataclasses
from collections import Counter
from pathlib import Path

from ..data.sources import parse_source
from ..errors import DataError, OutputError
from ..evaluation.scoring import encode_inputs, score_sequences
from ..files.output import check_file
from ..files.row_files import checked_rows, write_lines
from ..saving.calibration import normalize, require_calibration
from .options import ForwardOptions, check_positive
from .read import load


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreArguments(ForwardOptions):
    """Add a reward to every row of a JSON-lines file."""

    model: str
    """Reward model: a directory that train exported (RUN/model), any LlamaForSequenceClassification, a hub id, or
    RUN/checkpoints/STEP."""
    input: Path
    """JSON lines (.jsonl, also .gz) with text (tokenized as given), prompt and response, or messages."""
    output: Path
    """The same rows in the same order, each with its reward."""
    batch_size: int = 16
    """Sequences of one forward."""
    max_length: int | None = None
    """Cut sequences off after this many tokens, and say how many were; by default none is."""
    normalize: bool = False
    """Give (reward - mean) / std, with the mean and the spread over held-out data that training has recorded."""

    def __post_init__(self):
        check_positive(self, "batch_size", "max_length")


def score(args: ScoreArguments) -> None:
    """Reads every row before the model, and writes the output as a whole."""
    if args.output.exists():
        raise OutputError(f"{args.output}: exists already; choose another --output or remove it")
    check_file(args.output)
    numbered = list(checked_rows(args.input)) if args.input.exists() else []
    if not numbered:
        raise DataError(
            f"{args.input}: {'the file is empty' if args.input.exists() else 'no such file'}; expected rows"
        )
    places, rows = zip(*numbered, strict=True)
    for place, row in numbered:
        if "reward" in row:
            raise DataError(f"{args.input}: {place}: has a field 'reward' already; rename it")
    source = parse_source(args.model)
    calibration = require_calibration(source.path, revision=source.revision) if args.normalize else None
    compute = args.compute()
    model, tokenizer = load(args.model, compute.mesh)
    names = [f"{args.input}: {place}" for place in places]
    counts: Counter[str] = Counter()
    sequences = encode_inputs(rows, tokenizer, model.config, names=names, counts=counts)
    rewards = score_sequences(model, sequences, compute=compute, batch_size=args.batch_size, max_length=args.max_length)
    rewards = normalize(rewards, calibration) if calibration else rewards
    scored = ({**row, "reward": float(reward)} for row, reward in zip(rows, rewards, strict=True))
    write_lines(args.output, scored)
    cut = sum(args.max_length is not None and len(ids) > args.max_length for ids in sequences)
    told = [f", {cut} of them cut off at {args.max_length} tokens"] if cut else []
    if twice := counts["double_bos_removed"]:
        told.append(f", a second beginning-of-sequence token removed from {twice}")
    print(f"{len(rows)} rows scored" + "".join(told))
