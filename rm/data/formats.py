"""The formats of preference data: a row's format is recognised by its columns, and the row becomes an `Example`."""

import dataclasses
import itertools
from collections.abc import Sequence, Set
from typing import Any

from ..files.row_files import LINE, UNREADABLE
from ..text.tokenizer import Tokenizer
from .public_forms import columns_of_forms, find_form
from .questions import question
from .render import NoPair, Row, RowError, as_messages, is_sharegpt, render_response, shorten

# token ids of chosen and rejected, and their attention masks: TRL's columns, now and before, and EasyDeL's
_IDS = (
    ("chosen_ids", "rejected_ids", "", ""),
    ("chosen_input_ids", "rejected_input_ids", "chosen_attention_mask", "rejected_attention_mask"),
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
)
# Columns of the user's question in rows without `prompt`: its first part, its second part, the name of the format.
_QUESTIONS = (
    ("instruction", "input", "instruction (LLaMA-Factory)"),
    ("question", "", "question (orca pairs)"),
    ("input", "", "input (Axolotl)"),
)
# Columns of a whole chat before the answers, in rows without `prompt`, and the names of their formats.
_CHATS = {"messages": "messages (Axolotl)", "trajectory": "trajectory (UltraInteract)"}
# Columns that hold the prompt in other formats; refused unless a format above reads them.
_PROMPTS = ("query", "context", *_CHATS, "history", "inputs", "question", "instruction", "input", "system")
COLUMNS = {"prompt", "conversations", "chosen", "rejected", "responses", "scores", "ranks", "margin", "score_chosen"}
COLUMNS |= {"score_rejected", "tools", "chat_template_kwargs", *itertools.chain(*_IDS)} - {""}
COLUMNS |= {LINE, UNREADABLE}
_BESIDE_A_PROMPT = COLUMNS | {"system"}
_BESIDE_A_FORM = ("system", "tools", "chat_template_kwargs", LINE, UNREADABLE)
COLUMNS |= set(_PROMPTS)
NULLABLE = ("chosen", "rejected", "system")  # a null in these says something about the row
_SIDES = ({"chosen", "rejected"}, {"responses"}, *(set(names[:2]) for names in _IDS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """A row's responses in order of preference."""

    order: tuple[int, ...]
    margin: float = 0.0
    difference: float | None = None  # of the scores, if they are used
    tied: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A row of any format as sequences (prompt and response) and their rankings."""

    format: str
    kind: str  # text, chat (rendered) or ids
    sequences: list[Any]  # texts, or lists of token ids
    empty: list[bool]  # the responses without content
    responses: list[Any]  # as they stand in the row
    prompt_apart: bool = True
    rankings: list[Ranking]


def parse_row(row: Row, tokenizer: Tokenizer, *, expand_pairs: bool = True, use_scores: bool = False) -> Example:
    """Parses a row of any format; texts get an end-of-sequence token, chats are rendered by the template.

    **Arguments:** `expand_pairs`, whether a K-wise row gives every pair of its responses or one ranking of all;
    `use_scores`, whether the difference of `score_chosen` and `score_rejected` is needed.
    """
    if isinstance(row.get(UNREADABLE), str):
        raise RowError(row[UNREADABLE])
    row = {name: _as_list(value) for name, value in row.items() if value is not None or name in NULLABLE}
    row, public = _from_public(row)
    row, format_name = (row, public) if public else _with_prompt(row)
    ids = next((names for names in _IDS if names[0] in row or names[1] in row), None)
    if ids:
        _require(row, ids[:2])
        sequences = [_token_ids(row, ids[k], ids[k + 2]) for k in (0, 1)]
        return Example(
            format="token ids",
            kind="ids",
            sequences=sequences,
            empty=[False, False],
            responses=[row[ids[0]], row[ids[1]]],
            rankings=[_pair(row, use_scores)],
        )
    if "responses" in row:
        responses, rankings = _ranked(row, expand_pairs)
        fields = [f"responses[{number}]" for number in range(len(responses))]
    else:
        _require(row, ("chosen", "rejected"))
        responses, rankings = [row["chosen"], row["rejected"]], [_pair(row, use_scores)]
        fields = ["chosen", "rejected"]
    rendered = [render_response(row, *named, tokenizer) for named in zip(responses, fields, strict=True)]
    kinds = {kind for _, kind, _ in rendered}
    if len(kinds) > 1:
        raise RowError(f"{fields[0]} and {fields[1]} must both be texts or both be messages")
    (kind,) = kinds
    return Example(
        format=format_name or _format_name(row, responses, kind),
        kind=kind,
        sequences=[text for text, _, _ in rendered],
        empty=[empty for _, _, empty in rendered],
        responses=responses,
        prompt_apart="prompt" in row or "conversations" in row,
        rankings=rankings,
    )


def _from_public(row: Row) -> tuple[Row, str | None]:
    """A row of a public form with `prompt`, `responses` and `scores`, and the name of the form; any other unchanged."""
    form = find_form(row)
    if form is None:
        return row, None
    kept = {name: row[name] for name in _BESIDE_A_FORM if name in row}
    return kept | form.read(row), form.name


def _names(row: Row) -> str:
    return ", ".join(name for name in row if name != LINE) or "none"


def unread(row: Row) -> list[str]:
    """The columns of a row that are not read, such as `question` beside a prompt.

    >>> unread({"prompt": "a", "chosen": "b", "rejected": "c", "question": "d", "id": "e"})
    ['question', 'id']
    """
    form = find_form({name: value for name, value in row.items() if value is not None})
    if form is not None:
        read = {*form.columns, *form.beside, *_BESIDE_A_FORM}
    else:
        read = _BESIDE_A_PROMPT if _has_prompt(row) else COLUMNS
    return [name for name, value in row.items() if name not in read and value is not None]


def _has_prompt(row: Row) -> bool:
    """True if the row has its prompt in a column, or in a chosen response that is a whole conversation."""
    if row.get("prompt") is not None or row.get("conversations") is not None:
        return True
    messages = as_messages(row.get("chosen"))
    return bool(messages) and messages[0].get("role") != "assistant"


def _with_prompt(row: Row) -> tuple[Row, str | None]:
    """The row with the columns of its question merged into `prompt`, and the name of that format, if any."""
    if _has_prompt(row) or not ("chosen" in row or "responses" in row):
        return row, None
    found = set(row) & set(_PROMPTS)
    for first, second, format_name in _QUESTIONS:
        if first in row and not found - {first, second, "system", "history"}:
            return {**row, "prompt": question(row, *filter(None, (first, second)))}, format_name
    for name, format_name in _CHATS.items():
        messages = as_messages(row.get(name))
        if messages and messages[-1].get("role") != "assistant" and not found - {name, "system"}:
            return {**row, "prompt": messages}, format_name
    prompts = [name for name in _PROMPTS if row.get(name) not in (None, "", [])]
    if prompts:
        raise RowError(
            f"column {prompts[0]!r} looks like a prompt, but belongs to no known format; found {_names(row)}; "
            f"--rename prompt={prompts[0]}, or remove it"
        )
    return row, None


def _as_list(value: Any) -> Any:
    """The messages of a conversation that `datasets` 2 or 3 saved as an object of lists; any other value unchanged."""
    if not isinstance(value, dict) or not ({"role", "from"} & value.keys()):
        return value
    lists = list(value.values())
    if not all(isinstance(items, list) and len(items) == len(lists[0]) for items in lists):
        return value
    messages = [dict(zip(value, items, strict=True)) for items in zip(*lists, strict=True)]
    return [{name: item for name, item in message.items() if item is not None} for message in messages]


def _format_name(row: Row, responses: Sequence[Any], kind: str) -> str:
    prompt = "explicit" if "prompt" in row or "conversations" in row else "implicit"
    sharegpt = any(is_sharegpt(value) for value in (*responses, row.get("prompt"), row.get("conversations")))
    kwise = "K-wise " if "responses" in row else ""
    system = ", system apart" if "system" in row else ""
    return f"{kwise}{kind}, {prompt} prompt{system}" + (" (from/value)" if sharegpt else "")


def are_enough(columns: Set[str]) -> bool:
    """True if columns of these names hold the sides of a comparison, so that none of another name may be meant.

    >>> are_enough({"prompt", "chosen", "rejected"}), are_enough({"prompt", "chosen"})
    (True, False)
    """
    return bool(columns_of_forms(columns)) or any(sides <= columns for sides in _SIDES)


def _require(row: Row, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        expected = "chosen and rejected (prompt optional), responses with scores or ranks, token ids, or a public form"
        renamed = " ".join(f"{name}=COLUMN" for name in missing)
        found = f"no column {' or '.join(map(repr, missing))}; found {_names(row)}; expected {expected}"
        raise RowError(f"{found}; other names: --rename {renamed}", "missing_column")


def _token_ids(row: Row, name: str, mask_name: str) -> list[int]:
    ids, mask = row[name], row.get(mask_name)
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise RowError(f"field {name!r}: expected a list of at least one token id, found {shorten(ids)}")
    if mask is None:
        return ids
    if not isinstance(mask, list) or len(mask) != len(ids) or not any(mask):
        raise RowError(
            f"field {mask_name!r}: expected {len(ids)} values like {name!r}, some of them 1, found {shorten(mask)}"
        )
    return [i for i, real in zip(ids, mask, strict=True) if real]


def _pair(row: Row, use_scores: bool) -> Ranking:
    difference = None
    if use_scores:
        for name in ("score_chosen", "score_rejected"):
            if name not in row:
                other = "score_chosen=COLUMN score_rejected=COLUMN"
                found = f"no column {name!r}, which the scores' difference needs; other names: --rename {other}"
                raise RowError(found, "missing_column")
        difference = _number(row["score_chosen"], "score_chosen") - _number(row["score_rejected"], "score_rejected")
    margin = _number(row["margin"], "margin") if "margin" in row else 0.0
    return Ranking(order=(0, 1), margin=margin, difference=difference)


def _ranked(row: Row, expand_pairs: bool) -> tuple[list[Any], list[Ranking]]:
    """The responses of a K-wise row and its rankings: one of all K, or one for every pair."""
    responses, name = row["responses"], "scores" if "scores" in row else "ranks"
    if name not in row:
        raise RowError("column 'responses' needs 'scores' (higher is better) or 'ranks' (1 is best)", "missing_column")
    if row.get("margin") is not None:
        raise RowError("field 'margin': expected none beside several responses; take margins from the scores")
    if not isinstance(responses, list):
        raise RowError(f"field 'responses': expected a list, found {shorten(responses)}")
    values = row[name]
    if not isinstance(values, list) or len(values) != len(responses):
        raise RowError(f"field {name!r}: expected {len(responses)} values, one per response, found {shorten(values)}")
    scores = [_number(value, name) * (1 if name == "scores" else -1) for value in values]
    if len(scores) < 2:
        raise NoPair
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    if not expand_pairs:
        return responses, [Ranking(order=tuple(order), tied=scores[order[0]] == scores[order[-1]])]
    return responses, [
        Ranking(
            order=(better, worse),
            difference=scores[better] - scores[worse] if name == "scores" else None,
            tied=scores[better] == scores[worse],
        )
        for better, worse in itertools.combinations(order, 2)
    ]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3e38:
        raise RowError(f"field {name!r}: expected a finite number in every row, found {shorten(value)}")
    return float(value)
