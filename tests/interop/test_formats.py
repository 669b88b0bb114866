"""Golden token ids: every form of a row, through TRL's own preparation of data, live."""

import copy
import dataclasses
import functools
import gzip
import itertools
import json
from collections.abc import Callable
from datetime import date, datetime
from types import SimpleNamespace

import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")
trl = pytest.importorskip("trl", reason="needs the extra `interop`: torch, transformers, trl")

import datasets

import rm
from rm.data.tokenize import tokenize_comparisons
from rm.data.tokenizer import _CLASSES

from ..conftest import shared
from ..test_tokenize import chat, sequences
from ..tiny import CONFIG
from .conftest import fast_tokenizer

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

Rows = list[dict]
DIRECTORIES = ("tokenizers/smollm2-135m-instruct", "tokenizers/minueza-32m-ultrachat", "models/stories260K")
CONFIG = dataclasses.replace(CONFIG, vocab_size=50_000)
COUNT = 200


def read(name: str) -> Rows:
    with gzip.open(shared(f"data/{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, COUNT)]


def sides(row: dict, change: Callable) -> dict:
    return row | {side: change(row[side]) for side in ("chosen", "rejected")}


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def sharegpt(messages: Rows) -> Rows:
    speakers = {"user": "human", "assistant": "gpt"}
    return [
        {"from": speakers.get(message["role"], message["role"]), "value": message["content"]} for message in messages
    ]


def roles_kept(messages: Rows) -> Rows:
    return [{"from": message["role"], "value": message["content"]} for message in messages]


def pairs_of(row: dict) -> Rows:
    ranked = sorted(zip(row["scores"], row["responses"], strict=True), key=lambda scored: -scored[0])
    return [
        {"prompt": row["prompt"], "chosen": chat("", better)[1:], "rejected": chat("", worse)[1:]}
        for (high, better), (low, worse) in itertools.combinations(ranked, 2)
        if high > low
    ]


def tools(row: dict) -> list[dict]:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": row["subset"]}}}
    return [{"type": "function", "function": {"name": "weather", "description": "é < ü", "parameters": parameters}}]


# name: the data, rm's rows, TRL's rows
FORMS: dict[str, tuple[str, Callable[[Rows], Rows], Callable[[Rows], Rows]]] = {
    "text, explicit prompt": ("humanevalpack/pairs", list, list),
    "text, implicit prompt": ("hh-rlhf/harmless-base.raw", list, list),
    "chat, explicit prompt": ("hh-rlhf/pairs", list, list),
    "chat, short arguments": ("ukp-convarg1/pairs", list, list),
    "chat, multi-turn": ("llama-factory-demo/dpo_en_demo", list, list),
    "chat, implicit prompt": (
        "hh-rlhf/pairs",
        lambda rows: [without(sides(row, lambda side, row=row: row["prompt"] + side), "prompt") for row in rows],
        list,
    ),
    "messages answered by texts": (
        "hh-rlhf/pairs",
        lambda rows: [sides(row, lambda side: side[-1]["content"]) for row in rows],
        list,
    ),
    "tools as a list": ("hh-rlhf/pairs", *2 * (lambda rows: [row | {"tools": tools(row)} for row in rows],)),
    "tools as JSON": ("hh-rlhf/pairs", *2 * (lambda rows: [row | {"tools": json.dumps(tools(row))} for row in rows],)),
    "arguments of the template": (
        "hh-rlhf/pairs",
        *2 * (lambda rows: [row | {"chat_template_kwargs": {"word": row["subset"]}} for row in rows],),
    ),
    "from/value": (
        "llama-factory-demo/dpo_en_demo",
        lambda rows: [sides(row, sharegpt) | {"prompt": sharegpt(row["prompt"])} for row in rows],
        lambda rows: [
            trl.maybe_convert_to_chatml(sides(row, roles_kept) | {"prompt": roles_kept(row["prompt"])}) for row in rows
        ],
    ),
    "from/value, conversations": (
        "llama-factory-demo/dpo_en_demo",
        lambda rows: [
            {"conversations": sharegpt(row["prompt"])} | without(sides(row, lambda side: sharegpt(side)[0]), "prompt")
            for row in rows
        ],
        list,
    ),
    "K-wise": ("gsm8k-solutions/kwise", list, lambda rows: [pair for row in rows for pair in pairs_of(row)]),
}
VARIABLES = "{{ word | default('') }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"


@functools.cache
def tokenizers(directory: str, extended: bool = False) -> tuple[rm.Tokenizer, transformers.PreTrainedTokenizerFast]:
    """Ours and theirs; extended, of a template that writes the row's tools and arguments too."""
    ours, theirs = rm.load_tokenizer(shared(directory)), fast_tokenizer(shared(directory))
    if extended:
        theirs.chat_template = VARIABLES + theirs.chat_template
        ours = dataclasses.replace(ours, chat_template=theirs.chat_template)
    return ours, theirs


def with_trl(rows: Rows, tokenizer, max_length: int | None = None) -> list[list[list[int]]]:
    """The ids of TRL's pairs, of which rm leaves out those with two equal sides."""
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length)
    dataset = datasets.Dataset.from_list(copy.deepcopy(rows))
    prepared = trl.RewardTrainer._prepare_dataset(None, dataset, tokenizer, arguments, "train")
    pairs = zip(prepared["chosen_ids"], prepared["rejected_ids"], strict=True)
    return [[chosen, rejected] for chosen, rejected in pairs if chosen != rejected]


def with_rm(rows: Rows, tokenizer: rm.Tokenizer, max_length: int = 10**6, **options) -> list[list[list[int]]]:
    dataset = datasets.Dataset.from_list(rows)
    return sequences(tokenize_comparisons(dataset, tokenizer, CONFIG, max_length=max_length, **options)[0])


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_trl(form, directory):
    data, our_rows, their_rows = FORMS[form]
    rows = read(data)
    ours, theirs = tokenizers(directory, form.startswith(("tools", "arguments")))
    expected = with_trl(their_rows(rows), theirs)
    assert len(expected) >= 190
    assert with_rm(our_rows(rows), ours) == expected


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize(("form", "max_length"), [("text, explicit prompt", 256), ("chat, explicit prompt", 1024)])
def test_the_same_rows_are_over_length(form, directory, max_length):
    rows = read(FORMS[form][0])
    ours, theirs = tokenizers(directory)
    expected = with_trl(rows, theirs, max_length)
    assert with_rm(rows, ours, max_length) == expected
    assert (len(expected) < len(with_trl(rows, theirs))) == (max_length == 256 or directory == "models/stories260K")


def padded(pairs: list[list[list[int]]], left: bool) -> Rows:
    """The columns that EasyDeL's preference data have, padded to one length."""
    width = max(len(side) for pair in pairs for side in pair)
    rows = []
    for pair in pairs:
        row = {}
        for name, ids in zip(("chosen", "rejected"), pair, strict=True):
            ones, blank = [1] * len(ids), [0] * (width - len(ids))
            row[f"input_ids_{name}"] = blank + ids if left else ids + blank
            row[f"attention_mask_{name}"] = blank + ones if left else ones + blank
        rows.append(row)
    return rows


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("names", [("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")])
def test_token_ids_pass_as_they_are(directory, names):
    ours, theirs = tokenizers(directory)
    rows = [dict(zip(names, pair, strict=True)) for pair in with_trl(read("hh-rlhf/pairs"), theirs)]
    assert with_rm(rows, ours) == with_trl(rows, theirs)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_padding_of_token_ids_is_taken_away(directory, left):
    ours, theirs = tokenizers(directory)
    expected = with_trl(read("ukp-convarg1/pairs"), theirs)
    assert with_rm(padded(expected, left), ours) == expected


def test_the_pinned_date_is_what_transformers_says_on_that_day(monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 2, 3, 4, 5, 6)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Clock)
    ours, theirs = tokenizers("tokenizers/smollm2-135m-instruct")
    template = "{{ strftime_now('%d %b %Y, %A %B %-d, %j') }}\n" + str(ours.chat_template)
    ours = dataclasses.replace(ours, today=date(2025, 2, 3), chat_template=template)
    rendered = ours.apply_chat_template(chat("Hi", "Hello"))
    assert rendered.startswith("03 Feb 2025, Monday February 3, 034\n")
    assert rendered == theirs.apply_chat_template(chat("Hi", "Hello"), tokenize=False, chat_template=template)


def test_the_classes_that_are_read_exist():
    assert all(
        hasattr(transformers, name) or hasattr(transformers, f"{name}Tokenizer") for name in _CLASSES - {"PreTrained"}
    )
    assert hasattr(transformers, "PreTrainedTokenizerFast")
