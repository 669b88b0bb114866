"""`python -m rm data`: what training would read, without training."""

import dataclasses
from itertools import pairwise
from typing import ClassVar

from ..data.comparisons import TokenizedComparisons
from ..data.sources import parse_source
from ..data.table import describe_table
from ..model.loading import load_config
from ..text.pad_token import match_config
from ..text.tokenizer import Tokenizer
from .options import ReadOptions
from .read import describe_plan, plan_updates, read_comparisons, read_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(ReadOptions):
    """Show what training would read: what is kept and dropped, how it is packed, and rows as the model sees them."""

    common: ClassVar = (
        "model",
        "dataset",
        "split",
        "rename",
        "chat_template",
        "max_length",
        "truncation",
        "invalid",
        "batch_size",
        "show",
    )

    show: int = 3
    """Comparisons to show as the model sees them."""


def data(args: DataArguments) -> None:
    """Prints the table, the packing and a few comparisons; needs no weights."""
    model = parse_source(args.model)
    config = load_config(model.path, revision=model.revision)
    config, tokenizer = match_config(config, read_tokenizer(args))
    comparisons, tables = read_comparisons(args.dataset, args.split, tokenizer, config, args)
    for table in tables.values():
        print(describe_table(table["source"], table))
    print(describe_plan(plan_updates(comparisons, args)))
    for number in range(min(args.show, len(comparisons))):
        print(show_comparison(comparisons, number, tokenizer))


def show_comparison(comparisons: TokenizedComparisons, number: int, tokenizer: Tokenizer) -> str:
    """A comparison as the model sees it: the prefix once, what each response adds, and where its reward is read."""
    bounds = comparisons.offsets[number]
    prefix, *own = (comparisons.tokens[start:stop] for start, stop in pairwise(bounds))
    labels = ["chosen", "rejected"] if len(own) == 2 else [f"response {k + 1}" for k in range(len(own))]
    lines = [f"comparison {number}, margin {comparisons.margin[number]:g}", f"  prefix, {len(prefix)} tokens"]
    lines.append(_indent(tokenizer.decode(prefix)))
    for label, ids, end in zip(labels, own, comparisons.ends[number], strict=True):
        read = max(0, end - len(prefix) + 1)  # own tokens up to the one that is read; none where that is in the prefix
        text = f"{tokenizer.decode(ids[:read])}⟨reward⟩{tokenizer.decode(ids[read:])}"
        lines += [f"  {label}, {len(ids)} tokens of its own", _indent(text)]
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join(f"    │ {line}" for line in text.split("\n"))
