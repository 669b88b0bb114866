"""The table of what was read, kept and dropped of a data set; a run prints and records it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .comparisons import TokenizedComparisons
from .doubtful import contradicting, repeated
from .encode import Counts

_NOTES = {  # of comparisons that are kept, with their words
    "empty_responses": "empty responses",
    "truncated": "truncated",
    "double_bos_removed": "double bos removed",
    "begins_the_other": "where one side begins the other",
    "ends_with_user": "where a side ends with the user",
    "messages_as_text": "where messages are written as a text",
    "repeated": "repeated",
    "contradicting": "contradicting",
    "in_training": "in training",
}
_ADVICE = "if a column that is not read holds the prompt, rename it to 'prompt'"


def dropped_by_reason(counts: Counts) -> dict[str, int]:
    """The numbers of comparisons that were dropped."""
    return {reason: count for (kind, reason), count in sorted(counts.items()) if kind == "dropped" and count}


def data_table(comparisons: TokenizedComparisons, counts: Counts) -> dict[str, Any]:
    """Counts, lengths and shares, all plain numbers.

    `read` counts rows, and a K-wise row may give several comparisons: `comparisons = kept + Σ dropped`. `tokens` counts
    the prefix once for each response, `tokens_stored` once for each comparison.
    """
    lengths = comparisons.lengths
    sequences = lengths[:, :1] + lengths[:, 1:]
    dropped = dropped_by_reason(counts)
    tokens = int(comparisons.num_tokens.sum())
    return {
        "read": counts["rows", "read"],
        "comparisons": len(comparisons) + sum(dropped.values()),
        "kept": len(comparisons),
        "dropped": dropped,
        "formats": {name: count for (kind, name), count in sorted(counts.items()) if kind == "format"},
        "empty_responses": counts["kept", "empty_response"],
        "truncated": counts["kept", "truncated"],
        "double_bos_removed": counts["kept", "double_bos_removed"],
        "begins_the_other": counts["kept", "begins_the_other"],
        "ends_with_user": counts["kept", "ends_with_user"],
        "messages_as_text": counts["kept", "messages_as_text"],
        "repeated": int(repeated(comparisons).sum()),
        "contradicting": int(contradicting(comparisons).sum()),
        "columns_not_read": sorted({name for kind, name in counts if kind == "unread"}),
        "without_prompt": counts["kept", "without_prompt"],
        "fields_not_rendered": {
            name: count
            for (kind, name), count in sorted(counts.items())
            if kind == "field" and not counts["field_rendered", name]
        },
        "tokens": tokens,
        "tokens_stored": len(comparisons.tokens),
        "saved_by_shared_prefix": 1 - len(comparisons.tokens) / tokens,
        "length": _percentiles(sequences),
        "prefix_length": _percentiles(lengths[:, 0]),
        "chosen_longer": float((sequences[:, 0] > sequences[:, 1]).mean()) if sequences.shape[1] > 1 else None,
    }


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    values = np.percentile(lengths, (50, 90, 99, 100), method="higher")
    return dict(zip(("p50", "p90", "p99", "max"), map(int, values), strict=True))


def describe_table(name: str, table: Mapping[str, Any]) -> str:
    """The table as lines of text; its field `taken`, if there, is the number of comparisons in the mixture."""
    dropped = [f"{count} {reason.replace('_', ' ')}" for reason, count in table["dropped"].items()]
    notes = [f"{table[key]} {words}" for key, words in _NOTES.items() if table.get(key)]
    no_prompt = f"pairs whose sides share no prompt: {table['without_prompt']}" if table["without_prompt"] else ""
    no_prompt += f"; {_ADVICE}" if no_prompt and table["columns_not_read"] else ""
    length, prefix = (", ".join(f"{k} {v}" for k, v in table[key].items()) for key in ("length", "prefix_length"))
    ignored = table["fields_not_rendered"]
    taken = "" if table.get("taken", table["kept"]) == table["kept"] else f", {table['taken']} of them in the mixture"
    lines = [
        ("rows read", f"{table['read']} ({', '.join(f'{n} {form}' for form, n in table['formats'].items())})"),
        ("comparisons", f"{table['comparisons']}, of which {table['kept']} kept{taken}"),
        ("dropped", ", ".join(dropped) or "none"),
        ("among the kept", ", ".join(notes)),
        ("columns not read", ", ".join(table["columns_not_read"])),
        ("no prompt", no_prompt),
        ("not rendered", ", ".join(f"{name!r} of messages (rows: {n})" for name, n in ignored.items())),
        ("tokens", f"{table['tokens']}, {table['saved_by_shared_prefix']:.0%} saved by shared prefixes"),
        ("sequence length", length),
        ("prefix length", prefix),
        ("chosen is longer", "" if table["chosen_longer"] is None else f"{table['chosen_longer']:.1%}"),
    ]
    return "\n".join([f"{name}:", *(f"  {label:<17} {text}" for label, text in lines if text)])
