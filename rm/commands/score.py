"""`python -m rm score`: rewards for the rows of a file."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice, tee
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..data.comparisons import cut_off
from ..data.inputs import encode_inputs, render_input
from ..data.render import RowError
from ..data.sources import parse_source
from ..devices.platform import give_back_memory
from ..errors import DataError
from ..evaluation.scoring import score_sequences
from ..files.checksum import checksums
from ..files.partial import PartialFile, partial_file
from ..files.row_files import Row, checked_rows
from ..model.llama import RewardModel
from ..saving.calibration import Calibration, normalize, require_calibration
from ..text.tokenizer import Tokenizer
from .options import ForwardOptions, HeadOptions, check_positive, on_this_device
from .read import load

_PART = 2**17  # tokens that are scored and written together


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreArguments(HeadOptions, ForwardOptions):
    """Add a reward to every row of a JSON-lines file."""

    common: ClassVar = ("model", "input", "output", "batch_size", "max_length", "normalize", "resume", "dtype", "mesh")

    model: str
    """Reward model: a directory that train exported (RUN/model), any sequence classifier of one label, a hub id, or
    RUN/checkpoints/STEP."""
    input: Path
    """JSON lines (.jsonl, also .gz) with text (tokenized as given), prompt and response, or messages."""
    output: Path
    """The same rows in the same order, each with its reward; OUTPUT.partial until it is whole."""
    batch_size: int = 16
    """Sequences of one forward."""
    max_length: int | None = None
    """Cut sequences off after this many tokens, and say how many were; by default none is."""
    normalize: bool = False
    """Give (reward - mean) / std, with the mean and the spread over held-out data that training has recorded."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on after the rows that an earlier, interrupted run has written."""

    def __post_init__(self):
        check_positive(self, "batch_size", "max_length")


def score(args: ScoreArguments) -> None:
    """Checks every row, then scores and writes some at a time."""
    args = on_this_device(args)
    with partial_file(args.output, resume=args.resume == "auto") as file:
        total = check_rows(args.input)
        file.agree({"an input of hash": hash_file(args.input), "--dtype": args.dtype, "--max-length": args.max_length})
        source = parse_source(args.model)
        calibration = require_calibration(source.path, revision=source.revision) if args.normalize else None
        file.agree({"--normalize": str(calibration)})
        model, tokenizer = load(args.model, args.compute().mesh, args)
        file.agree({"weights": hash_of(checksums(model)), "a tokenizer": hash_of(tokenizer.files)})
        if file.notes:
            print(f"goes on after {file.notes['rows']} of {total} rows", flush=True)
        else:
            check_forms(args.input, tokenizer)
        write_rewards(args, file, total, model, tokenizer, calibration)
    counts = Counter(file.notes)
    told = [f", {counts['cut']} of them cut off at {args.max_length} tokens"] if counts["cut"] else []
    if twice := counts["double_bos_removed"]:
        told.append(f", a second beginning-of-sequence token removed from {twice}")
    print(f"{total} rows scored" + "".join(told))


def check_rows(path: Path) -> int:
    """The number of rows, each of which can be read and has no reward yet.

    **Raises:** `DataError`, naming the line.
    """
    if path.is_fifo() or path.is_char_device():
        raise DataError(f"{path}: is a pipe, and rows are read more than once; write them to a file")
    total = 0
    for place, row in checked_rows(path) if path.exists() else ():
        if "reward" in row:
            raise DataError(f"{path}: {place}: has a field 'reward' already; rename it")
        total += 1
    if not total:
        raise DataError(f"{path}: {'the file is empty' if path.exists() else 'no such file'}; expected rows")
    return total


def check_forms(path: Path, tokenizer: Tokenizer) -> None:
    """Renders every row: a row that cannot be scored shows before an hour of scoring.

    **Raises:** `DataError`, naming the line.
    """
    for place, row in checked_rows(path):
        try:
            render_input(row, tokenizer)
        except RowError as error:
            raise DataError(f"{path}: {place}: {error}") from None


def hash_file(path: Path) -> str:
    """The beginning of a hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hash_of(found: Mapping[str, str | bytes]) -> str:
    """The beginning of a hash of what has names."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def write_rewards(
    args: ScoreArguments,
    file: PartialFile,
    total: int,
    model: RewardModel,
    tokenizer: Tokenizer,
    calibration: Calibration | None,
) -> None:
    """Scores the rows that the file does not have yet, and adds them part by part."""
    counts = Counter(file.notes)
    rows, inputs, places = tee(islice(checked_rows(args.input), counts["rows"], None), 3)
    names, texts = (f"{args.input}: {place}" for place, _ in places), (row for _, row in inputs)
    encoded = encode_inputs(texts, tokenizer, model.config, names=names, counts=counts)
    part: list[tuple[Row, np.ndarray]] = []
    size = 0
    for (_, row), ids in zip(rows, encoded, strict=True):
        part.append((row, cut_off(ids, args.max_length, model.config)))
        size += len(part[-1][1])
        counts.update({"rows": 1, "cut": int(len(part[-1][1]) < len(ids))})
        more_follow = counts["rows"] < total
        if more_follow and size < _PART:
            continue
        sequences = [ids for _, ids in part]
        several = more_follow or counts["rows"] > len(part)
        options: Any = {"compute": args.compute(), "batch_size": args.batch_size, "one_of_many": several}
        rewards = score_sequences(model, sequences, **options)
        rewards = normalize(rewards, calibration) if calibration else rewards
        lines = ({**row, "reward": float(reward)} for (row, _), reward in zip(part, rewards, strict=True))
        file.append("".join(json.dumps(line) + "\n" for line in lines), counts)
        part, size = [], 0
        give_back_memory()
    if counts["rows"] != total:
        raise DataError(f"{args.input}: changed while it was read; begin again")
