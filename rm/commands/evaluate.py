"""`python -m rm evaluate`: how far one reward model, or each of several, can be trusted on preference data."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..data.encode import Invalid
from ..data.render import Row
from ..data.sources import load_comparisons, parse_rename, parse_source
from ..data.table import describe_table
from ..errors import ConfigError, DataError, OutputError
from ..evaluation.prompts import prompts_of
from ..evaluation.report import render_report
from ..evaluation.scores import in_order_of_rows, kwise_of, pairs_of
from ..evaluation.sections import load_sections
from ..evaluation.statistics import best_of_n, paired_test
from ..evaluation.summary import summarize
from ..files.checksum import checksums
from ..files.hub import read_json
from ..files.output import check_writable, locked, replace_file
from ..files.row_files import LINE, UNREADABLE, read_lines, write_lines
from ..model.loading import load_config
from ..text.tokenizer import Tokenizer
from .options import ForwardOptions, HeadOptions, PrecisionOptions, check_positive, names_of, on_this_device
from .read import is_checkpoint, load
from .rows import Describe, as_ranked, describe_rows, rewardbench_rows, score_rows, tokenize_by_size
from .run_directory import check_same_arguments, versions, write_record
from .show import show_evaluation

if TYPE_CHECKING:
    from datasets import Dataset

Sections = Mapping[str, Mapping[str, int | float]]

_ANY_LENGTH = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredOptions(HeadOptions, PrecisionOptions):
    """The options that decide the scores of a model."""

    dataset: str
    """Preferences: a file, pattern, saved directory or hub id (org/name[:config][@revision]); pairs, or K-wise rows."""
    split: str = "train"
    """Split of --dataset; slices such as train[:5%] work, and a file is one split, train."""
    rename: tuple[str, ...] = ()
    """Columns to read under other names, such as chosen=response_j rejected=response_k prompt=question."""
    by: str | None = None
    """Column that names the subset of a row."""
    batch_size: int = 16
    """Comparisons of one forward."""
    max_length: int | None = None
    """Leave out comparisons with a longer side (tokens), and say how many; by default none is."""
    invalid: Invalid = "raise"
    """Treatment of a malformed row: it ends the evaluation, or it is left out and counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments(ForwardOptions, ScoredOptions):
    """Evaluate one reward model, or compare several, on preference data: statistics, every score, and a page."""

    common: ClassVar = (
        "model",
        "dataset",
        "output",
        "split",
        "rename",
        "by",
        "sections",
        "batch_size",
        "max_length",
        "dtype",
        "mesh",
        "resume",
    )

    model: tuple[str, ...]
    """Exported reward models (RUN/model), any sequence classifier of one label, hub ids, or RUN/checkpoints/STEP."""
    output: Path
    """Directory for evaluation.json, report.html and scores.jsonl."""
    sections: str | None = None
    """Sections, weighted means of subsets: rewardbench, or a JSON file {"SECTION": {"SUBSET": WEIGHT}}."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on after the rows that an earlier, interrupted evaluation has scored."""

    def __post_init__(self):
        check_positive(self, "batch_size", "max_length")
        parse_rename(self.rename)
        if not self.model:
            raise ConfigError("--model needs at least one reward model")
        if self.sections is not None and self.by is None:
            raise ConfigError("--sections needs --by, the column that names the subset of a row")


def evaluate_command(args: EvaluateArguments) -> None:
    """Scores every row with every model, then computes statistics of what lies in scores.jsonl."""
    args = on_this_device(args)
    known = check_free(args)
    sections = load_sections(args.sections) if args.sections else None
    for source in map(parse_source, args.model):  # a wrong name shows before an hour of scoring
        if not is_checkpoint(source.path):
            load_config(source.path, revision=source.revision)
    source = parse_source(args.dataset)
    where: Any = {"split": args.split, "config_name": source.config_name, "revision": source.revision}
    where["rename"] = parse_rename(args.rename)
    rows = as_ranked(load_comparisons(source.path, lines=True, invalid=args.invalid, **where))
    subsets = read_subsets(rows, args.by, source.path)
    check_sections(args, sections, subsets)
    names = model_names(args.model)
    with locked(args.output):
        tables = {
            name: score_with(args, name, text, rows, describe_rows(rows, subsets), known)
            for name, text in zip(names, args.model, strict=True)
        }
        lines = read_lines(args.output / "scores.jsonl")
        by_name = {name: [line for line in lines if line["model"] == name] for name in names}
        evaluation = {
            "dataset": args.dataset,
            "split": args.split,
            "by": args.by,
            "dtype": args.dtype,
            "read": len(rows),
            "data": tables,
            "models": {name: statistics_of(found, sections) for name, found in by_name.items()},
            "paired": [compare(by_name, *both) for both in combinations(names, 2)],
            "versions": versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        replace_file(args.output / "report.html", render_report(evaluation, lines))
        replace_file(args.output / "evaluation.json", json.dumps(evaluation, indent=2, ensure_ascii=False) + "\n")
    show_evaluation(evaluation)
    print(f"the page is {args.output / 'report.html'}, every score is in {args.output / 'scores.jsonl'}")


def score_with(
    args: EvaluateArguments, name: str, text: str, rows: "Dataset", describe: Describe, known: dict[str, Any]
) -> dict[str, Any]:
    """Has one model score the rows that it has not scored yet; the table of what was read."""
    compute = args.compute()
    model, tokenizer = load(text, compute.mesh, args)
    path = parse_source(args.dataset).path
    options: Any = {"source": path, "max_length": args.max_length or _ANY_LENGTH, "invalid": args.invalid}
    read = read_as_sections_ask(args, name, rows, tokenizer)
    parts, table = tokenize_by_size(read, tokenizer, model.config, **options)
    for size, each in table.get("by_responses", {"": table}).items():
        what = f"{name} ({path}{size and f', rows of {size} responses'})"
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in each["dropped"].items())
        print(describe_table(what, each) if each["kept"] else f"{what}: {dropped}, none left", flush=True)
    facts = {"path": text, "weights": _hash(checksums(model)), "data": " ".join(part.fingerprint for part in parts)}
    if known.setdefault(name, facts) != facts:
        raise DataError(f"{args.output}: {name} has other weights or other data than before; choose another --output")
    write_record(args.output, {"arguments": dataclasses.asdict(args), "models": known, "versions": versions()})
    scores = args.output / "scores.jsonl"
    for part, prompts in zip(parts, prompts_of(parts), strict=True):
        score_rows(scores, name, model, part, prompts, describe, batch_size=args.batch_size, compute=compute)
    if len(parts) > 1:
        write_lines(scores, in_order_of_rows(read_lines(scores)))
    return table


def read_as_sections_ask(
    args: EvaluateArguments, name: str, rows: "Dataset", tokenizer: Tokenizer
) -> "Dataset | list[Row]":
    """The rows of a benchmark as its own tool reads them; says what it does."""
    if args.sections != "rewardbench" or not {"prompt", "chosen", "rejected"} <= set(rows.column_names):
        return rows
    if tokenizer.chat_template is None:
        print(f"{name}: no chat template, without which RewardBench's own tool refuses; texts are scored as texts")
        return rows
    found = rewardbench_rows(rows, tokenizer)
    rendered = sum("prompt" not in row for row in found)
    if not rendered:
        return rows
    print(f"{name}: {rendered} rows of texts are rendered as chats, as RewardBench's own tool does (--sections)")
    return found


def check_sections(args: EvaluateArguments, sections: Sections | None, subsets: list[str] | None) -> None:
    """Refuses sections of which the data have no subset."""
    named = {subset for weights in (sections or {}).values() for subset in weights}
    if sections and not named & set(subsets or ()):
        found = ", ".join(sorted(set(subsets or ()))[:5])
        raise ConfigError(f"--sections {args.sections}: no subset of it is in column {args.by!r}, which has {found}")


def check_free(args: EvaluateArguments) -> dict[str, Any]:
    """Refuses an output directory that holds something already, unless it is to go on; the models scored there."""
    check_writable(args.output)
    if args.output.is_file():
        raise OutputError(f"{args.output}: is a file; choose a directory")
    if args.resume == "auto":
        check_same_arguments(args.output, {name: getattr(args, name) for name in names_of(ScoredOptions)})
        path = args.output / "run.json"
        return read_json(path).get("models", {}) if path.is_file() else {}
    if any((args.output / name).exists() for name in ("run.json", "scores.jsonl", "evaluation.json")):
        raise OutputError(
            f"{args.output}: holds something already; choose another --output or go on with --resume auto"
        )
    return {}


def _hash(found: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def model_names(models: Sequence[str]) -> list[str]:
    """Unique names of the models for tables: the last telling part of each path (`RUN 500` for a checkpoint)."""
    names: list[str] = []
    for text in models:
        parts = [part for part in Path(text).parts if part not in ("/", "model", "..", ".")] or [text]
        name = f"{parts[-3]} {parts[-1]}" if is_checkpoint(text) and len(parts) > 2 else parts[-1]
        same = sum(found == name or found.startswith(f"{name} (") for found in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def read_subsets(rows: "Dataset", by: str | None, source: str) -> list[str] | None:
    """The subset of every row, from the column `by`."""
    if by is None:
        return None
    if by not in rows.column_names:
        found = ", ".join(name for name in rows.column_names if name not in (LINE, UNREADABLE))
        raise DataError(f"{source}: no column {by!r} for --by; found {found}")
    return ["" if value is None else str(value) for value in rows[by]]


def statistics_of(lines: Sequence[dict[str, Any]], sections: Sections | None) -> dict[str, Any]:
    """The statistics of one model's lines."""
    pairs = pairs_of(lines)
    found = summarize(*pairs[:4], prompts=pairs.prompts, subsets=pairs.subsets, sections=sections)
    for subset, each in found.get("subsets", {}).items():
        each |= best_of_sizes([line for line in lines if line["subset"] == subset])
    return found | best_of_sizes(lines)


def best_of_sizes(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`best_of_n` of K-wise rows, by their number of responses; nothing where all are pairs."""
    found = {
        str(size): {"rows": len(rewards), **best_of_n(rewards, scores)}
        for size, (rewards, scores) in kwise_of(lines).items()
    }
    return {"best_of_n": found} if found else {}


def compare(by_name: Mapping[str, Sequence[dict[str, Any]]], first: str, second: str) -> dict[str, Any]:
    """The paired test of two models on the rows that both have scored."""
    scored = [{line["row"] for line in by_name[name]} for name in (first, second)]
    one, other = (
        pairs_of([line for line in by_name[name] if line["row"] in scored[0] & scored[1]]) for name in (first, second)
    )
    found = paired_test(one.chosen > one.rejected, other.chosen > other.rejected, one.prompts)
    return {"first": first, "second": second, **found}
