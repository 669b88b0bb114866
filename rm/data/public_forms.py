"""The forms of public preference data, each brought to a prompt with responses and scores (or ranks)."""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .questions import SPEAKERS, asked, question
from .render import Row, RowError, as_messages, shorten


class Form(NamedTuple):
    """A form, recognised by its columns."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], dict[str, Any]]
    beside: tuple[str, ...] = ()  # columns that are read where they are there
    holds: Callable[[Row], bool] = lambda row: True  # whether a row with these columns is of this form


RATED = ("prompt", "response", "helpfulness")  # the columns of rows that have one response, and its rating


def find_form(row: Row) -> Form | None:
    """The form of a row, if it is one of these."""
    return next((form for form in FORMS if row.keys() >= set(form.columns) and form.holds(row)), None)


def columns_of_forms(names: Iterable[str]) -> set[str]:
    """The columns that the forms read, of those forms that a data set with such columns may have.

    >>> sorted(columns_of_forms(["info", "summaries", "choice", "worker"]))
    ['choice', 'info', 'summaries']
    """
    names = set(names)
    return {name for form in FORMS if names >= set(form.columns) for name in (*form.columns, *form.beside)} & names


def _two(prompt: Any, first: Any, second: Any, difference: float) -> dict[str, Any]:
    """Two responses, of which the first is better by `difference`."""
    return {"prompt": prompt, "responses": [first, second], "scores": [max(difference, 0.0), max(-difference, 0.0)]}


def _one_of(row: Row, field: str, values: dict[Any, float]) -> float:
    """The difference that a value stands for."""
    if not isinstance(row[field], str | int | float) or row[field] not in values:
        expected = ", ".join(map(repr, values))
        raise RowError(f"field {field!r}: expected one of {expected}, found {shorten(row[field])}")
    return values[row[field]]


def _number(row: Row, field: str) -> float:
    if isinstance(row[field], bool) or not isinstance(row[field], int | float):
        raise RowError(f"field {field!r}: expected a number, found {shorten(row[field])}")
    return float(row[field])


def _items(row: Row, field: str, *names: str) -> list[list[Any]]:
    """The values of some fields of each of the objects in a list."""
    items = row[field]
    if not isinstance(items, list) or not all(isinstance(item, dict) and item.keys() >= set(names) for item in items):
        raise RowError(f"field {field!r}: expected objects with {' and '.join(names)}, found {shorten(items)}")
    return [[item[name] for item in items] for name in names]


def _part(row: Row, field: str, *names: str) -> Any:
    """The first of some fields that an object has."""
    found = row[field] if isinstance(row[field], dict) else {}
    value = next((found[name] for name in names if found.get(name)), None)
    if value is None:
        raise RowError(f"field {field!r}: expected an object with {' or '.join(names)}, found {shorten(row[field])}")
    return value


def _votes(row: Row) -> dict[str, Any]:
    """Two conversations by turns, as JSON texts of lists."""

    def turns(field: str) -> list[Any]:
        try:
            found = json.loads(row[field]) if isinstance(row[field], str) else row[field]
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, list) or not found:
            raise RowError(f"field {field!r}: expected a list of turns, or its JSON text, found {shorten(row[field])}")
        return found

    questions = turns("prompt")

    def conversation(field: str) -> list[dict[str, Any]]:
        both = zip(questions, turns(field), strict=False)
        return [
            {"role": role, "content": text or ""} for pair in both for role, text in zip(SPEAKERS, pair, strict=True)
        ]

    difference = _number(row, "winner_model_a") - _number(row, "winner_model_b")
    return _both(conversation("response_a"), conversation("response_b"), difference)


def _both(first: Any, second: Any, difference: float) -> dict[str, Any]:
    """Two whole conversations, of which the first is better by `difference`."""
    return {key: value for key, value in _two(None, first, second, difference).items() if key != "prompt"}


_WINNERS = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0, "both_bad": 0.0, "tie (bothbad)": 0.0}


def _with_input(row: Row) -> dict[str, Any]:
    tools = row["input"].get("tools") if isinstance(row["input"], dict) else None
    pair = _two(_part(row, "input", "messages"), row["preferred_output"], row["non_preferred_output"], 1.0)
    return pair | ({"tools": tools} if tools else {})


def _rated(row: Row) -> dict[str, Any]:
    """The responses to one prompt, of rows that were joined, with their ratings."""
    both = (row["response"], row["helpfulness"])
    responses, scores = both if isinstance(both[0], list) else ([value] for value in both)
    scores = [_number({"helpfulness": score}, "helpfulness") for score in scores]
    return {"prompt": asked(row["prompt"]), "responses": responses, "scores": scores}


def _with_rejected(row: Row) -> dict[str, Any]:
    messages = as_messages(row["messages"])
    if not messages or messages[-1].get("role") != "assistant":
        raise RowError(
            f"field 'messages': expected a chat that ends in the chosen answer, found {shorten(row['messages'])}"
        )
    return _two(messages[:-1], messages[-1:], row["rejected_response"], 1.0)


def _best_first(row: Row) -> dict[str, Any]:
    ranks = list(range(1, len(row["output"]) + 1))
    return {"prompt": question(row, "instruction", "input"), "responses": row["output"], "ranks": ranks}


def _choices(row: Row) -> dict[str, Any]:
    (texts,) = _items(row, "summaries", "text")
    if len(texts) != 2:
        raise RowError(f"field 'summaries': expected two, found {len(texts)}")
    first, second = texts
    return _two(asked(_to_summarize(row)), first, second, _one_of(row, "choice", {0: 1.0, 1: -1.0}))


def _to_summarize(row: Row) -> str:
    """A post as the paper's prompts have it (Stiennon et al. 2020), or an article with its title."""
    text, info = _part(row, "info", "post", "article"), row["info"]
    lines = [f"SUBREDDIT: r/{info['subreddit']}"] if info.get("subreddit") else []
    lines += [f"TITLE: {info['title']}"] if info.get("title") else []
    return "\n\n".join([*lines, f"POST: {text}" if info.get("post") else text, "TL;DR:"])


def _lists(row: Row) -> dict[str, Any]:
    scores = [1.0] * len(row["chosen"]) + [0.0] * len(row["rejected"])
    return {"prompt": asked(row["prompt"]), "responses": [*row["chosen"], *row["rejected"]], "scores": scores}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _scored(
    prompt: str, field: str, response: str, score: str, name: str = "scores"
) -> Callable[[Row], dict[str, Any]]:
    """Responses with scores or ranks, in a list of objects."""

    def read(row: Row) -> dict[str, Any]:
        responses, values = _items(row, field, response, score)
        return {"prompt": asked(row[prompt]), "responses": responses, name: values}

    return read


FORMS = (
    Form("OpenAI preferences", ("input", "preferred_output", "non_preferred_output"), _with_input),
    Form(
        "Chatbot Arena, votes",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        _votes,
        ("winner_tie",),
    ),
    Form(
        "Chatbot Arena, conversations",
        ("conversation_a", "conversation_b", "winner"),
        lambda row: _both(row["conversation_a"], row["conversation_b"], _one_of(row, "winner", _WINNERS)),
    ),
    Form(
        "PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        lambda row: _two(
            asked(row["prompt"]),
            row["response_0"],
            row["response_1"],
            _one_of(row, "better_response_id", {0: 1.0, 1: -1.0}),
        ),
    ),
    Form(
        "HelpSteer3",
        ("context", "response1", "response2", "overall_preference"),
        lambda row: _two(row["context"], row["response1"], row["response2"], -_number(row, "overall_preference")),
    ),
    Form(
        "HelpSteer2, preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        lambda row: _two(
            asked(row["prompt"]), row["response_1"], row["response_2"], -_number(row, "preference_strength")
        ),
    ),
    Form(
        "HelpSteer, ratings",
        RATED,
        _rated,
        (),
        lambda row: row.keys().isdisjoint(("chosen", "rejected", "responses")),
    ),
    Form("Nectar", ("prompt", "answers"), _scored("prompt", "answers", "answer", "rank", "ranks")),
    Form(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        lambda row: _two(
            asked(row["history"]), row["human_ref_A"], row["human_ref_B"], _one_of(row, "labels", {1: 1.0, 0: -1.0})
        ),
    ),
    Form(
        "UltraFeedback",
        ("instruction", "completions"),
        _scored("instruction", "completions", "response", "overall_score"),
    ),
    Form("NeMo-RL", ("context", "completions"), _scored("context", "completions", "completion", "rank", "ranks")),
    Form("summarize_from_feedback", ("info", "summaries", "choice"), _choices),
    Form(
        "WebGPT comparisons",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        lambda row: _two(
            asked(_part(row, "question", "full_text")),
            row["answer_0"],
            row["answer_1"],
            _number(row, "score_0") - _number(row, "score_1"),
        ),
    ),
    Form("ms-swift", ("messages", "rejected_response"), _with_rejected),
    Form(
        "ms-swift, conversations",
        ("messages", "rejected_messages"),
        lambda row: _both(row["messages"], row["rejected_messages"], 1.0),
    ),
    Form(
        "ms-swift, query",
        ("query", "response", "rejected_response"),
        lambda row: _two(question(row, "query"), row["response"], row["rejected_response"], 1.0),
        ("history",),
    ),
    Form(
        "argilla (Axolotl)",
        ("instruction", "chosen_response", "rejected_response"),
        lambda row: _two(question(row, "instruction"), row["chosen_response"], row["rejected_response"], 1.0),
    ),
    *(
        Form(
            name,
            (column, "output_1", "output_2", "label"),
            lambda row, column=column: _two(
                question(row, column), row["output_1"], row["output_2"], _one_of(row, "label", {1: 1.0, 2: -1.0})
            ),
        )
        for name, column in (("LLMBar", "input"), ("OffsetBias", "instruction"))
    ),
    Form(
        "LLaMA-Factory, ranked",
        ("instruction", "output"),
        _best_first,
        ("input", "history"),
        lambda row: _texts(row["output"]) and "chosen" not in row,
    ),
    Form(
        "RewardBench 2",
        ("prompt", "chosen", "rejected"),
        _lists,
        (),
        lambda row: _texts(row["chosen"]) and _texts(row["rejected"]),
    ),
)
